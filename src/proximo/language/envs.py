"""Text environments: Gymnasium envs in which a language model acts by its replies, turn by turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from gymnasium import Env
from gymnasium.spaces import Text
from torch import Generator

from proximo.envs.base import Maker, episode_seed
from proximo.envs.config import EnvConfig
from proximo.envs.layers import close_all, title, unwrapped
from proximo.envs.make import make_env
from proximo.errors import TrainingError, UsageError, explained
from proximo.language.config import Sampling
from proximo.language.generate import sample
from proximo.language.model import Decoding, LanguageModel
from proximo.language.records import Completions
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer
from proximo.types import Metrics

TextEnv = Env[str, str]
Row = Mapping[str, Any]


def make_text_envs(name: str, maker: Maker | None, count: int) -> list[TextEnv]:
    """Envs by name or by a maker. Raises `UsageError` for those whose spaces are not text."""
    envs: list[TextEnv] = []
    try:
        for _ in range(count):
            envs.append(make_env(EnvConfig(id=name), maker))
            _check_spaces(envs[-1])
        if len({id(unwrapped(env)) for env in envs}) < count:
            raise UsageError(
                "the callable returned one and the same env twice: make a new one each time"
            )
    except BaseException:
        close_all(envs)
        raise
    return envs


def _check_spaces(env: TextEnv) -> None:
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, Text):
            raise UsageError(
                f"the env {title(env)} has the {name} {space}: a language model talks with "
                "envs of which both spaces are gymnasium.spaces.Text"
            )


def finite(values: Iterable[Any], what: str, fault: type[Exception]) -> list[float]:
    """Rewards of user code as numbers. Raises `fault`, with `what` they are, for others."""
    try:
        numbers = [float(x) for x in values]
    except (TypeError, ValueError) as error:
        raise fault(f"{what}: it must be a number") from error
    if not all(map(math.isfinite, numbers)):
        raise fault(f"{what}: it must be finite")
    return numbers


def characters(env: TextEnv) -> list[str]:
    """Characters of both spaces, for the vocabulary of a tiny model."""
    spaces = (env.observation_space, env.action_space)
    return [space.characters for space in spaces if isinstance(space, Text)]


@dataclass
class TextEpisode:
    """A conversation: the env's first text, then replies and the env's answers to them."""

    number: int
    seed: int
    prompt: list[int]  # ids of the first text
    texts: list[str]  # all texts in turn, from the first text to the last reply
    tokens: list[int] = field(default_factory=list)  # ids of everything after the first text
    response: list[bool] = field(default_factory=list)  # which of them are the model's
    log_prob: list[float] = field(default_factory=list)  # of these, by their distribution then
    rewards: list[float] = field(default_factory=list)  # one for each reply
    stopped: list[bool] = field(default_factory=list)  # False: a reply cut off at its maximum
    terminated: bool = False
    truncated: bool = False  # by the env, the limit of turns, or the model's longest sequence

    def add(self, tokens: Sequence[int], text: str, *, response: bool) -> None:
        self.tokens += tokens
        self.response += [response] * len(tokens)
        self.texts.append(text)


def episode_metrics(episodes: Sequence[TextEpisode]) -> Metrics:
    """Mean number of replies, and the share of episodes that were truncated."""
    count = len(episodes)
    return {
        "turns": sum(len(e.rewards) for e in episodes) / count,
        "truncated": sum(e.truncated for e in episodes) / count,
    }


def joined(episodes: Sequence[TextEpisode], device: torch.device) -> Completions:
    """Conversations as completions: each first text is a prompt, the rest its completion."""
    tokens = [e.tokens for e in episodes]
    response = [e.response for e in episodes]
    return Completions(
        Sequences.join([e.prompt for e in episodes], tokens, device, response),
        torch.tensor([x for e in episodes for x in e.log_prob], device=device),
        torch.tensor([x for e in episodes for x in e.stopped], device=device),
        tokens,
    )


@dataclass
class TextEnvs:
    """N envs in which a language model acts: its reply is the action, their texts are read.

    Episode k starts with `reset`, seeded by the run's seed and k alone, so that a resumed run
    meets the same episodes; `options` is its row of the data, if there is one.
    """

    envs: Sequence[TextEnv]
    tokenizer: Tokenizer
    sampling: Sampling
    context: int | None  # tokens that the model reads at most
    seed: int
    rows: InitVar[Sequence[Row]]

    def __post_init__(self, rows: Sequence[Row]) -> None:
        """Reset one env, to check it. Raises `UsageError`."""
        self._name = type(self.envs[0].unwrapped).__name__
        self._fault: type[Exception] = UsageError
        self._reset(self.envs[0], 0, rows[0])

    def play(
        self,
        lm: LanguageModel,
        numbers: Sequence[int],
        rows: Sequence[Row],
        generator: Generator,
        micro_batch: int,
        fault: type[Exception] = TrainingError,
    ) -> list[TextEpisode]:
        """The episodes of these numbers, as many at a time as there are envs, turn by turn.

        Nothing is cached between turns, because conversations grow to different lengths. Each turn
        draws a number per token for every episode, over or not. fault: raised when an env fails.
        """
        self._fault = fault
        size, episodes = len(self.envs), list[TextEpisode]()
        for begin in range(0, len(numbers), size):
            part = slice(begin, begin + size)
            started = [
                self._reset(*episode)
                for episode in zip(self.envs, numbers[part], rows[part], strict=False)
            ]
            self._converse(lm, started, generator, micro_batch)
            episodes += started
        return episodes

    def _converse(
        self, lm: LanguageModel, episodes: list[TextEpisode], generator: Generator, micro_batch: int
    ) -> None:
        """Continue each episode to its end."""
        decoding = Decoding(self.sampling, self.tokenizer.stops)
        running = list(range(len(episodes)))
        for turn in range(1, self.sampling.max_turns + 1):
            noise = torch.rand(len(episodes), self.sampling.max_tokens, generator=generator)
            before = [episodes[i].prompt + episodes[i].tokens for i in running]
            replies = sample(lm, before, decoding, noise[running], micro_batch)
            tokens, log_prob = map(replies.unpadded, (replies.tokens, replies.log_prob))
            spoken = zip(running, tokens, log_prob, replies.stopped.tolist(), strict=True)
            for i, ids, log_probs, stopped in spoken:
                episodes[i].log_prob += log_probs
                episodes[i].stopped.append(stopped)
                self._step(self.envs[i], episodes[i], ids, turn)
            running = [i for i in running if not (episodes[i].terminated or episodes[i].truncated)]
            if not running:
                break

    def _reset(self, env: TextEnv, number: int, row: Row) -> TextEpisode:
        seed = episode_seed(self.seed, 0, number)
        where = f"the env {self._name}, at the start of episode {number} (seed {seed}),"
        options = copy.deepcopy(dict(row)) or None  # the env may change its copy
        text, _ = self._call(lambda: env.reset(seed=seed, options=options), 2, where)
        prompt = self._tokens(text, self.tokenizer.prompt, where)
        return TextEpisode(number, seed, prompt, [text])

    def _step(self, env: TextEnv, episode: TextEpisode, ids: list[int], turn: int) -> None:
        """Pass the reply to the env, and add its answer to the episode."""
        where = (
            f"the env {self._name}, in turn {turn} of episode {episode.number} "
            f"(seed {episode.seed}),"
        )
        reply = self.tokenizer.text(ids)
        episode.add(ids, reply, response=True)
        text, reward, terminated, truncated, _ = self._call(lambda: env.step(reply), 5, where)
        what = f"{where} rewards {reply!r} by {reward!r}"
        episode.rewards += finite([reward], what, self._fault)
        episode.terminated = bool(terminated)
        episode.truncated = not terminated and (bool(truncated) or turn == self.sampling.max_turns)
        if episode.terminated or episode.truncated:
            return
        answer = self._tokens(text, self.tokenizer.plain, where)
        if self._fits(len(episode.prompt) + len(episode.tokens) + len(answer)):
            episode.add(answer, text, response=False)
        else:
            episode.truncated = True

    def _call(self, act: Callable[[], tuple[Any, ...]], count: int, where: str) -> tuple[Any, ...]:
        """Call the env's reset or step, and check the length of what it returns."""
        with explained(f"{where} failed", self._fault):
            answer = act()
        if not isinstance(answer, tuple) or len(answer) != count:
            what = "(text, info)" if count == 2 else "(text, reward, terminated, truncated, info)"
            raise self._fault(f"{where} returned {answer!r}: it must be {what}")
        return answer

    def _tokens(self, text: Any, tokenize: Callable[[str], list[int]], where: str) -> list[int]:
        """Ids of an env's text, after the checks that a reply can follow it."""
        if not isinstance(text, str):
            raise self._fault(f"{where} says {text!r}: it must be text")
        short = text if len(text) <= 60 else f"{text[:60]}..."
        problem = ""
        if not (ids := tokenize(text)):
            problem = "has no tokens to reply to"
        elif not self.envs[0].observation_space.contains(text):
            problem = "is not in its observation_space: see its charset, min_length and max_length"
        elif not self._fits(len(ids)):
            problem = (
                f"has {len(ids)} tokens and {self.sampling.max_tokens} to be drawn, but the model "
                f"reads {self.context} at most: shorten it, or lower sampling.max_tokens"
            )
        if problem:
            raise self._fault(f"{where} says {short!r}, which {problem}")
        return ids

    def _fits(self, count: int) -> bool:
        """A reply can follow this many tokens."""
        return self.context is None or count + self.sampling.max_tokens <= self.context
