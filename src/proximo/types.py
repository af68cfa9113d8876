"""The records everything passes around. Time comes first: T steps, N envs, B = T*N samples."""

from __future__ import annotations

import difflib
import dis
import itertools
import math
import sys
import traceback
import types
import typing
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Metrics = dict[str, float]
"""One number per name, as written to `metrics.jsonl`."""
Keep = Callable[[str, "dict[str, Tensor]", dict[str, Any]], str]
"""Told of a gradient step that is left out: why, its tensors and its record; says where the first
of them is kept, or nothing."""
Watch = Callable[[int, str], None]
"""Told now and then how many environment steps there are by now, and what is being done if it is
no rollout."""


_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text for a terminal, a log or a figure: characters that control it are written as escapes.

    A file of somebody else's may hold them, to rewrite what stands on the screen: control
    characters, those that turn the direction of writing, those without width. keep: the ones that
    may stay. The same in JSON, which reads the escapes back.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_shown(c) else _escaped(c) for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # a wide space


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class UsageError(Exception):
    """The user can mend this: the message gives the value found and the remedy (exit code 2)."""

    def __str__(self) -> str:
        """One line, whatever was found in a file."""
        return printable(super().__str__(), keep="")


class TrainingError(RuntimeError):
    """Training failed after it had started: the run and its last checkpoint stay (exit code 1)."""

    def __str__(self) -> str:
        return printable(super().__str__())


def check_values(section: str, settings: object) -> None:
    """Refuse what no setting of its type can be. Raises `UsageError`.

    Numbers must be finite, whole where the field is `int`, and words among the field's choices.
    NumPy's numbers become Python's, and lists tuples, as a file and the command line give them.
    """
    hints = typing.get_type_hints(type(settings))
    for name in (f.name for f in fields(settings)):  # type: ignore[arg-type]
        given = getattr(settings, name)
        value = _plain(given)
        if value is not given:
            object.__setattr__(settings, name, value)
        if wrong := _wrong(value, hints[name]):
            raise UsageError(f"{section}.{name} is {value!r:.80}: it must be {wrong}")


def _plain(value: Any) -> Any:
    """Without the types of NumPy, whose numbers would be stored under other names."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        parts = tuple(map(_plain, value))
        same = type(value) is tuple and all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else parts
    if isinstance(value, dict) and any(isinstance(x, np.generic) for x in value.values()):
        return {key: _plain(x) for key, x in value.items()}
    return value


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _wrong(value: Any, hint: Any) -> str:
    """What a value for a field of this type must be, if it is something else."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if origin is Literal:
        return "" if value in args else f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        found = [_wrong(value, option) for option in args]
        return "" if "" in found else " or ".join(word for word in found if word)
    if origin is tuple:
        if not isinstance(value, tuple):
            return f"a list, each {_WORDS[args[0]]}"
        return next((f"a list, each {word}" for x in value if (word := _wrong(x, args[0]))), "")
    if hint is type(None):
        return "" if value is None else "none"
    if hint in _WORDS:
        kind = int | float if hint is float else hint
        fits = isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
        return "" if fits else _WORDS[hint]
    if isinstance(hint, type):  # a schedule, which has a text form
        return "" if isinstance(value, hint | str) else f"a {hint.__name__.lower()}"
    return "" if origin is None or isinstance(value, origin) else f"a {origin.__name__}"


def refuse_unused(section: str, settings: object, names: Iterable[str], why: str) -> None:
    """Settings that would do nothing must have been left as they are. Raises `UsageError`."""
    for setting in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, setting.name)
        if setting.name in names and value != setting.default:
            raise UsageError(
                f"{section}.{setting.name} is {value}, but it does nothing where {why}: leave it "
                f"out, or set it back to {setting.default} where a preset or a file has it"
            )


