"""Text and chats as token ids, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from proximo.errors import UsageError

Chat = list[dict[str, Any]]  # messages with role and content


def with_content(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with empty content where it only calls tools and has none."""
    return {"content": "", **message} if message.get("tool_calls") else message


def content(message: Mapping[str, Any]) -> str:
    """Text of a message, whose content may be a list of parts. Raises `ValueError` if not text."""
    value = with_content(message)["content"]
    if value is None and message.get("tool_calls"):
        return ""
    texts: list[str] = []
    for part in value if isinstance(value, list) else [value]:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ValueError(
                f"a message whose content is neither text nor parts of text: {value!r:.80}"
            )
        texts.append(text)
    return "".join(texts)


class Tokenizer:
    """A tokenizer of transformers with the tokens that end a completion.

    Prompt and answer are tokenized separately, as in sampling, where the prompt comes alone.
    """

    def __init__(self, inner: Any, stop: Sequence[str] = (), ends: Iterable[int] = ()) -> None:
        """inner: of transformers; stop: tokens that end a completion besides the model's own;
        ends: ids that the model declares, besides the tokenizer's end of sequence and end of turn.
        """
        self.inner = inner
        known = inner.get_vocab()
        for token in stop:
            if token not in known:
                raise UsageError(
                    f"sampling.stop has {token!r}, which is no single token of this tokenizer"
                )
        eos: int | None = inner.eos_token_id
        declared = [] if eos is None else [eos]
        # Ids by which the model itself ends a completion, and all that end one.
        self.ends = tuple(sorted({*declared, *ends, *_end_of_turn(inner)}))
        self.stops = tuple(sorted({*self.ends, *(known[token] for token in stop)}))
        # Id appended to an answer that has none of them.
        self.end = eos if eos is not None else next(iter(self.ends), None)

    def prompt(self, prompt: str | Chat, options: Mapping[str, Any] = {}) -> list[int]:
        """Ids of a prompt, text or chat. options: other arguments of the chat template."""
        if not isinstance(prompt, str):
            return self.plain(self._chat(prompt, options, reply=True))
        ids: list[int] = self.inner(prompt)["input_ids"]
        if ids[-1:] == [self.end]:  # some tokenizers close every text; a prompt continues
            text = self.plain(prompt)
            ids = ids[:-1] if ids[len(ids) - 1 - len(text) : -1] == text else ids
        # A text written by a chat template already has the prefix that the tokenizer adds.
        if any(ids[:n] == ids[n : 2 * n] for n in (1, 2, 3)):
            text = self.plain(prompt)
            added = len(ids) - len(text)
            ids = text if ids[:added] == text[:added] else ids
        return ids

    def answer(
        self, prompt: str | Chat, answer: str | Chat, options: Mapping[str, Any] = {}
    ) -> list[int]:
        """Ids of the answer to a prompt, including an end token. Raises `ValueError`."""
        if isinstance(prompt, str) or isinstance(answer, str):
            if not (isinstance(prompt, str) and isinstance(answer, str)):
                raise ValueError("prompt and answer differ in kind: one is text, the other a chat")
            return self._ended(answer)
        before = self._chat(prompt, options, reply=True)
        if _begins_answer(prompt) and answer[0]["role"] == "assistant":  # which continues it
            *prompt, begun = prompt
            whole = {**answer[0], "content": content(begun) + content(answer[0])}
            answer = [whole, *answer[1:]]
        text = self._chat([*prompt, *answer], options, reply=False)
        if not text.startswith(before):
            raise ValueError("the chat template writes the prompt differently with an answer")
        return self._ended(text[len(before) :])

    def _ended(self, text: str) -> list[int]:
        """Ids of an answer up to its end token, which is appended where there is none."""
        ids = self.plain(text)
        for place in [i for i, token in enumerate(ids) if token in self.stops]:
            rest = [token for token in ids[place:] if token not in self.stops]
            if not self.inner.decode(rest).strip():
                return ids[: place + 1]
        if self.end is None:
            raise ValueError("the tokenizer has no end of sequence, by which answers end")
        return [*ids, self.end]

    def text(self, ids: Sequence[int]) -> str:
        """Decoded text, without special tokens and without the model's own end."""
        kept = ids[:-1] if ids and ids[-1] in self.ends else ids
        return str(self.inner.decode(list(kept), skip_special_tokens=True))

    def plain(self, text: str) -> list[int]:
        """Ids of the text alone: no special tokens are added."""
        ids: list[int] = self.inner(text, add_special_tokens=False)["input_ids"]
        return ids

    def _chat(self, messages: Chat, options: Mapping[str, Any], *, reply: bool) -> str:
        """The chat as text. reply: the model continues, with a message or the rest of the last."""
        if not self.inner.chat_template:
            raise UsageError(
                "the data are chats, but this tokenizer has no chat template: give plain text"
            )
        continues = reply and _begins_answer(messages)
        return str(
            self.inner.apply_chat_template(
                [{**message, "content": content(message)} for message in messages],
                tokenize=False,
                add_generation_prompt=reply and not continues,
                continue_final_message=continues,
                **options,
            )
        )


def _begins_answer(chat: Chat) -> bool:
    return bool(chat) and chat[-1]["role"] == "assistant"


def _end_of_turn(tokenizer: Any) -> list[int]:
    """The special token that the chat template writes after an answer, if it writes one."""
    if not tokenizer.chat_template:
        return []
    answer = "Yes"
    chat = [{"role": "user", "content": "Ready?"}, {"role": "assistant", "content": answer}]
    try:
        rest = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(answer)[2].lstrip()
    except Exception:  # a template is a program: it may need what this chat does not have
        return []
    special = tokenizer.added_tokens_decoder.items()
    ends = [(len(token.content), id) for id, token in special if rest.startswith(token.content)]
    return [max(ends)[1]] if rest and ends else []


def declared_ends(generation: Any, vocabulary: int) -> list[int]:
    """Ids that a model's generation settings declare as ends, below the size of the vocabulary."""
    ends = getattr(generation, "eos_token_id", None)
    # A single one that transformers derived from the configuration may be its class's default.
    if ends is None or (getattr(generation, "_from_model_config", False) and np.ndim(ends) == 0):
        return []
    return [int(end) for end in np.atleast_1d(ends) if 0 <= end < vocabulary]
