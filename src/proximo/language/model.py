"""Causal language models from transformers, a policy with values on top, and tiny ones of our own.

The one module that knows transformers. Nothing is fetched: names are those it has stored already.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import json
import logging
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proximo.disk import check_regular, filling, read
from proximo.errors import UsageError, explain, printable
from proximo.functional.distributions import Categorical
from proximo.language.adapters import (
    Adapter,
    adapted,
    add_adapters,
    apply_adapter,
    merged,
    read_adapter,
)
from proximo.language.config import ModelConfig, Sampling, TrainingConfig
from proximo.language.data import Sequences, content, pack
from proximo.nets.actor_critic import Evaluation
from proximo.run.folder import RunFolder

END, UNKNOWN = "<end>", "<unknown>"
"""Tokens of a tiny model that are no symbol of the data."""


Chat = list[dict[str, Any]]
"""Messages with role and content."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
ROW_METHODS = ("reorder_cache", "batch_select_indices")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "language models need transformers: pip install 'proximo[language]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_shown)
    return transformers


def _shown(record: logging.LogRecord) -> bool:
    """What transformers says may hold names out of a file."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


class Tokenizer:
    """Text and chats to token ids and back. Prompt and answer are turned into tokens apart, as in
    sampling, where the one is there before the other.
    """

    def __init__(
        self, of_transformers: Any, stop: Sequence[str] = (), ends: Iterable[int] = ()
    ) -> None:
        """stop: tokens that end a completion besides the model's own; ends: those of the model,
        besides the end of sequence and the end of a turn that the tokenizer knows of.
        """
        self.inner = of_transformers
        known = of_transformers.get_vocab()
        for token in stop:
            if token not in known:
                raise UsageError(
                    f"sampling.stop has {token!r}, which is no single token of this tokenizer"
                )
        eos: int | None = of_transformers.eos_token_id
        own = [] if eos is None else [eos]
        self.ends = tuple(sorted({*own, *ends, *_end_of_turn(of_transformers)}))
        """Ids by which the model itself ends what it says."""
        self.stops = tuple(sorted({*self.ends, *(known[token] for token in stop)}))
        """Ids that end a completion."""
        self.end = eos if eos is not None else next(iter(self.ends), None)
        """The one that is put behind an answer that has none."""

    def __len__(self) -> int:
        return len(self.inner)

    def prompt(self, prompt: str | Chat, options: Mapping[str, Any] = NOTHING) -> list[int]:
        """Ids of a prompt: plain, or a chat whose next message is the model's.

        options: what else a chat template is given, its tools for example.
        """
        if not isinstance(prompt, str):
            return self.plain(self._chat(prompt, options, reply=True))
        ids: list[int] = self.inner(prompt)["input_ids"]
        if ids[-1:] == [self.end]:  # some tokenizers close every text; a prompt goes on
            text = self.plain(prompt)
            ids = ids[:-1] if ids[len(ids) - 1 - len(text) : -1] == text else ids
        # A text that a chat template wrote begins by itself with what is put before every text.
        if any(ids[:n] == ids[n : 2 * n] for n in (1, 2, 3)):
            text = self.plain(prompt)
            added = len(ids) - len(text)
            ids = text if ids[:added] == text[:added] else ids
        return ids

    def answer(
        self, prompt: str | Chat, answer: str | Chat, options: Mapping[str, Any] = NOTHING
    ) -> list[int]:
        """Ids of what follows a prompt, up to and including the end. Raises `ValueError`."""
        if isinstance(prompt, str) != isinstance(answer, str):
            raise ValueError("the prompt is text and what follows a chat, or the other way round")
        if isinstance(prompt, str):
            assert isinstance(answer, str)
            return self._ended(answer)
        assert not isinstance(answer, str)
        before = self._chat(prompt, options, reply=True)
        if _begins_answer(prompt) and answer[0]["role"] == "assistant":  # which goes on with it
            *prompt, begun = prompt
            whole = {**answer[0], "content": content(begun) + content(answer[0])}
            answer = [whole, *answer[1:]]
        said = self._chat([*prompt, *answer], options, reply=False)
        if not said.startswith(before):
            raise ValueError("the chat template writes the prompt differently with an answer")
        return self._ended(said[len(before) :])

    def _ended(self, text: str) -> list[int]:
        """Ids of an answer, up to the end that is written behind it, or with one put there."""
        ids = self.plain(text)
        for place in [i for i, token in enumerate(ids) if token in self.stops]:
            behind = [token for token in ids[place:] if token not in self.stops]
            if not self.inner.decode(behind).strip():
                return ids[: place + 1]
        if self.end is None:
            raise ValueError("the tokenizer has no end of sequence, by which answers end")
        return [*ids, self.end]

    def text(self, ids: Sequence[int]) -> str:
        """What these ids say, without special tokens and the model's own end."""
        said = ids[:-1] if ids and ids[-1] in self.ends else ids
        return str(self.inner.decode(list(said), skip_special_tokens=True))

    def plain(self, text: str) -> list[int]:
        """Ids of a text as it is, with nothing put before or behind it."""
        ids: list[int] = self.inner(text, add_special_tokens=False)["input_ids"]
        return ids

    def _chat(self, messages: Chat, options: Mapping[str, Any], *, reply: bool) -> str:
        """reply: what follows is the model's: a message, or the rest of the last one."""
        if not self.inner.chat_template:
            raise UsageError(
                "the data are chats, but this tokenizer has no chat template: give plain text"
            )
        going_on = reply and _begins_answer(messages)
        return str(
            self.inner.apply_chat_template(
                [{**message, "content": content(message)} for message in messages],
                tokenize=False,
                add_generation_prompt=reply and not going_on,
                continue_final_message=going_on,
                **options,
            )
        )


