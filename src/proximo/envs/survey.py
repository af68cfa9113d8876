"""Measure of envs: what simple policies earn there, how their numbers lie, how fast they are.

Nothing is learned: actions are random, or one and the same in every step. Baselines of that kind
say what a return is worth, and the numbers say which settings of a training fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from proximo.envs.base import Envs
from proximo.envs.history import Transitions, hidden_state
from proximo.envs.watch import SEED, Clock, Sampler
from proximo.errors import UsageError, explain, faults
from proximo.spaces import Actions, sizes, starts
from proximo.types import Episode, RolloutBuffer

GAMMA = 0.99
"""Discount of the returns that are measured: PPO's default."""
MOST_CONSTANTS = 18
"""Constant actions that are tried, as many as Atari has; of more, evenly chosen ones."""
MOST_COLUMNS = 4096
"""Numbers of an observation that are measured one by one."""
DRAWN = 32
"""Different random actions for the envs of a step, where there are no masks."""
STEPS = 2_000
"""Steps of random play at least, if there is time: a few short episodes say little."""
ROUNDS = 2
"""Episodes of each env at least, on average: the first ones that end are the short ones."""
REPEATED = 50
"""Steps that are repeated to see whether a seed fixes them."""

Choose = Callable[[np.ndarray | None, str], Any]
"""The action, as a row, for what is legal ([choices] bool; None: everything), at a place."""


class Played(NamedTuple):
    """What a simple policy met."""

    name: str
    episodes: tuple[Episode, ...]
    truncated: int  # episodes that a time limit ended
    steps: int
    reward: float  # mean per step
    seconds: float  # within the envs

    @property
    def returns(self) -> np.ndarray:
        return np.array([episode.ret for episode in self.episodes])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([episode.length for episode in self.episodes])


class Column(NamedTuple):
    """A number of the observation, over random play."""

    name: str
    low: float
    high: float
    mean: float
    std: float
    bounds: tuple[float, float]  # of the space
    bit: bool  # only 0 and 1 were seen


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What random play and constant actions show of envs."""

    random: Played
    constants: tuple[Played, ...]
    """Of all, or of as many as there was time for."""
    tried: int
    """Constant actions that there are to try."""
    rewards: np.ndarray
    """[K] of random play, reset steps left out."""
    end_rewards: np.ndarray
    """Those with which an episode terminated."""
    returns: np.ndarray
    """[K] discounted returns from each of these steps to the end of its episode, or of the play."""
    columns: tuple[Column, ...]
    """Numbers of the observation that are measurements: no choices, images or masks."""
    hidden: str
    """Evidence that the observation hides something that an earlier one showed, or empty."""
    repeats: bool | None
    """The same seed and actions gave the same steps again; None: not tried."""
    agents: int

    @property
    def steps_per_second(self) -> float:
        """Of the envs alone, over all of them."""
        return self.random.steps / max(self.random.seconds, 1e-9)

    @property
    def best_constant(self) -> Played | None:
        """The constant action with the highest mean return, among those that ended an episode."""
        ended = [played for played in self.constants if played.episodes]
        return max(ended, key=lambda played: float(played.returns.mean()), default=None)


def survey(
    envs: Envs, *, seconds: float, steps: int, episodes: int, repeat: bool = False
) -> Survey:
    """Play in envs at random, then with constant actions. Raises `UsageError` if they fail.

    seconds: for all of it; steps: of each policy at most; episodes: of each, and of random play
    more until there are enough steps. repeat: see whether the same seed gives the same again.
    """
    end, episodes = time.monotonic() + seconds, max(episodes, ROUNDS * envs.count)
    sampler, readings = Sampler(envs.actions), _Readings(envs)
    clock = Clock(0.5 * seconds, steps)
    random = play(envs, "random", sampler.draw, clock, episodes, readings, least=STEPS)
    repeats = None
    if repeat and random.seconds < 0.1 * seconds * random.steps / (2 * REPEATED * envs.count):
        repeats = _repeats(envs)
    constants, candidates = list[Played](), list(constant_actions(envs.actions))
    for number, (name, row) in enumerate(candidates):
        left = end - time.monotonic()
        if left <= 0:
            break
        clock = Clock(left / (len(candidates) - number), steps)
        policy = _Constant(row, envs.actions, sampler)
        constants.append(play(envs, name, policy.draw, clock, episodes))
    return Survey(
        random=random,
        constants=tuple(constants),
        tried=len(candidates),
        rewards=np.concatenate([np.empty(0), *readings.rewards]),
        end_rewards=np.array(readings.end_rewards),
        returns=readings.discounted(),
        columns=tuple(readings.columns()),
        hidden=hidden_state(readings.transitions),
        repeats=repeats,
        agents=envs.agents,
    )


def play(
    envs: Envs,
    name: str,
    choose: Choose,
    clock: Clock,
    episodes: int,
    readings: _Readings | None = None,
    least: int = 0,
) -> Played:
    """Play with one policy, from the same seeds each time, until episodes or clock are over.

    least: steps before the episodes are over.
    """
    buffer, played = _row(envs), list[Episode]()
    ret, length = np.zeros(envs.count), np.zeros(envs.count, np.int64)
    truncated, taken, total, seconds = 0, 0, 0.0, 0.0
    try:
        state = envs.start(SEED)
        buffer.obs[0] = state.obs
        while (len(played) < episodes or taken < least) and clock.step():
            _act(envs, buffer, state.resetting, choose, f"step {clock.taken - 1}")
            begin = time.perf_counter()
            envs.step(state, buffer, 0)
            seconds += time.perf_counter() - begin
            envs.remember(state, buffer)
            valid, reward = buffer.valid[0], np.where(buffer.valid[0], buffer.reward[0], 0.0)
            if readings:
                readings.take(buffer)
            ret, length = ret + reward, length + valid
            taken, total = taken + int(valid.sum()), total + float(reward.sum())
            for i in np.flatnonzero(buffer.done[0] & valid):
                played.append(Episode(float(ret[i]), int(length[i])))
                truncated += not buffer.terminated[0, i]
                ret[i] = length[i] = 0
            buffer.final_obs.clear()
            buffer.obs[0] = buffer.obs[1]
    except UsageError:
        raise
    except faults() as error:
        what = f"it failed at step {clock.taken - 1} of the play of {name}: {explain(error)}"
        raise UsageError(what) from error
    return Played(name, tuple(played), truncated, taken, total / max(taken, 1), seconds)


def constant_actions(actions: Actions) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows of the actions to repeat: each choice, or all lowest, middle and highest."""
    first, leaves = actions.leaves[0].space, actions.leaves
    if isinstance(first, spaces.Discrete) and len(leaves) == 1:
        begin, count = int(first.start), int(first.n)
        chosen = np.linspace(0, count - 1, min(count, MOST_CONSTANTS)).round().astype(int)
        for choice in dict.fromkeys(chosen.tolist()):
            yield f"always {begin + choice}", np.array([begin + choice])
        return
    for name, share in (("lowest", 0.0), ("middle", 0.5), ("highest", 1.0)):
        row = np.concatenate([_between(leaf.space, share) for leaf in leaves])
        yield f"always the {name}", row


