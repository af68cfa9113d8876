"""Text environments: Gymnasium envs in which a language model acts by its replies, turn by turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium import Env
from gymnasium.spaces import Text

from proximo.envs.base import Maker, episode_seed
from proximo.envs.config import EnvConfig
from proximo.envs.layers import close_all, title, unwrapped
from proximo.envs.make import make_env
from proximo.errors import TrainingError, UsageError, explain, faults
from proximo.language.config import Sampling
from proximo.language.generate import sample
from proximo.language.model import LanguageModel
from proximo.language.records import Completions
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer
from proximo.types import Metrics

TextEnv = Env[str, str]
Row = Mapping[str, Any]


def make_text_envs(name: str, maker: Maker | None, count: int) -> list[TextEnv]:
    """Envs by name (module:Class, or a Gymnasium id) or by a maker.

    Raises `UsageError` for envs whose spaces are not text.
    """
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


def characters(env: TextEnv) -> list[str]:
    """Characters of both spaces, for the vocabulary of a tiny model."""
    spaces = (env.observation_space, env.action_space)
    return [space.characters for space in spaces if isinstance(space, Text)]


@dataclass
class TextEpisode:
    """A conversation: the env's first text, then replies and the env's answers to them."""

    number: int
    seed: int
    prompt: list[int]
    """Ids of the first text."""
    texts: list[str]
    """All texts in turn, from the first text to the last reply."""
    tokens: list[int] = field(default_factory=list)
    """Ids of everything after the first text."""
    response: list[bool] = field(default_factory=list)
    """Which of them are the model's."""
    log_prob: list[float] = field(default_factory=list)
    """Of the model's tokens, by the distribution they were sampled from."""
    rewards: list[float] = field(default_factory=list)
    """One for each reply."""
    stopped: list[bool] = field(default_factory=list)
    """Of each reply: False where it was cut off at its maximum length."""
    terminated: bool = False
    truncated: bool = False
    """By the env, the limit of turns, or the model's longest sequence."""

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