def _begins_answer(chat: Chat) -> bool:
    return bool(chat) and chat[-1]["role"] == "assistant"


def _end_of_turn(tokenizer: Any) -> list[int]:
    """The special token that the chat template writes behind an answer, if it does."""
    if not tokenizer.chat_template:
        return []
    said = "Yes"
    chat = [{"role": "user", "content": "Ready?"}, {"role": "assistant", "content": said}]
    try:
        behind = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(said)[2].lstrip()
    except Exception:  # a template is a program: it may want what this chat has not
        return []
    special = tokenizer.added_tokens_decoder.items()
    found = [(len(token.content), id) for id, token in special if behind.startswith(token.content)]
    return [max(found)[1]] if behind and found else []


def declared_ends(generation: Any, known: int) -> list[int]:
    """The ids by which transformers ends what a model of these settings says.

    One alone that was made up from the model's configuration is none: it may be its class's own.
    known: how many tokens there are.
    """
    ends = getattr(generation, "eos_token_id", None)
    if ends is None or (getattr(generation, "_from_model_config", False) and np.ndim(ends) == 0):
        return []
    return [int(end) for end in np.atleast_1d(ends) if 0 <= end < known]


class Output(NamedTuple):
    """What a model says after the last token of each sequence."""

    logits: Tensor  # [N, V] float32
    cache: Any  # keys and values so far, where they were asked for and the model keeps them