def _between(space: Any, share: float) -> np.ndarray:
    """Numbers of a simple space at this share of the way from the lowest to the highest."""
    if isinstance(space, spaces.Box):
        low = np.where(space.bounded_below, space.low, -1.0).reshape(-1).astype(np.float64)
        high = np.where(space.bounded_above, space.high, 1.0).reshape(-1).astype(np.float64)
        return low * (1 - share) + high * share
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), share >= 0.5)
    last = np.array(sizes(space)) - 1
    return np.array(starts(space)) + np.floor(share * last)


class _Constant:
    """One action in every step; a random one where it is not legal."""

    def __init__(self, row: np.ndarray, actions: Actions, sampler: Sampler) -> None:
        self._sampler, self._among = sampler, [leaf.space for leaf in actions.leaves]
        given = row.astype(actions.dtype)
        self._row = given.reshape(actions.shape or ())[()] if actions.single else given
        self._wanted = row

    def draw(self, legal: np.ndarray | None, where: str) -> Any:
        if legal is not None and not self._is_legal(legal):
            return self._sampler.draw(legal, where)
        return self._row

    def _is_legal(self, legal: np.ndarray) -> bool:
        begin, column = 0, 0
        for space in self._among:
            for size, start in zip(
                sizes(space), starts(space) if sizes(space) else (), strict=True
            ):
                if not legal[begin + int(self._wanted[column]) - start]:
                    return False
                begin, column = begin + size, column + 1
            if not sizes(space):
                column += int(np.prod(space.shape or ()))
        return True


def _row(envs: Envs) -> RolloutBuffer:
    """Room for one step of these envs."""
    seen, acts, rows, nothing = envs.observations, envs.actions, (1, envs.count), np.empty(0)
    return RolloutBuffer(
        obs=np.empty((2, envs.count, *seen.shape), seen.dtype),
        action=nothing,
        parameters=nothing,
        env_action=np.zeros((*rows, *(acts.shape or ())), acts.dtype),
        reward=np.zeros(rows),
        terminated=np.zeros(rows, bool),
        done=np.zeros(rows, bool),
        valid=np.ones(rows, bool),
        final_obs=[],
    )