class TextEnvs:
    """N envs in which a language model acts: its reply is the action, their texts are read.

    Episode k starts with `reset`, seeded by the run's seed and k alone, so that a resumed run
    meets the same episodes; `options` is its row of the data, if there is one.
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
        """Resets one env, to check it. context: tokens that the model reads at most.

        Raises `UsageError`.
        """
        self._envs, self._tokenizer, self._sampling = envs, tokenizer, sampling
        self._context, self._seed = context, seed
        self._name = type(envs[0].unwrapped).__name__
        self._fault: type[Exception] = UsageError
        self._reset(envs[0], 0, rows[0])

    def close(self) -> list[str]:
        """Close all envs; returns what failed, in words."""
        return close_all(self._envs)

    def play(
        self,
        lm: LanguageModel,
        numbers: Sequence[int],
        rows: Sequence[Row],
        generator: torch.Generator,
        micro_batch: int,
        fault: type[Exception] = TrainingError,
    ) -> list[TextEpisode]:
        """The episodes of these numbers, as many at a time as there are envs, turn by turn.

        Each turn reads the conversation from its start: no keys and values are cached, because
        conversations grow to different lengths. In each turn one uniform number per token is drawn
        for every episode, whether or not it is over. fault: raised when an env fails.
        """
        self._fault = fault
        size, episodes = len(self._envs), list[TextEpisode]()
        for begin in range(0, len(numbers), size):
            part = slice(begin, begin + size)
            started = [
                self._reset(*episode)
                for episode in zip(self._envs, numbers[part], rows[part], strict=False)
            ]
            self._converse(lm, started, generator, micro_batch)
            episodes += started
        return episodes

    def _converse(
        self,
        lm: LanguageModel,
        episodes: list[TextEpisode],
        generator: torch.Generator,
        micro_batch: int,
    ) -> None:
        """Continue each episode to its end."""
        running = list(range(len(episodes)))
        for turn in range(1, self._sampling.max_turns + 1):
            noise = torch.rand(len(episodes), self._sampling.max_tokens, generator=generator)
            replies = sample(
                lm,
                [episodes[i].prompt + episodes[i].tokens for i in running],
                self._sampling,
                self._tokenizer.stops,
                noise[running],
                micro_batch,
            )
            spoken = zip(replies.ids(), replies.log_probs(), replies.stopped.tolist(), strict=True)
            for i, (ids, log_probs, stopped) in zip(running, spoken, strict=True):
                episodes[i].log_prob += log_probs
                episodes[i].stopped.append(stopped)
                self._step(self._envs[i], episodes[i], ids, turn)
            running = [i for i in running if not (episodes[i].terminated or episodes[i].truncated)]
            if not running:
                break

    def _reset(self, env: TextEnv, number: int, row: Row) -> TextEpisode:
        seed = episode_seed(self._seed, 0, number)
        where = f"the env {self._name}, at the start of episode {number} (seed {seed}),"
        options = copy.deepcopy(dict(row)) or None  # the env may change its copy
        text, _ = self._call(lambda: env.reset(seed=seed, options=options), 2, where)
        prompt = self._tokens(text, self._tokenizer.prompt, where)
        return TextEpisode(number, seed, prompt, [text])

    def _step(self, env: TextEnv, episode: TextEpisode, ids: list[int], turn: int) -> None:
        """Pass the reply to the env, and add its answer to the episode."""
        where = (
            f"the env {self._name}, in turn {turn} of episode {episode.number} "
            f"(seed {episode.seed}),"
        )
        reply = self._tokenizer.text(ids)
        episode.add(ids, reply, response=True)
        text, reward, terminated, truncated, _ = self._call(lambda: env.step(reply), 5, where)
        try:
            episode.rewards.append(float(reward))
        except (TypeError, ValueError) as error:
            what = f"{where} rewards {reply!r} by {reward!r}: it must be a number"
            raise self._fault(what) from error
        if not math.isfinite(episode.rewards[-1]):
            raise self._fault(f"{where} rewards {reply!r} by {reward!r}: it must be finite")
        episode.terminated = bool(terminated)
        episode.truncated = not terminated and (bool(truncated) or turn == self._sampling.max_turns)
        if episode.terminated or episode.truncated:
            return
        answer = self._tokens(text, self._tokenizer.plain, where)
        if self._fits(len(episode.prompt) + len(episode.tokens) + len(answer)):
            episode.add(answer, text, response=False)
        else:
            episode.truncated = True

    def _call(self, act: Callable[[], tuple[Any, ...]], count: int, where: str) -> tuple[Any, ...]:
        """Call the env's reset or step, and check the length of what it returns."""
        try:
            answer = act()
        except faults() as error:
            raise self._fault(f"{where} failed: {explain(error)}") from error
        if not isinstance(answer, tuple) or len(answer) != count:
            what = "(text, info)" if count == 2 else "(text, reward, terminated, truncated, info)"
            raise self._fault(f"{where} returned {answer!r}: it must be {what}")
        return answer

    def _tokens(self, text: Any, tokenize: Callable[[str], list[int]], where: str) -> list[int]:
        """Ids of an env's text, after the checks that a reply can follow it."""
        if not isinstance(text, str):
            raise self._fault(f"{where} says {text!r}: it must be text")
        short = text if len(text) <= 60 else f"{text[:60]}..."
        if not (ids := tokenize(text)):
            raise self._fault(f"{where} says {short!r}, which has no tokens to reply to")
        if not self._envs[0].observation_space.contains(text):
            raise self._fault(
                f"{where} says {short!r}, which is not in its observation_space: see its charset, "
                "min_length and max_length"
            )
        if not self._fits(len(ids)):
            raise self._fault(
                f"{where} says {short!r}, which has {len(ids)} tokens and "
                f"{self._sampling.max_tokens} to be drawn, but the model reads {self._context} at "
                "most: shorten it, or lower sampling.max_tokens"
            )
        return ids

    def _fits(self, count: int) -> bool:
        """A reply can follow this many tokens."""
        return self._context is None or count + self._sampling.max_tokens <= self._context