class LanguageModel(nn.Module):
    """A causal language model of transformers and its tokenizer; dropout is always off."""

    def __init__(self, net: nn.Module, tokenizer: Any) -> None:
        """net: a causal language model; tokenizer: of transformers. Raises `UsageError`."""
        super().__init__()
        self.net = net
        self.tokenizer = tokenizer
        takes = inspect.signature(net.forward).parameters
        for needed in ("attention_mask", "position_ids"):
            if needed not in takes:
                raise UsageError(
                    f"a {type(net).__name__} takes no {needed}: what it says would depend on the "
                    "padding"
                )
        check_fit(tokenizer, net.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        _fuse(net)
        self._recomputed: list[nn.Module] = []
        self._bfloat16 = False
        self.eval()

    def set_up(self, model: ModelConfig, run: TrainingConfig) -> Self:
        """Put adapters on it and choose how it computes, as the settings say.

        Raises `UsageError` for what this model cannot do.
        """
        if model.lora_rank:
            add_adapters(self.net, model, run.seed)
        self._bfloat16 = run.dtype == "bfloat16"
        if run.gradient_checkpointing:
            kind = _transformers().modeling_layers.GradientCheckpointingLayer
            self._recomputed = [m for m in self.net.modules() if isinstance(m, kind)]
            if not self._recomputed:
                raise UsageError(
                    f"run.gradient_checkpointing is set, but a {type(self.net).__name__} has no "
                    "layers that can be computed again"
                )
        return self

    def train(self, mode: bool = True) -> Self:
        """Stays as it is: with dropout on, the policy that acts is not the one that is judged."""
        return super().train(False)

    @property
    def width(self) -> int:
        """D, numbers per token that logits are made of."""
        return int(self.net.get_output_embeddings().weight.shape[-1])  # type: ignore[operator]

    @property
    def context(self) -> int | None:
        """The longest sequence it reads, where it has one."""
        return context(self.net.config)

    @property
    def generation(self) -> Any:
        """Settings of transformers for drawing texts, which are kept and saved with the model."""
        return getattr(self.net, "generation_config", None)

    @property
    def ends(self) -> list[int]:
        """Ids by which it ends what it says, besides what the tokenizer knows of."""
        return declared_ends(self.generation, len(self.tokenizer))

    def end_by(self, ends: Iterable[int]) -> Self:
        """Have other programs end its texts by these too: it learns to write no more then."""
        if self.generation is not None:
            own = self.generation.eos_token_id
            known = [] if own is None else np.atleast_1d(own).tolist()
            if missing := sorted(set(ends) - set(known)):
                self.generation.eos_token_id = [*known, *missing]
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> Output:
        """tokens, positions: [N, L]; mask: [N, all so far]; cache: True begins one."""
        with self._computing(self._exact):
            out = self.net(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=positions,
                logits_to_keep=1,
                use_cache=cache is not None,
                past_key_values=None if cache in (None, True) else cache,
            )
        kept = None if cache is None else getattr(out, "past_key_values", None)
        return Output(out.logits[:, -1].float(), kept)

    def read(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Logits [B, V] before each of the B tokens of the completions, and hidden [B, D].

        In order of sequence, then of time.
        """
        return self._read(sequences, before(sequences), share=self.packs)

    def hidden(self, sequences: Sequences, wanted: Tensor) -> Tensor:
        """What logits would be computed from at the tokens that are `wanted`, [N, L]. [B, D]."""
        return self._read(sequences, wanted, share=self.packs, logits=False)[1]

    def _read(
        self, sequences: Sequences, wanted: Tensor, *, share: bool, logits: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits, if they are asked for, are made of the tokens that are wanted and no others."""
        packed = pack(sequences, wanted, share=share)
        if packed.tokens.shape[-1] > self._window:
            packed = pack(sequences, wanted, share=False)
        hidden = torch.empty(0)

        def speak(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            nonlocal hidden
            hidden = x.flatten(0, 1).index_select(0, packed.wanted)
            return self._exact(forward, hidden) if logits else hidden

        shared = len(packed.tokens) < len(wanted)
        kind = torch.bfloat16 if self._bfloat16 else torch.float32
        with self._computing(speak):
            out = self.net(
                input_ids=packed.tokens,
                attention_mask=packed.mask(kind) if shared else (packed.owner >= 0).long(),
                position_ids=packed.positions,
                use_cache=False,
            )
        return out.logits.float(), hidden.float()

    @property
    def causal(self) -> bool:
        """Whether a token knows nothing of the next one, as one of BERT does: tried out."""
        tokens = torch.zeros(2, 2, dtype=torch.int64, device=self.device)
        tokens[1, 1] = 1
        with torch.no_grad():
            out = self.net(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                position_ids=torch.arange(2, device=self.device).expand(2, 2),
                use_cache=False,
            )
        first = out.logits[:, 0].float()
        return bool((first[0] - first[1]).abs().max() <= 1e-5 * (first.max() - first.min()))

    @cached_property
    def packs(self) -> bool:
        """Whether sequences that share a row do not see each other: tried out on two.

        What is no attention, a convolution say, goes on from one to the next in some models.
        """
        if self.net.config._attn_implementation != "sdpa":  # type: ignore[union-attr]
            return False  # other kinds take other masks
        known = self.net.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if min(known, self.context or known) < 3:
            return False
        two = Sequences.join([[1], [2, 1]], [[0, 2, 1], [1, 0]], self.device)
        rounds, self._bfloat16 = self._bfloat16, False
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                apart, _ = self._read(two, before(two), share=False)
                try:
                    together, _ = self._read(two, before(two), share=True)
                except Exception:  # whatever it is that this model does with such a mask
                    return False
        finally:
            self._bfloat16 = rounds
        return bool((apart - together).abs().max() <= 1e-5 * (apart.max() - apart.min()))

    @cached_property
    def select(self) -> str:
        """The method of a cache that keeps some of its rows, or "" where none does it right.

        Tried out on three sequences: transformers has two methods for it, `reorder_cache` and
        `batch_select_indices`, and some kinds of layer have only one of them, or do half of it.
        """
        known = self.net.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if min(known, self.context or known) < 2:
            return ""
        three = Sequences.join([[0, 1], [1, 0], [1]], [[], [], []], self.device)
        kept = torch.tensor([2, 0], device=self.device)
        token, place = three.tokens[:, :1], three.positions[:, -1:] + 1
        seen = torch.cat([three.mask, three.mask[:, -1:]], -1)
        rounds, self._bfloat16 = self._bfloat16, False
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                begun = [self(*three[:2], three.positions, cache=True).cache for _ in range(3)]
                if begun[0] is None:
                    return ""
                whole = self(token, seen, place, cache=begun[0]).logits[kept]
                for cache, method in zip(begun[1:], ROW_METHODS, strict=True):
                    # Whatever it is that this kind of cache lacks, it is then not the one.
                    with contextlib.suppress(Exception):
                        getattr(cache, method)(kept)
                        part = self(token[kept], seen[kept], place[kept], cache=cache).logits
                        if (part - whole).abs().max() <= 1e-5 * (whole.max() - whole.min()):
                            return method
        finally:
            self._bfloat16 = rounds
        return ""

    @property
    def _window(self) -> float:
        """How far back every layer sees, where they are given a mask of their own otherwise."""
        config = self.net.config.get_text_config()  # type: ignore[union-attr, operator]
        found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((size for size in found if size), default=math.inf)

    def rounding(self) -> torch.autocast:
        """To be entered around many passes that train nothing: weights are then rounded once."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    @contextmanager
    def _computing(self, speak: Callable[..., Tensor]) -> Iterator[None]:
        """Precision and memory of a pass, as they were set up; `speak` makes its logits."""
        with ExitStack() as settings:
            head = self.net.get_output_embeddings()  # type: ignore[operator]
            settings.enter_context(_replaced([head], speak))
            if self._bfloat16:
                settings.enter_context(self.rounding())
            # transformers has this too, but for models whose dropout is on, and without a cache.
            if self._recomputed and torch.is_grad_enabled():
                again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
                settings.enter_context(_replaced(self._recomputed, again))
            yield

    def _exact(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Logits in float32, whatever the layers before compute in."""
        if not self._bfloat16:
            return forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    def log_prob(self, sequences: Sequences, sampling: Sampling, stops: Sequence[int]) -> Tensor:
        """Log π(token | what came before) for each of the B tokens of the completions. [B]."""
        logits, _ = self.read(sequences)
        return distribution(logits, sampling, stops, places(sequences)).log_prob(drawn(sequences))

    def merged(self) -> LanguageModel:
        """A copy on the CPU as a plain model: its adapters, if it has any, are in its weights."""
        return LanguageModel(merged(self.net), self.tokenizer)

    def save(self, folder: Path, *, weights: bool = True, within: Path | None = None) -> None:
        """Write a folder that transformers reads; without weights, what the model is.

        within: as for `disk.replace`. Raises `OSError`.
        """
        net: Any = merged(self.net) if weights and adapted(self.net) else self.net
        own = self.generation
        with filling(folder, within) as place:
            try:
                if own is not None:  # transformers loads settings that it then refuses to write
                    net.generation_config = type(own)()
                (net if weights else net.config).save_pretrained(place)
            finally:
                if own is not None:
                    net.generation_config = own
            if own is not None:
                own.to_json_file(place / "generation_config.json")
            self.tokenizer.save_pretrained(place)


def _fuse(net: nn.Module) -> None:
    """GPT-2's activation as one operation: written out it takes a sixth of a small model's time."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(parent, name, nn.GELU(approximate="tanh"))


@contextmanager
def _replaced(modules: Sequence[nn.Module], by: Callable[..., Tensor]) -> Iterator[None]:
    """Have `by(forward, ...)` called where each module's forward would be."""
    patched = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(by, module.forward)
    try:
        yield
    finally:
        for module, patch in zip(modules, patched, strict=True):
            del module.forward
            if patch is not None:  # that another library had put there
                module.forward = patch


def check_fit(tokenizer: Any, known: int) -> None:
    """Refuse a tokenizer that has more tokens than the model knows. Raises `UsageError`."""
    if len(tokenizer) > known:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {known}: they do not "
            "belong together"
        )


def before(sequences: Sequences) -> Tensor:
    """[N, P + R] bool: the tokens that a token of a completion follows."""
    found = torch.zeros_like(sequences.mask)
    width = sequences.response.shape[-1]
    found[:, -width - 1 : -1] = sequences.response
    return found


def places(sequences: Sequences) -> Tensor:
    """[B] int64: which token of its reply each one is, from 0."""
    response = sequences.response
    begins = response.clone()
    begins[:, 1:] &= ~response[:, :-1]
    column = torch.arange(response.shape[-1], device=response.device)
    return (column - torch.where(begins, column, 0).cummax(-1).values)[response]


def drawn(sequences: Sequences) -> Tensor:
    """[B] int64: the tokens of the completions, in order of sequence, then of time."""
    return sequences.tokens[:, -sequences.response.shape[-1] :][sequences.response]


def distribution(
    logits: Tensor, sampling: Sampling, stops: Sequence[int], place: Tensor
) -> Categorical:
    """π(·|s) as tokens are drawn from it: p ∝ exp(logits/temperature), no stop before min_tokens.

    The one place where it is made, for the sampler and for the update. logits: [..., V]; place:
    [...] int64, which token of the completion this is. What is truncated (`Sampling.top_k`,
    `top_p`) has probability 0, as stop tokens have while they may not come.
    """
    logits = logits / sampling.temperature
    legal = None
    if sampling.min_tokens and stops:
        legal = torch.ones_like(logits, dtype=torch.bool)
        legal[..., list(stops)] = (place >= sampling.min_tokens).unsqueeze(-1)
        logits = logits.masked_fill(~legal, -torch.inf)
    if sampling.truncated:
        ordered, index = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        keeps = p.cumsum(-1) - p < sampling.top_p
        if sampling.top_k:
            keeps[..., sampling.top_k :] = False
        kept = torch.zeros_like(keeps).scatter(-1, index, keeps)
        legal = kept if legal is None else legal & kept
    return Categorical.from_logits(logits, legal)


class LanguagePolicy(nn.Module):
    """π(token | text so far) and V(text so far), under `ActorCritic`'s contract where they meet.

    The value head begins at 0. With a critic of its own, values come from another trunk.
    """

    normalize_returns = False

    def __init__(
        self, lm: LanguageModel, stops: Sequence[int], critic: LanguageModel | None = None
    ) -> None:
        super().__init__()
        self.lm, self.stops = lm, tuple(stops)
        self.critic = critic
        self.value_head = nn.Linear((critic or lm).width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def actor_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.lm.parameters() if p.requires_grad]

    def critic_parameters(self) -> list[nn.Parameter]:
        trunk = [] if self.critic is None else list(self.critic.parameters())
        return [p for p in (*trunk, *self.value_head.parameters()) if p.requires_grad]

    def evaluate(
        self, sequences: Sequences, sampling: Sampling, *, entropy: bool, value: bool = True
    ) -> Evaluation:
        """Of each of the B tokens of the completions, given what came before it. All [B]."""
        logits, hidden = self.lm.read(sequences)
        if self.critic is not None and value:
            hidden = self.critic.hidden(sequences, before(sequences))
        found = distribution(logits, sampling, self.stops, places(sequences))
        log_prob = found.log_prob(drawn(sequences))
        values = self.value_head(hidden).squeeze(-1) if value else torch.zeros_like(log_prob)
        return Evaluation(log_prob, found.entropy() if entropy else None, values, found)


class Blueprint:
    """A model before its weights are loaded: enough to check data against."""

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        weights: Path | LanguageModel | None,
        *,
        generation: Any = None,
        adapter: Adapter | None = None,
    ) -> None:
        """weights: where they are; None: random ones. generation: None: made up from config.

        adapter: what is to be merged into the weights.
        """
        self.tokenizer, self.config, self._weights = tokenizer, config, weights
        self._generation, self._adapter = generation, adapter

    @property
    def ends(self) -> list[int]:
        """Ids by which the model ends what it says, besides what the tokenizer knows of."""
        found = self._generation or _transformers().GenerationConfig.from_model_config(self.config)
        return declared_ends(found, len(self.tokenizer))

    @property
    def context(self) -> int | None:
        return context(self.config)

    def build(self, seed: int, *, random: bool = False) -> LanguageModel:
        """The model; `random` leaves the loading of weights to a checkpoint."""
        if isinstance(self._weights, LanguageModel):
            return self._weights.merged()
        library = _transformers()
        with self._loading():
            if self._weights is None or random:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    net = self._random()
                if self._generation is not None:
                    net.generation_config = self._generation
                return LanguageModel(net.float(), self.tokenizer)
            net = library.AutoModelForCausalLM.from_pretrained(
                self._weights,
                **UNTRUSTED,
                use_safetensors=True,  # other files of weights run code when they are loaded
                adapter_kwargs={"subfolder": secrets.token_hex()},  # peft would import what it says
                dtype=torch.float32,
            )
            if self._adapter:
                apply_adapter(net, self._adapter)
            found = LanguageModel(net, self.tokenizer)
            if not found.causal:
                raise UsageError(
                    f"the model {self._weights} is a {type(net).__name__} that reads what comes "
                    "later too: give a causal language model"
                )
        return found

    def _random(self) -> Any:
        made = _transformers().AutoModelForCausalLM
        return made.from_config(self.config, trust_remote_code=False)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """A forged file may raise anything: raises `UsageError` in its place."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            name = self._weights or "that is asked for"
            raise UsageError(f"the model {name} cannot be loaded: {error}") from error

    def check_size(self, most: int) -> None:
        """Refuse, before memory is taken, a model whose numbers have more bytes than these."""
        with self._loading(), torch.device("meta"):
            net = self._random()
        if (needed := 4 * sum(x.numel() for x in net.parameters())) > most:
            raise UsageError(
                f"the model {self._weights} takes {needed:,} bytes by its config.json, but the "
                f"checkpoints of its run have {most:,}"
            )


def context(config: Any) -> int | None:
    """The longest sequence that a model of this configuration reads, where it has one."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def blueprint(config: ModelConfig, texts: Iterable[str]) -> Blueprint:
    """What `model.path` names. texts: what the symbols of a tiny model are taken from."""
    if config.path == "tiny":
        return _tiny_blueprint(config, texts)
    folder = Path(config.path)
    if RunFolder(folder).config_file.is_file():
        folder = folder / "model"
        if not any(folder.glob("*.safetensors")):
            raise UsageError(
                f"the run {config.path} has no model to begin with: a run of sft or ppo has one "
                f"once it has finished (proximo lm resume {config.path})"
            )
    return read_blueprint(folder if folder.is_dir() else config.path)


UNTRUSTED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Whose folder it is, nobody knows: nothing is fetched for it, and no code in it is run."""
LONGEST = {"config.json": 2**20, ".json": 2**26, ".safetensors": 2**62}
"""Bytes of a file of a model, by its name or the end of it; of others `LONGEST_OTHER`."""
LONGEST_OTHER = 2**24
REPEATED, MOST_REPEATED = re.compile("^n_layer$|(layers|experts|labels|depth)$"), 2**12
"""Settings of how many parts a model is made of, each of which takes time, and their bound."""
READ = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".safetensors")
"""Ends of the names of what is read; what else lies in a folder is not."""


def read_blueprint(folder: Path | str) -> Blueprint:
    """A folder that transformers reads, or a name that it has stored. Raises `UsageError`."""
    library = _transformers()
    try:
        place = Path(folder)
        if not place.is_dir():  # the folder in which it is stored
            place = Path(library.utils.cached_file(str(folder), "config.json", **UNTRUSTED)).parent
        _check_files(place)
        settings = library.AutoConfig.from_pretrained(place, **UNTRUSTED)
        tokenizer = library.AutoTokenizer.from_pretrained(place, **UNTRUSTED)
        check_fit(tokenizer, settings.get_text_config().vocab_size)
        if getattr(settings.get_text_config(), "num_hidden_layers", 1) < 1:
            raise ValueError("it has no layers")
    except UsageError:
        raise
    except Exception as error:  # a forged file may raise anything
        why = "no such folder, and nothing is stored by that name; nothing is fetched"
        if Path(folder).is_dir():
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"there is no model {str(folder)!r} ({why}): give a folder that transformers reads, a "
            "run of proximo lm, or tiny"
        ) from error
    found = _generation(place, len(tokenizer))
    return Blueprint(tokenizer, settings, place, generation=found, adapter=read_adapter(place))


def _generation(folder: Path, known: int) -> Any:
    """Of generation_config.json, which not every model has. Raises `UsageError`."""
    file = folder / "generation_config.json"
    try:
        found = _transformers().GenerationConfig.from_pretrained(folder, local_files_only=True)
        declared_ends(found, known)
    except Exception as error:
        if isinstance(error, OSError) and not file.is_file():
            return None
        raise UsageError(f"{file} cannot be read: {explain(error)}") from error
    return found


def _check_files(folder: Path) -> None:
    """Look at everything in it that transformers may read. Raises `OSError` and `UsageError`."""
    for file in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if file.is_dir():
            continue
        check_regular(file)
        limits = (LONGEST.get(end) for end in (file.name, file.suffix))
        most = next((limit for limit in limits if limit), LONGEST_OTHER)
        if file.suffix in READ and file.stat().st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(file))
    settings = json.loads(read(folder / "config.json", LONGEST["config.json"]))
    for name, value in _settings(settings):
        if name == "quantization_config" and value:
            raise UsageError(
                f"the model {folder} is quantized (quantization_config in its config.json): take "
                "the one that is not"
            )
        if name.endswith("_implementation") and "/" in str(value):
            raise UsageError(
                f"config.json of the model {folder} names code to fetch ({name} {value!r:.80}): "
                "take that out of it"
            )
        if type(value) is int and REPEATED.search(name) and value > MOST_REPEATED:
            raise UsageError(
                f"config.json of the model {folder} has {name} {value!r:.40}: at most "
                f"{MOST_REPEATED:,} are made"
            )


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration, and of those within it."""
    if isinstance(part, list):
        for inner in part:
            yield from _settings(inner)
    elif isinstance(part, dict):
        yield from part.items()
        for inner in part.values():
            yield from _settings(inner)


def load_model(path: str | Path) -> LanguageModel:
    """The language model of a folder, a run, or a stored name. Raises `UsageError`."""
    return blueprint(ModelConfig(path=str(path)), ()).build(0)


def tiny(texts: Iterable[str], *, seed: int = 0, **settings: Any) -> LanguageModel:
    """A small GPT-2 with random weights over the symbols of these texts.

    settings: layers, width, heads, context, symbols, as in `ModelConfig`.
    """
    return _tiny_blueprint(ModelConfig(**settings), texts).build(seed)


PATTERNS = {"characters": r"[\s\S]", "words": r"\w+|\s|[^\w\s]"}


def _tiny_blueprint(config: ModelConfig, texts: Iterable[str]) -> Blueprint:
    library = _transformers()
    import tokenizers

    pattern = PATTERNS[config.symbols]
    symbols = sorted({symbol for text in texts for symbol in re.findall(pattern, text)})
    vocabulary = {symbol: i for i, symbol in enumerate([END, UNKNOWN, *symbols])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, unk_token=UNKNOWN, model_max_length=config.context
    )
    settings = library.GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Blueprint(tokenizer, settings, None)
