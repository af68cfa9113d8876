"""Envs of text: Gymnasium envs that a language model talks with, turn by turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import Env
from gymnasium.spaces import Text

from proximo.envs.config import EnvConfig
from proximo.envs.make import Maker, base, close_all, episode_seed, make_env, title
from proximo.errors import TrainingError, UsageError, explain, faults
from proximo.language.config import Sampling
from proximo.language.data import Sequences
from proximo.language.generate import Completions, Drawn, draw
from proximo.language.model import LanguageModel, Tokenizer
from proximo.types import Metrics

TextEnv = Env[str, str]
Row = Mapping[str, Any]


@contextmanager
def text_envs(name: str, maker: Maker | None, count: int) -> Iterator[list[TextEnv]]:
    """By name (module:Class, or a Gymnasium id) or by a maker; closed afterwards.

    Raises `UsageError` for those with which one cannot talk.
    """
    envs: list[TextEnv] = []
    try:
        for _ in range(count):
            envs.append(make_env(EnvConfig(id=name), maker))
            _check_spaces(envs[-1])
        if len({id(base(env)) for env in envs}) < count:
            raise UsageError(
                "the callable returned one and the same env twice: make a new one each time"
            )
        yield envs
    finally:
        close_all(envs)


def _check_spaces(env: TextEnv) -> None:
    for what in ("observation_space", "action_space"):
        space = getattr(env, what, None)
        if not isinstance(space, Text):
            raise UsageError(
                f"the env {title(env)} has the {what} {space}: a language model talks with "
                "envs of which both spaces are gymnasium.spaces.Text"
            )


def symbols(env: TextEnv) -> list[str]:
    """What can be said in it, for the symbols of a tiny model."""
    return [env.observation_space.characters, env.action_space.characters]  # type: ignore[attr-defined]


@dataclass
class Episode:
    """A conversation: an env's first text, then replies, and what the env says to them."""

    number: int
    seed: int
    prompt: list[int]
    """Ids of the first text."""
    texts: list[str]
    """Everything that was said, in turn, from the first text to the last reply."""
    tokens: list[int] = field(default_factory=list)
    """Ids of all that follows the first text."""
    own: list[bool] = field(default_factory=list)
    """Which of them are the model's."""
    log_prob: list[float] = field(default_factory=list)
    """Of the model's own."""
    rewards: list[float] = field(default_factory=list)
    """One for each reply."""
    stopped: list[bool] = field(default_factory=list)
    """Of each reply: False where it was cut off at its longest."""
    terminated: bool = False
    truncated: bool = False
    """By the env, the limit of turns, or the longest sequence that the model reads."""

    def add(self, tokens: Sequence[int], text: str, *, own: bool) -> None:
        self.tokens += tokens
        self.own += [own] * len(tokens)
        self.texts.append(text)


def readings_of(episodes: Sequence[Episode]) -> Metrics:
    """Replies per episode, and the share of episodes that a limit has ended."""
    count = len(episodes)
    if not count:
        return {}
    return {
        "turns": sum(len(e.rewards) for e in episodes) / count,
        "truncated": sum(e.truncated for e in episodes) / count,
    }


def joined(episodes: Sequence[Episode], device: torch.device) -> Completions:
    """Their conversations as sequences: every first text is a prompt, the rest its completion."""
    return Completions(
        Sequences.join(
            [e.prompt for e in episodes],
            [e.tokens for e in episodes],
            device,
            [e.own for e in episodes],
        ),
        torch.tensor([x for e in episodes for x in e.log_prob], device=device),
        torch.tensor([x for e in episodes for x in e.stopped], device=device),
    )