def _act(
    envs: Envs, buffer: RolloutBuffer, resetting: np.ndarray, choose: Choose, where: str
) -> None:
    """Choose the actions of all rows. Those that are about to reset need nothing legal."""
    buffer.done[:] = buffer.terminated[:] = False
    buffer.valid[:] = True
    legal = envs.observations.legal(buffer.obs[0].reshape(envs.count, -1))
    if legal is None:
        few = [choose(None, where) for _ in range(min(envs.count, DRAWN))]
        for i in range(envs.count):
            buffer.env_action[0, i] = few[i % DRAWN]
        return
    for i in range(envs.count):
        buffer.env_action[0, i] = choose(None if resetting[i] else legal[i], f"{where} of env {i}")


def _repeats(envs: Envs) -> bool:
    """The same seed and actions give the same observations and rewards."""
    seen = []
    for _ in range(2):
        buffer, sampler, state = _row(envs), Sampler(envs.actions), envs.start(SEED)
        buffer.obs[0] = state.obs
        rows = [buffer.obs[0].copy()]
        for step in range(REPEATED):
            _act(envs, buffer, state.resetting, sampler.draw, f"step {step}")
            envs.step(state, buffer, 0)
            envs.remember(state, buffer)
            buffer.final_obs.clear()
            rows += [buffer.obs[1].copy(), buffer.reward[0].copy()]
            buffer.obs[0] = buffer.obs[1]
        seen.append(rows)
    return all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))


@dataclass
class _Readings:
    """What random play collects."""

    envs: Envs
    rewards: list[np.ndarray] = field(default_factory=list)
    end_rewards: list[float] = field(default_factory=list)
    transitions: Transitions = field(default_factory=Transitions)

    def __post_init__(self) -> None:
        seen = self.envs.observations
        measured = np.flatnonzero(seen.measured)
        self._measured = measured if len(measured) <= MOST_COLUMNS else measured[:0]
        self._shown = np.arange(seen.mask_begin) if seen.shape == (seen.width,) else measured[:0]
        width = len(self._measured)
        self._count, self._mean, self._squares = 0, np.zeros(width), np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        self._bits = np.ones(width, bool)
        self._running: list[list[float]] = [[] for _ in range(self.envs.count)]
        self._returns: list[np.ndarray] = []
        self._begins = np.ones(self.envs.count, bool)

    def take(self, buffer: RolloutBuffer) -> None:
        """Take in one step of all envs."""
        valid, done = buffer.valid[0], buffer.done[0]
        self.rewards.append(buffer.reward[0][valid].copy())
        self._observe(buffer.obs[0].reshape(self.envs.count, -1)[valid])
        final = {i: obs.reshape(-1) for _, i, obs in buffer.final_obs}
        for i in np.flatnonzero(valid).tolist():
            self._running[i].append(float(buffer.reward[0, i]))
            if len(self._shown) and i == 0:
                following = final.get(i, buffer.obs[1, i].reshape(-1))
                self.transitions.add(
                    buffer.obs[0, i].reshape(-1)[self._shown],
                    buffer.env_action[0, i],
                    float(buffer.reward[0, i]),
                    following[self._shown],
                    begins=bool(self._begins[i]),
                )
            self._begins[i] = bool(done[i])
            if done[i]:
                if buffer.terminated[0, i]:
                    self.end_rewards.append(float(buffer.reward[0, i]))
                self._close(i)

    def _observe(self, rows: np.ndarray) -> None:
        """Merge rows [n, width] into mean, squares and range of each column (Welford)."""
        if not len(self._measured) or not len(rows):
            return
        seen = rows[:, self._measured].astype(np.float64)
        self._low, self._high = (
            np.minimum(self._low, seen.min(0)),
            np.maximum(self._high, seen.max(0)),
        )
        self._bits &= ((seen == 0) | (seen == 1)).all(0)
        for row in seen:
            self._count += 1
            before = row - self._mean
            self._mean = self._mean + before / self._count
            self._squares = self._squares + before * (row - self._mean)

    def _close(self, i: int) -> None:
        total, returns = 0.0, np.empty(len(self._running[i]))
        for t in range(len(returns) - 1, -1, -1):
            returns[t] = total = self._running[i][t] + GAMMA * total
        self._returns.append(returns)
        self._running[i] = []

    def discounted(self) -> np.ndarray:
        """[K] the discounted returns of all steps. Closes the episodes that are running."""
        for i, running in enumerate(self._running):
            if running:
                self._close(i)
        return np.concatenate([np.empty(0), *self._returns])

    def columns(self) -> Iterator[Column]:
        seen = self.envs.observations
        std = np.sqrt(self._squares / max(self._count, 1))
        for k, column in enumerate(self._measured.tolist()):
            leaf: Any = next(leaf for leaf in seen.leaves if leaf.begin <= column < leaf.end)
            at = column - leaf.begin
            bounds = float(leaf.space.low.reshape(-1)[at]), float(leaf.space.high.reshape(-1)[at])
            low, high, mean = (float(x[k]) for x in (self._low, self._high, self._mean))
            bit = bool(self._bits[k])
            yield Column(seen.column_name(column), low, high, mean, float(std[k]), bounds, bit)