def check_utf8(name: str) -> None:
    """Refuse a name with bytes that are not UTF-8, which no file of ours can hold."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name!a} is not UTF-8: rename it, or give another name") from error


def explain(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{': '.join(filter(None, (type(error).__name__, str(error))))}{where}"


def faults() -> tuple[type[BaseException], ...]:
    """What to catch where code of others has run: all that it raises, but not the user's Ctrl-C.

    For `except faults() as error:`. `SystemExit`, `GeneratorExit` and their like are faults of that
    code, and so is a `KeyboardInterrupt` of its own. What a Ctrl-C raises comes out of a handler of
    signals, between two instructions: not out of a `raise`.
    """
    error = sys.exception()
    trace = error.__traceback__ if isinstance(error, KeyboardInterrupt) else None
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return (BaseException,)
    raised = dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return (BaseException,) if raised else ()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about a mistyped name: the names near it, or all if they are few."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There are: {', '.join(names)}." if len(names) <= 40 else "No known name is near it."


class Episode(NamedTuple):
    """A finished episode, in the env's own units (before any scaling of rewards)."""

    ret: float
    length: int


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A loss with its gradient step, in numbers, for the native engine."""

    policy: str  # ratio (the surrogate), log (the policy gradient) or none (the critic alone)
    clip: float = math.inf
    clip_high: float = math.inf
    dual_clip: float = 0.0  # 0: none
    beta: float = 0.0  # weight of the exact KL
    target_kl: float | None = None
    entropy_coef: float
    value_coef: float
    value_loss: str  # mse, huber or clipped
    value_clip: float
    huber_delta: float
    standardize: bool  # advantages, per minibatch
    max_grad_norm: float | None


class Moments(NamedTuple):
    """Number, mean and population variance of what was seen; number 0: mean 0, variance 1."""

    number: Tensor  # []
    mean: Tensor  # [*shape]
    var: Tensor  # [*shape]


@dataclass(frozen=True, kw_only=True)
class RolloutBuffer:
    """Room for T steps of N envs: the policy fills it up to `env_action`, the envs the rest."""

    obs: np.ndarray  # [T + 1, N, *obs] row t + 1 is the answer to step t
    action: np.ndarray  # [T, N, *act] what the policy chose
    parameters: np.ndarray  # [2, N, P] of the distributions that acted first and latest
    env_action: np.ndarray  # [T, N, *] the action as the envs take it
    reward: np.ndarray  # [T, N] float64
    terminated: np.ndarray  # [T, N] bool
    done: np.ndarray  # [T, N] bool: terminated or cut off by a time limit
    valid: np.ndarray  # [T, N] bool: False where a next-step env only reset itself
    final_obs: list[tuple[int, int, np.ndarray]]  # (t, env, true successor) where an episode ended

    def __len__(self) -> int:
        return len(self.reward)

    @staticmethod
    def joined(parts: list[RolloutBuffer], count: int) -> RolloutBuffer:
        """The first `count` steps of these, which follow on one another."""
        if len(parts) == 1 and len(parts[0]) == count:
            return parts[0]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])[:count]
            for name in ("action", "env_action", "reward", "terminated", "done", "valid")
        }
        begins = itertools.accumulate((len(part) for part in parts), initial=0)
        return RolloutBuffer(
            obs=np.concatenate([parts[0].obs[:1], *(part.obs[1:] for part in parts)])[: count + 1],
            parameters=np.stack([parts[0].parameters[0], parts[-1].parameters[1]]),
            final_obs=[
                (begin + t, i, obs)
                for begin, part in zip(begins, parts, strict=False)
                for t, i, obs in part.final_obs
            ],
            **arrays,
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """T steps of the old policy in N envs, as they happened."""

    obs: Tensor  # [T, N, *obs] what the policy saw
    action: Tensor  # [T, N, *act] what it chose, before clipping or squashing
    reward: Tensor  # [T, N]
    terminated: Tensor  # [T, N] bool: no future after this step, so no bootstrap
    boundary: Tensor  # [T, N] bool: the next row belongs to another episode, so no trace
    mask: Tensor  # [T, N] bool: False on reset steps of next-step envs and on idle envs
    last_obs: Tensor  # [N, *obs] what followed row T-1
    final_obs: Tensor  # [F, *obs] the true successors of the steps that ended an episode
    final_index: Tensor  # [F] int64: their rows, as t*N + i
    acted: Tensor  # [2, N, P] parameters of the distributions that acted first and last
    initial_state: Tensor  # [N, C] what was remembered before row 0
    episodes: tuple[Episode, ...]  # those that finished


class Segments(NamedTuple):
    """What a memory must know of a batch: which rows follow on one another, and on what."""

    segment_id: Tensor  # [B] int64: the rows of a stretch stand together, in order, with one number
    initial_state: Tensor  # [B, C] what was remembered before the first row of a stretch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an update learns from: the real steps of a rollout, along one axis of length B."""

    obs: Tensor  # [B, *obs]
    action: Tensor  # [B, *act]
    log_prob: Tensor  # [B] of the old policy
    parameters: Tensor  # [B, P] of its distributions
    value: Tensor  # [B] of the old critic
    advantage: Tensor  # [B]
    target: Tensor  # [B] what the critic should say
    episode: Tensor  # [B] int64: which episode of the batch a sample belongs to, in order
    segment_id: Tensor  # [B] int64: as `episode`, but an episode is cut after bptt_steps
    initial_state: Tensor  # [B, C] recurrent state before the first sample of a segment, or C is 0

    @property
    def segments(self) -> Segments | None:
        """For a policy with a memory."""
        return (
            Segments(self.segment_id, self.initial_state) if self.initial_state.shape[-1] else None
        )

    def __len__(self) -> int:
        return self.obs.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return type(self)(**{name: tensor[index] for name, tensor in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Transitions(Batch):
    """A batch for a critic of actions, which must know what came next: S, A, R, S', A'."""

    reward: Tensor  # [B]
    terminated: Tensor  # [B] bool
    next_obs: Tensor  # [B, *obs] the true successors
    next_action: Tensor  # [B, *act] what was done there
    undecided: Tensor  # [B] bool: nothing was done there yet, or ever, so it is to be drawn
    noise: Tensor  # [B, ...] to draw it from


@dataclass(kw_only=True)
class EnvState:
    """Where each of N envs stands: with the seeds, enough to bring every one of them back."""

    obs: Any  # [N, *obs] the observation to act on next: a tensor where envs hold tensors
    episode: np.ndarray  # [N] int64: number of the running episode, from which its seed follows
    actions: list[list[np.ndarray]]  # per env: stretches of the actions since it began
    resetting: np.ndarray  # [N] bool: the next step of this env is a reset (next-step mode)
    ret: np.ndarray  # [N] float64: return of the running episode so far
    length: np.ndarray  # [N] int64: its length so far


@dataclass(kw_only=True)
class TrainState:
    """All that changes while training. What is not here is not saved, and must not matter."""

    policy: torch.nn.Module
    optimizer: Any  # a nets.optimizer.FlatOptimizer
    envs: EnvState
    collecting: torch.Generator  # noise of the actions
    shuffling: torch.Generator  # order of the minibatches
    engine: Any  # what acts, evaluates and steps with the policy: an algorithms.engines.Engine
    horizon: int  # environment steps over which schedules run from 0 to 1
    steps: int = 0  # environment steps taken
    updates: int = 0
    episodes: int = 0
    recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))
    smoothed: float | None = None  # moving average of the episodes' returns
    best: float | None = None  # the best score so far, by whichever measure the run keeps
    last_trial_steps: int | None = None  # when `stop_at` last asked for an evaluation
    last_trial_return: float | None = None  # and what it came to
    obs_moments: Moments | None = None  # of all observations, for the policy to standardise by
    return_moments: Moments | None = None  # of all value targets, for the critic
    reward_moments: Moments | None = None  # of the running discounted return, for scaling rewards
    reward_return: Tensor | None = None  # [N] the running discounted return itself
    beta: float | None = None  # weight of the KL penalty, once it has moved
    rate_scale: float = 1.0  # factor on the learning rate, where it follows the KL
    recurrent_state: Tensor | None = None  # [N, C] what the policy remembers in each env
    ahead: Tensor | None = None  # [1, N, ...] noise of the next action, where it is drawn already
    skipped: int = 0  # gradient steps that were left out, for what was not finite
    keep: Keep | None = None  # of the run, not of its state: where the first of those is written
    watch: Watch | None = None  # of the run, likewise: what shows its progress

    @property
    def fault(self) -> type[Exception]:
        """What to raise when something fails: before the first update there is no run to keep."""
        return TrainingError if self.updates else UsageError

    @property
    def progress(self) -> float:
        """Share of the horizon that is done, in [0, 1]: the argument of every schedule.

        It moves when an update has ended, so the first one runs at 0 and none at 1.
        """
        return min(1.0, self.steps / self.horizon)

    def advance(self, rollout: Rollout, smoothing: float) -> None:
        """Count an update that is done. The smoothed return moves by `smoothing` per episode."""
        self.updates += 1
        self.steps += int(rollout.mask.sum())
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        for episode in rollout.episodes:
            before = episode.ret if self.smoothed is None else self.smoothed
            self.smoothed = before + smoothing * (episode.ret - before)