class TextEnvs:
    """N envs in which a language model acts: its reply is the action, what they say is read.

    Episode k begins by `reset` with a seed that depends on the run's and k alone, so that a run
    that goes on meets the same episodes; `options` is its row of the data, where there are any.
    """

    def __init__(
        self,
        envs: Sequence[TextEnv],
        tokenizer: Tokenizer,
        sampling: Sampling,
        context: int | None,
        seed: int,
        rows: Sequence[Row],
    ) -> None:
        """Begins an episode, to see what it is like. context: tokens that the model reads at most.

        Raises `UsageError`.
        """
        self._envs, self._tokenizer, self._sampling = envs, tokenizer, sampling
        self._context, self._seed = context, seed
        self._name = type(envs[0].unwrapped).__name__
        self._begin(envs[0], 0, rows[0], UsageError)

    def play(
        self,
        lm: LanguageModel,
        numbers: Sequence[int],
        rows: Sequence[Row],
        generator: torch.Generator,
        micro_batch: int,
        fault: type[Exception] = TrainingError,
    ) -> list[Episode]:
        """The episodes of these numbers, as many at a time as there are envs, turn by turn.

        The conversation is read from its beginning in each turn: no keys and values are kept of
        conversations that have grown to different lengths. One uniform number per token is drawn
        for all of them in each turn, whether or not their episodes are over.
        """
        size, found = len(self._envs), []
        for begin in range(0, len(numbers), size):
            part = slice(begin, begin + size)
            found += self._play(lm, numbers[part], rows[part], generator, micro_batch, fault)
        return found

    def _play(
        self,
        lm: LanguageModel,
        numbers: Sequence[int],
        rows: Sequence[Row],
        generator: torch.Generator,
        micro_batch: int,
        fault: type[Exception],
    ) -> list[Episode]:
        episodes = [
            self._begin(env, number, row, fault)
            for env, number, row in zip(self._envs, numbers, rows, strict=False)
        ]
        going = list(range(len(episodes)))
        for turn in range(1, self._sampling.max_turns + 1):
            noise = torch.rand(len(episodes), self._sampling.max_tokens, generator=generator)
            replies, stopped = draw(
                lm,
                [episodes[i].prompt + episodes[i].tokens for i in going],
                self._sampling,
                self._tokenizer.stops,
                noise[going],
                micro_batch,
            )
            for i, reply, ended in zip(going, replies, stopped.tolist(), strict=True):
                episodes[i].stopped.append(ended)
                self._step(self._envs[i], episodes[i], reply, turn, fault)
            going = [i for i in going if not (episodes[i].terminated or episodes[i].truncated)]
            if not going:
                break
        return episodes

    def _begin(self, env: TextEnv, number: int, row: Row, fault: type[Exception]) -> Episode:
        seed = episode_seed(self._seed, 0, number)
        where = f"the env {self._name}, at the start of episode {number} (seed {seed}),"
        options = copy.deepcopy(dict(row)) or None  # an env may use up what is its own
        text, _ = _answer(lambda: env.reset(seed=seed, options=options), 2, where, fault)
        prompt = self._heard(text, self._tokenizer.prompt, where, fault)
        return Episode(number, seed, prompt, [text])

    def _step(
        self, env: TextEnv, episode: Episode, reply: Drawn, turn: int, fault: type[Exception]
    ) -> None:
        """Hand the reply to the env, and take in what it says to it."""
        where = (
            f"the env {self._name}, in turn {turn} of episode {episode.number} "
            f"(seed {episode.seed}),"
        )
        tokens = [token for token, _ in reply]
        said = self._tokenizer.text(tokens)
        episode.add(tokens, said, own=True)
        episode.log_prob += [log_prob for _, log_prob in reply]
        answer = _answer(lambda: env.step(said), 5, where, fault)
        text, reward, terminated, truncated, _ = answer
        try:
            episode.rewards.append(float(reward))
        except (TypeError, ValueError) as error:
            raise fault(f"{where} rewards {said!r} by {reward!r}: it must be a number") from error
        if not math.isfinite(episode.rewards[-1]):
            raise fault(f"{where} rewards {said!r} by {reward!r}: it must be finite")
        episode.terminated = bool(terminated)
        episode.truncated = not terminated and (bool(truncated) or turn == self._sampling.max_turns)
        if episode.terminated or episode.truncated:
            return
        heard = self._heard(text, self._tokenizer.plain, where, fault)
        if self._fits([*episode.prompt, *episode.tokens, *heard]):
            episode.add(heard, text, own=False)
        else:
            episode.truncated = True

    def _heard(
        self,
        text: Any,
        read: Callable[[str], list[int]],
        where: str,
        fault: type[Exception],
    ) -> list[int]:
        """Ids of what an env says, if it can be replied to."""
        if not isinstance(text, str):
            raise fault(f"{where} says {text!r}: it must be text")
        short = text if len(text) <= 60 else f"{text[:60]}..."
        if not (ids := read(text)):
            raise fault(f"{where} says {short!r}, which has no tokens to reply to")
        if not self._envs[0].observation_space.contains(text):
            raise fault(
                f"{where} says {short!r}, which is not in its observation_space: see its charset, "
                "min_length and max_length"
            )
        if not self._fits(ids):
            raise fault(
                f"{where} says {short!r}, which has {len(ids)} tokens and "
                f"{self._sampling.max_tokens} to be drawn, but the model reads {self._context} at "
                "most: shorten it, or lower sampling.max_tokens"
            )
        return ids

    def _fits(self, ids: Sequence[int]) -> bool:
        """Whether a reply can follow these."""
        return self._context is None or len(ids) + self._sampling.max_tokens <= self._context


def _answer(
    act: Callable[[], tuple[Any, ...]], count: int, where: str, fault: type[Exception]
) -> tuple[Any, ...]:
    """What an env's reset or step returns."""
    try:
        answer = act()
    except faults() as error:
        raise fault(f"{where} failed: {explain(error)}") from error
    if not isinstance(answer, tuple) or len(answer) != count:
        what = "(text, info)" if count == 2 else "(text, reward, terminated, truncated, info)"
        raise fault(f"{where} returned {answer!r}: it must be {what}")
    return answer
