"""Wrong envs are found before training: one is played for a moment, at random, and looked at.

What cannot be trained in is a `UsageError` with the value found and the remedy; what is doubtful is
a note. A single env, or one of several agents, is one apart from those that are trained in; a
vector env is reset after.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from proximo.envs.agents import Agents
from proximo.envs.make import SyncEnvs, VectorEnvs, final_of, infos_of, layers, title
from proximo.errors import UsageError, explain, faults
from proximo.spaces import (
    MASK,
    Actions,
    Leaf,
    Observations,
    check_masks,
    misfit,
    sizes,
    starts,
    strangers,
)

SECONDS = 0.1
"""What the check may take; a step that has begun is waited for."""
STEPS = 300
"""Steps of the first episodes, at most; a third of that for their repetition."""
EPISODES = 2
SEED = 3_000_000
"""Of the first episode; training and evaluations begin elsewhere."""
EXACT = 2**24
"""Up to here a float32 holds every whole number."""
SMALLEST_SIDE = 8
"""Of three axes of floats, what a side has that are taken for an image,"""
MOST_CHANNELS = 16
"""and what its channels are at most."""
ENDS = 4
"""Ends of episodes after which the mode of a vector env's resets is known."""
FIRST = 4
"""Steps that are repeated to see whether a vector env's reset leaves others due."""
ENOUGH = 32
"""Different actions for the envs of a step, without masks."""


class Checked(NamedTuple):
    """What was found in an env that can be trained in."""

    notes: list[str]
    steps: int
    episodes: int  # that ended
    replayable: bool  # whether the same seed and actions gave the same again
    within: bool  # whether all observations lay within their bounds


class _Clock:
    """Steps and seconds that are left."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._begin = time.monotonic()
        self._until, self.left, self.env_action = self._begin + seconds, steps, 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begin

    @property
    def over(self) -> bool:
        return self.left <= 0 or time.monotonic() > self._until

    def step(self) -> bool:
        """Whether there is room for one more; counts it. There always is for the first."""
        if self.env_action and self.over:
            return False
        self.left, self.env_action = self.left - 1, self.env_action + 1
        return True


class Bounds:
    """What a space says of the rows of its observations, column by column."""

    def __init__(self, observations: Observations) -> None:
        self._leaves = observations.leaves
        low, high = np.zeros(observations.width), np.ones(observations.width)
        for leaf in observations.leaves:
            if isinstance(leaf.space, spaces.Box):
                low[leaf.begin : leaf.end] = leaf.space.low.reshape(-1)
                high[leaf.begin : leaf.end] = leaf.space.high.reshape(-1)
        self._ends = low, high
        # What rounding may do is not outside.
        with np.errstate(over="ignore"):  # some bounds are the largest number that there is
            slack = [1e-5 * np.abs(end).clip(1, 1e300) for end in (low, high)]
            self.low, self.high = low - slack[0], high + slack[1]

    @property
    def endless(self) -> bool:
        """Whether nothing can lie outside: no bounds, or bytes that may have every value."""
        boxes = [leaf.space for leaf in self._leaves if isinstance(leaf.space, spaces.Box)]
        return all(
            (box.dtype == np.uint8 and (box.low == 0).all() and (box.high == 255).all())
            or not (box.bounded_below | box.bounded_above).any()
            for box in boxes
        )

    def outside(self, rows: np.ndarray) -> str:
        """The number that is farthest out, in words; empty if all are within. rows: [..., *obs]."""
        flat = rows.reshape(-1, len(self.low)).astype(np.float64)
        beyond = np.maximum(self.low - flat, flat - self.high)
        if not (beyond > 0).any():
            return ""
        row, column = np.unravel_index(beyond.argmax(), beyond.shape)
        leaf = next(leaf for leaf in self._leaves if leaf.begin <= column < leaf.end)
        low, high = (end[column] for end in self._ends)
        return (
            f"{leaf.name}[{column - leaf.begin}] was {flat[row, column]:g}, outside the bounds "
            f"{low:g} and {high:g} of its observation_space: it is learned from as it is; wider "
            "bounds, or a scaled observation, would say what is meant"
        )


class _Watch:
    """Observations, rewards and flags against what they should be. Batches have leading axes."""

    def __init__(self, observations: Observations, lead: tuple[int, ...] = ()) -> None:
        self.observations, self.lead = observations, lead
        self.bounds = Bounds(observations)
        self.notes: dict[str, str] = {}  # by what they are about, each once
        self.within = True

    def _not_finite(self, rows: np.ndarray) -> str:
        flat = rows.reshape(-1, self.observations.width)
        return self.observations.not_finite(flat[~np.isfinite(flat).all(-1)][0])

    def look(self, seen: Any, where: str) -> np.ndarray:
        """The observation as a row."""
        shape, kind = (*self.lead, *self.observations.shape), self.observations.dtype
        row = np.empty(shape, np.float64 if kind.kind == "f" else kind)
        if unknown := strangers(self.observations.space, seen):
            self.notes.setdefault(
                "strangers",
                f"the observation holds {', '.join(unknown)} at {where}, which its "
                "observation_space lacks: nobody looks at that. Add it to the space, or leave it "
                "out",
            )
        for leaf in self.observations.leaves:
            self._leaf(leaf, seen, where)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                self.observations.write(seen, row)
        except UsageError as error:
            raise UsageError(f"{error} (at {where})") from error
        if not np.isfinite(row).all():
            raise UsageError(
                f"it gave {self._not_finite(row)} at {where}: it must be finite. Look for a "
                "division by zero or an overflow in the env"
            )
        if outside := self.bounds.outside(row):
            self.within = False
            self.notes.setdefault("bounds", f"at {where}, {outside}")
        return row

    def _leaf(self, leaf: Leaf, seen: Any, where: str) -> None:
        try:
            part = _array(leaf.of(seen))
        except (KeyError, IndexError, TypeError, ValueError):
            return  # `Observations.write` says what is missing
        name, space = leaf.name, leaf.space
        if part.dtype.kind not in "biuf":
            if isinstance(leaf.of(seen), tuple):
                raise UsageError(f"{misfit(leaf, seen, part.shape)} (at {where})")
            raise UsageError(
                f"{name} is {_short(part)} at {where}, of type {part.dtype}: give numbers, as "
                f"{space} says"
            )
        if not part.size or not np.isfinite(part).all():
            return
        whole = space.dtype is not None and np.dtype(space.dtype).kind != "f"
        if whole and part.dtype.kind == "f" and (part != np.floor(part)).any():
            raise UsageError(
                f"{name} is {_short(part)} at {where}, but {space} holds whole numbers, so that "
                "its fractions would be lost: give the space a dtype of float32"
            )
        if isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            held = np.iinfo(space.dtype)
            if not held.min <= part.min() <= part.max() <= held.max:
                raise UsageError(
                    f"{name} is {_short(part)} at {where}, which the {space.dtype} of its "
                    f"observation_space cannot hold: bring it to {held.min}...{held.max}"
                )
        if isinstance(space, spaces.MultiBinary) and not np.isin(part, (0, 1)).all():
            self.notes.setdefault(name, f"{name} is {_short(part)} at {where}: bits are 0 and 1")
        if _pictures(space):
            self.notes.setdefault(
                f"image {name}",
                f"{name} has the shape of an image, {space.shape}, but is {space.dtype}: it goes "
                f"through layers of numbers, {np.prod(space.shape or ()):,} of them. As bytes, "
                "Box(0, 255, dtype=np.uint8), it would go through convolutions",
            )
        largest = np.abs(part.astype(np.float64)).max()
        if largest > np.finfo(np.float32).max:
            raise UsageError(
                f"{name} holds {largest:g} at {where}, more than single precision can (3.4e38): "
                "scale it"
            )
        if largest > EXACT and (part.astype(np.float32) != part).any():
            gap = np.spacing(np.float32(largest))
            self.notes.setdefault(
                name,
                f"{name} holds {largest:.10g} at {where}, where single precision moves in steps of "
                f"{gap:g}: subtract what is constant, or scale it",
            )

    def reward(self, reward: Any, where: str) -> np.ndarray:
        found = _array(reward).copy()  # the env may use its own again
        if found.shape != self.lead or found.dtype.kind not in "biuf":
            what = f"numbers of shape {self.lead}" if self.lead else "one number"
            raise UsageError(f"its reward must be {what}, but it is {reward!r} at {where}")
        with np.errstate(over="ignore"):
            finite = np.isfinite(found.astype(np.float32)).all()
        if not finite:
            raise UsageError(
                f"it gave the reward {_short(found)} at {where}: it must be finite. Look for a "
                "division by zero or an overflow in the env"
            )
        return found

    def flag(self, name: str, flag: Any, where: str) -> np.ndarray:
        found = _array(flag)
        if found.shape == self.lead and found.dtype == bool:
            return found
        if not self.lead and isinstance(flag, int | np.integer) and flag in (0, 1):
            self.notes.setdefault(name, f"{name} is {flag!r} at {where}: give True or False")
            return np.asarray(bool(flag))
        what = f"bools of shape {self.lead}" if self.lead else "True or False"
        shown = f"{found.dtype} of shape {found.shape}" if self.lead else repr(flag)
        raise UsageError(f"its {name} is {shown} at {where}: step must return {what}")

    def parts(self, answer: Any, where: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Any]:
        """What a step returned: the observation, reward, both flags and info."""
        if not isinstance(answer, tuple) or len(answer) != 5:
            found = f"{len(answer)} things" if isinstance(answer, tuple) else repr(type(answer))
            if isinstance(answer, tuple) and len(answer) == 4:
                found += (
                    ", as Gym's did before 0.26: give done as terminated, or as truncated where a "
                    "time limit ended the episode"
                )
            raise UsageError(
                "its step must return (observation, reward, terminated, truncated, info), but "
                f"returned {found}"
            )
        obs, reward, terminated, truncated, info = answer
        if not isinstance(info, dict) and self.lead:
            raise UsageError(infos_of(info))
        if not isinstance(info, dict):
            self.notes.setdefault(
                "info", f"info is {info!r} at {where}: give a dict, {{}} if empty"
            )
        return (
            obs,
            self.reward(reward, where),
            self.flag("terminated", terminated, where),
            self.flag("truncated", truncated, where),
            info,
        )


def check_env(
    env: gym.Env[Any, Any],
    *,
    seconds: float = SECONDS,
    steps: int = STEPS,
    episodes: int = EPISODES,
) -> Checked:
    """Play the first episodes of an env, and the first one again. Raises `UsageError`."""
    try:
        return _check_env(env, seconds, steps, episodes)
    except UsageError as error:
        raise UsageError(f"{title(env)} cannot be trained in: {error}") from error


def _check_env(env: gym.Env[Any, Any], seconds: float, steps: int, episodes: int) -> Checked:
    _refuse_statistics(env)
    play = _Play(env)
    clock, ended = _Clock(0.7 * seconds, steps), 0
    first: list[tuple[ByAgent, _Answer]] = []
    for episode in range(episodes):
        rows = play.reset(SEED + episode, f"the reset of episode {episode}")
        if episode == 0:
            beginning = rows
        number = 0
        while rows and clock.step():
            where = f"step {number} of episode {episode}"
            actions = play.draw(rows, where)
            answer = play.step(actions, where)
            rows, number = answer.acting, number + 1
            if episode == 0:
                first.append((actions, answer))
        ended += not rows
        if clock.over:
            break
    notes = [*_rooms(play.actions), *play.watch.notes.values()]
    if not ended and clock.left == 0 and not _limited(env):
        notes.append(
            f"no episode ended in the first {steps} steps, and there is no time limit: where none "
            "ever ends there are no returns to show; env.max_episode_steps sets a limit"
        )
    again = _Clock(seconds - clock.seconds, steps // 3)
    difference = "" if again.over else _replay(env, beginning, first, again)
    if difference:
        notes.append(difference)
    taken = clock.env_action + again.env_action
    return Checked(notes, taken, ended, not difference, play.watch.within)


ByAgent = dict[Any, Any]
"""Of each agent; the one of a single env is None."""
PARTS = ("observation", "reward", "terminated", "truncated")
"""What a step says to every agent."""


class _Answer(NamedTuple):
    """What came of a step."""

    rows: ByAgent  # what those saw who had acted
    rewards: ByAgent
    acting: ByAgent  # what those see who act next; nobody: the episode has ended

    def equals(self, other: _Answer) -> bool:
        return all(_same(a, b) for a, b in zip(self, other, strict=True))


def _same(one: ByAgent, other: ByAgent) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[a], other[a]) for a in one)


class _Play:
    """An env that is played at random and looked at: that of one, or of several agents."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        envs = SyncEnvs([env], 0)
        self._env, self.actions, self._space = env, envs.actions, envs.action_space
        self._agents = env if isinstance(env, Agents) else None
        self.watch, self._sampler = _Watch(envs.observations), _Sampler(envs.actions)
        if (masks := envs.observations.masks) is not None:
            check_masks(masks, envs.action_space)

    def reset(self, seed: int, where: str) -> ByAgent:
        """What those see who act first, as rows."""
        seen = _reset(self._env, seed)
        if not self._agents:
            return {None: self.watch.look(seen, where)}
        if not self._agents.present:
            raise UsageError(
                f"its agents are {self._agents.parallel.agents} after {where}: reset must fill "
                "agents with those who act first"
            )
        return self._acting(seen, {}, where)

    def draw(self, rows: ByAgent, where: str) -> ByAgent:
        """A legal action for each of these."""
        shown = self.watch.observations
        return {
            agent: self._sampler.draw(_mask(shown, row), _for(agent, where))
            for agent, row in rows.items()
        }

    def step(self, actions: ByAgent, where: str) -> _Answer:
        given = {agent: self.actions.nested(action.copy()) for agent, action in actions.items()}
        if self._agents:
            whole = _step(self._agents, given, self._space, where)
            parts, info = list(zip(whole, PARTS, strict=False)), whole[-1]
            answers = {a: (*(_told(a, *part, where) for part in parts), info) for a in actions}
        else:
            answers = {None: _step(self._env, given[None], self._space, where)}
        rows, rewards = ByAgent(), ByAgent()
        for agent, answer in answers.items():
            here = _for(agent, where)
            seen, rewards[agent], terminated, truncated, _ = self.watch.parts(answer, here)
            rows[agent] = self.watch.look(seen, here)
            ended = bool(terminated or truncated)
            if self._agents and not ended and agent not in self._agents.present:
                self.watch.notes.setdefault(
                    "gone",
                    f"agent {agent!r} is no longer in agents after {where}, but neither terminated "
                    "nor truncated: it counts as truncated, as if it could have gone on",
                )
        if not self._agents:
            return _Answer(rows, rewards, {} if ended else rows)
        return _Answer(rows, rewards, self._acting(whole[0], rows, where))

    def _acting(self, seen: ByAgent, rows: ByAgent, where: str) -> ByAgent:
        """The rows of the agents that are present; rows: those that are known."""
        assert self._agents
        found = {}
        for agent in self._agents.present:
            if agent not in self._agents.agents:
                raise UsageError(
                    f"its agents hold {agent!r} at {where}, who is not one of its possible_agents "
                    f"{self._agents.agents}: name all there that ever act"
                )
            if agent in rows:
                found[agent] = rows[agent]
            else:
                own = _told(agent, seen, PARTS[0], where)
                found[agent] = self.watch.look(own, _for(agent, where))
        return found


def _for(agent: Any, where: str) -> str:
    return where if agent is None else f"{where} for agent {agent!r}"


def _told(agent: Any, part: ByAgent, name: str, where: str) -> Any:
    """What one part of an answer holds for an agent."""
    if agent not in part:
        raise UsageError(
            f"it said nothing to its agent {agent!r} at {where}, of its {name}: every agent that "
            "acts, or is in agents, must be answered"
        )
    return part[agent]


def _reset(env: Any, seed: int) -> Any:
    try:
        answer = env.reset(seed=seed)
    except UsageError:
        raise
    except TypeError as error:
        if "seed" in str(error):
            remedy = "def reset(self, *, seed=None, options=None)"
            if not isinstance(env, Agents):
                remedy += ", and in it super().reset(seed=seed)"
            raise UsageError(
                f"its reset takes no seed ({error}), as Gym's did before 0.26: write {remedy}"
            ) from error
        raise UsageError(f"it failed at its reset: {explain(error)}") from error
    except faults() as error:
        raise UsageError(f"it failed at its reset: {explain(error)}") from error
    if isinstance(env, VectorEnv) and isinstance(answer, tuple) and isinstance(answer[-1], list):
        raise UsageError(infos_of(answer[-1]))
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], dict):
        raise UsageError(
            "its reset must return two things, (observation, info), but returned "
            f"{_short(answer)}: write return observation, {{}}"
        )
    return answer[0]


def _step(env: Any, action: Any, space: gym.Space[Any], where: str) -> Any:
    try:
        return env.step(action)
    except UsageError:
        raise
    except faults() as error:
        what = f"action {_short(action)}, which is one"
        if isinstance(env, Agents):
            what = f"actions {_short(action)}, each of them one"
        raise UsageError(
            f"it failed at {where} on the {what} of its action_space {space}: {explain(error)}"
        ) from error


def _replay(
    env: gym.Env[Any, Any],
    beginning: ByAgent,
    first: list[tuple[ByAgent, _Answer]],
    clock: _Clock,
) -> str:
    """In what the first episode differs, played again; empty if in nothing."""
    source = "self.np_random, which super().reset(seed=seed) sets"
    if isinstance(env, Agents):
        source = "a generator that reset makes anew from its seed"
    consequence = (
        "so that a run of the same seed differs, a resumed one may begin new episodes, and an "
        f"evaluation may show something else. Draw only from {source}, and let nothing outlive "
        "reset, neither in the env nor in a wrapper of it"
    )
    play = _Play(env)
    if not _same(play.reset(SEED, "its reset"), beginning):
        return f"reset with the same seed gives another observation, {consequence}"
    for number, (actions, answer) in enumerate(first):
        if not clock.step():
            break
        again = play.step(actions, f"step {number} of the first episode, played again")
        if not again.equals(answer):
            return (
                f"the same seed and actions give another step {number} of the episode, "
                f"{consequence}"
            )
    return ""


def _rooms(actions: Actions) -> Iterator[str]:
    """Where there is nothing to choose."""
    for leaf in actions.without_room:
        yield (
            f"the action space{leaf.place}, {_short(leaf.space)}, allows only one value of some "
            "number: there is nothing to learn of it. Leave it out, or give it room"
        )


def _limited(env: gym.Env[Any, Any]) -> bool:
    """Whether a wrapper cuts episodes off."""
    if isinstance(env, Agents):
        return env.limit is not None
    return any(isinstance(layer, gym.wrappers.TimeLimit) for layer in layers(env))


def running_statistics(env: Any) -> str:
    """What is wrong with running statistics that an env or a wrapper keeps; empty if none does.

    They are no part of the policy and no checkpoint holds them; each env has its own, and they
    begin anew in an evaluation. Known by what they are: an object with a mean and a variance that
    is updated. Those that are frozen (`update_running_mean` is False) change nothing, and are fine.
    So are those of a single env that a reset sets back: they are the episode's own. That is tried.
    """
    found = list(_kept(env))
    if not found or (not isinstance(env, VectorEnv) and _set_back(env)):
        return ""
    keeper, name, _ = found[0]
    ours = {"obs": "--net.normalize-obs", "re": "--algorithm.normalize-reward"}
    remedy = next((flag for word, flag in ours.items() if name.startswith(word)), "")
    return (
        f"{keeper} keeps running statistics ({name}), which no checkpoint holds and which begin "
        "anew in every env and evaluation, so that what is scored is not what was trained: leave "
        f"it out and use {remedy or ' or '.join(ours.values())}, which are saved with the policy"
    )


def _kept(env: Any) -> Iterator[tuple[str, str, Any]]:
    """Who keeps running statistics, by which name, and these, but for those in other processes."""
    seen = layers(env.parallel if isinstance(env, Agents) else env)
    for vector in [layer for layer in seen if isinstance(layer, SyncVectorEnv)]:
        seen += [layer for one in vector.envs for layer in layers(one)]
    for layer in seen:
        if getattr(layer, "update_running_mean", True):
            for name, value in getattr(layer, "__dict__", {}).items():
                parts = list(value.values()) if isinstance(value, dict) else [value]
                if isinstance(value, list | tuple):
                    parts = list(value)
                yield from (
                    (type(layer).__name__, name, part) for part in parts if _is_statistics(part)
                )
        if isinstance(layer, AsyncVectorEnv) and (name := _in_processes(layer)):
            yield "a wrapper of its envs", name, None


def _set_back(env: gym.Env[Any, Any]) -> bool:
    """A reset leaves these statistics as an earlier one of the same seed did."""
    play, found, where = _Play(env), [], "the first step"
    for seed in (SEED, SEED + 1, SEED):
        rows = play.reset(seed, "its reset")
        try:
            found.append([_moments(value) for *_, value in _kept(env)])
        except faults():  # as those of no number yet
            return False
        play.step(play.draw(rows, where), where)
    return bool(found[0] == found[-1])


def _moments(statistics: Any) -> list[Any]:
    names = [name for name in ("mean", "var", "std") if hasattr(statistics, name)]
    return [np.array(getattr(statistics, name)).tolist() for name in names]


def _in_processes(vector: AsyncVectorEnv) -> str:
    """The name of running statistics of envs in other processes, which are asked by name."""
    frozen = "update_running_mean"
    if all(vector.call("has_wrapper_attr", frozen)) and not any(
        vector.call("get_wrapper_attr", frozen)
    ):
        return ""
    names = ("obs_rms", "return_rms", "ret_rms", "reward_rms")
    return next((name for name in names if any(vector.call("has_wrapper_attr", name))), "")


def _refuse_statistics(env: Any) -> None:
    if found := running_statistics(env):
        raise UsageError(f"{found}. If they change nothing that is shown, use --env.no-check")


def _is_statistics(value: Any) -> bool:
    kind, own = type(value), getattr(value, "__dict__", {})
    mean = "mean" in own or isinstance(getattr(kind, "mean", None), property)
    spread = any(name in own or hasattr(kind, name) for name in ("var", "std"))
    return mean and spread and any(hasattr(kind, name) for name in ("update", "push"))


def _mask(observations: Observations, row: np.ndarray) -> np.ndarray | None:
    """[..., choices] bool: what may be chosen, or None for everything."""
    if observations.mask_begin == observations.width:
        return None
    return row[..., observations.mask_begin :] > 0.5


class _Sampler:
    """Random actions, always the same ones."""

    def __init__(self, actions: Actions) -> None:
        self._actions, self._drawn = actions, np.random.default_rng(SEED)
        self._spaces = [copy.deepcopy(leaf.space) for leaf in actions.leaves]
        for number, space in enumerate(self._spaces):
            space.seed(SEED + number)

    def draw(self, legal: np.ndarray | None, where: str) -> Any:
        """As `Actions` takes one. Raises `UsageError` for a mask that does not fit or allows none.

        legal: [choices] bool.
        """
        actions = self._actions
        row = np.empty(actions.leaves[-1].end, actions.dtype)
        begin = 0
        for leaf, own in zip(actions.leaves, self._spaces, strict=True):
            space: Any = own
            if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
                row[leaf.begin : leaf.end] = space.sample().reshape(-1)
                continue
            columns = range(leaf.begin, leaf.end)
            for column, size, start in zip(columns, sizes(space), starts(space), strict=True):
                allowed = np.arange(size)
                if legal is not None:
                    allowed = np.flatnonzero(legal[begin : begin + size])
                begin += size
                if not len(allowed):
                    shown = _short(np.asarray(legal, int))
                    raise UsageError(
                        f"its {MASK}, {shown}, allows no action for {where}: one must be legal "
                        "until the episode has ended, and there is one entry for each choice of "
                        f"{actions.space}"
                    )
                row[column] = start + int(self._drawn.choice(allowed))
        if legal is not None and begin != len(legal):
            raise UsageError(
                f"its {MASK} has {len(legal)} entries, but {actions.space} has {begin} things to "
                "choose from: it needs one entry for each"
            )
        if not actions.single:
            return row
        return row.reshape(actions.shape or ())[()]


def _pictures(space: gym.Space[Any]) -> bool:
    """Three axes of numbers that are no bytes: two of them sides, the first or last channels."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype == np.uint8:
        return False
    channels, side = sorted(space.shape)[:2]
    outer = min(space.shape[0], space.shape[-1])
    return channels <= MOST_CHANNELS and channels == outer and side >= SMALLEST_SIDE


def _array(value: Any) -> np.ndarray:
    """As a NumPy array, from wherever it lies."""
    if not _is_tensor(value):
        return np.asarray(value)
    if value.requires_grad:
        raise UsageError(
            f"it gave {value!r:.80}, a tensor that needs a gradient: give x.detach(), as nothing "
            "is learned through the env"
        )
    return np.asarray(value.cpu())


def _is_tensor(value: Any) -> bool:
    """Whether it is PyTorch's; there is none where that was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _arrays(nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _arrays(part) for key, part in nested.items()}
    if isinstance(nested, tuple):
        return tuple(_arrays(part) for part in nested)
    return _array(nested) if _is_tensor(nested) else nested


def _short(value: Any) -> str:
    """A value in one line that is not too long."""
    with np.printoptions(threshold=8, edgeitems=3, precision=4):
        text = " ".join(str(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _written_over(env: gym.Env[Any, Any], clock: _Clock) -> str:
    """The first leaf of an observation over whose array a later reset writes, or nothing."""
    alone = SyncEnvs([env], 0)
    observations, sampler = alone.observations, _Sampler(alone.actions)
    for number in range(FIRST):
        seen = _reset(env, SEED)
        for step in range(number + 1):
            where = f"step {step} of an env alone"
            action = sampler.draw(_mask(observations, observations.row(seen)), where)
            given = alone.actions.given(action)
            seen, _, terminated, truncated, _ = _step(env, given, alone.action_space, where)
            if terminated or truncated:
                break
        parts = [np.asarray(leaf.of(seen)) for leaf in observations.leaves]
        before = [part.copy() for part in parts]
        _reset(env, SEED + number)
        for leaf, one, other in zip(observations.leaves, before, parts, strict=True):
            if not np.array_equal(one, other):
                return leaf.name
        if clock.over:
            break
    return ""


def check_vector(envs: VectorEnvs, *, seconds: float = SECONDS, steps: int = STEPS) -> Checked:
    """Step a vector env until some episodes have ended: how does it reset? Raises `UsageError`.

    It is left somewhere: reset it with a seed before anything else.
    """
    name = title(envs.envs)
    try:
        _refuse_statistics(envs.envs)
        return _Vector(envs).play(_Clock(seconds, steps))
    except UsageError as error:
        raise UsageError(f"{name} cannot be trained in: {error}") from error


class _Vector:
    """What a vector env does at the ends of its episodes."""

    def __init__(self, envs: VectorEnvs) -> None:
        self._envs, self._vector_env, self._mode = envs, envs.envs, envs.mode
        self._watch = _Watch(envs.observations, (envs.count,))
        if (masks := envs.observations.masks) is not None:
            check_masks(masks, envs.action_space)
        self._sampler = _Sampler(envs.actions)
        self._ends = self._resets = self._again = self._kept = 0
        leaves = envs.observations.leaves
        self._alike = np.ones(len(leaves), bool)  # which were, at all ends, as after the reset
        self._finals: list[list[np.ndarray]] = []  # as they were given, by leaf

    def play(self, clock: _Clock) -> Checked:
        envs, watch = self._envs, self._watch
        notes = list(_rooms(envs.actions))
        if self._mode is AutoresetMode.SAME_STEP:
            self._single(clock)
        rows, again = (self._look(_reset(self._vector_env, SEED), "its reset") for _ in range(2))
        if not np.array_equal(rows, again):
            notes.append(
                "reset with the same seed gives other observations, so that a run of the same seed "
                "differs"
            )
        before = np.zeros(envs.count, bool)  # whose step is the reset after an end
        first: list[tuple[Any, np.ndarray]] = []
        while self._ends < ENDS and clock.step():
            where = f"step {clock.env_action - 1}"
            action = self._draw(rows, before, where)
            obs, reward, terminated, truncated, info = self._step(action, where)
            ended, rows = terminated | truncated, self._look(obs, where)
            if len(first) < FIRST:
                first.append((action, self._shown(rows, reward)))
            self._after(before, ended, reward)
            ended &= ~before
            if ended.any():
                self._ends += int(ended.sum())
                self._at(ended, rows, info, where)
                if self._mode is AutoresetMode.DISABLED:
                    self._unreset(ended, rows)
                    break
            if self._mode is AutoresetMode.NEXT_STEP:
                before = ended
        if self._mode is AutoresetMode.NEXT_STEP and self._again and not self._resets:
            self._mismatch(
                "in the step after an end it gives a reward, or ends again: it does not reset there"
            )
        if before.any():
            self._still_due(before, first)
        if self._mode is AutoresetMode.SAME_STEP and 1 < self._ends == self._kept:
            self._mismatch("where an episode ends its observation is final_obs: it is not reset")
        if self._finals and self._alike.any():
            self._written_over(rows)
        return Checked(
            [*notes, *watch.notes.values()], clock.env_action, self._ends, False, watch.within
        )

    def _look(self, seen: Any, where: str) -> np.ndarray:
        return self._watch.look(_arrays(seen), where)

    def _draw(self, rows: np.ndarray, before: np.ndarray, where: str) -> np.ndarray:
        envs, masks = self._envs, _mask(self._watch.observations, rows)
        if masks is None:
            few = [self._sampler.draw(None, where) for _ in range(min(envs.count, ENOUGH))]
            return np.stack([few[i % ENOUGH] for i in range(envs.count)])
        # Those that are about to reset show their last state, where nothing need be legal.
        legal = [None if resets else mask for mask, resets in zip(masks, before, strict=True)]
        draw = self._sampler.draw
        return np.stack([draw(m, f"{where} in env {i}") for i, m in enumerate(legal)])

    def _step(self, action: np.ndarray, where: str) -> Any:
        given, space = self._given(action), self._envs.action_space
        return self._watch.parts(_step(self._vector_env, given, space, where), where)

    def _given(self, action: np.ndarray) -> Any:
        actions, device = self._envs.actions, self._envs.device
        if device is None:
            return actions.given(action)
        import torch

        return actions.nested(torch.from_numpy(action.copy()).to(device))

    @staticmethod
    def _shown(rows: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """[N, numbers] what each of them showed and paid."""
        return np.column_stack([rows.reshape(len(rows), -1), reward])

    def _repeat(self, first: list[tuple[Any, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """The first steps from the first seed again, until they differ: [N] whose do, who ended."""
        self._look(_reset(self._vector_env, SEED), "its reset")
        for action, shown in first:
            where = "the first steps, again"
            obs, reward, terminated, truncated, _ = self._step(action, where)
            other = (self._shown(self._look(obs, where), reward) != shown).any(-1)
            if other.any():
                break
        return other, terminated | truncated

    def _still_due(self, due: np.ndarray, first: list[tuple[Any, np.ndarray]]) -> None:
        """Next-step mode: does a reset leave those that are due after an end?

        Then only the envs in which one was due begin otherwise, and no longer once it is done.
        (Gymnasium's AsyncVectorEnv does so without shared memory.)
        """
        other, ended = self._repeat(first)
        if not other.any() or (other & ~due).any():
            return
        again, last = self._repeat(first)
        known = ~ended  # in these none is due
        self._envs.owes = bool((other & known).any() and not (again & known).any())
        self._envs.due = last

    def _at(self, ended: np.ndarray, rows: np.ndarray, info: Any, where: str) -> None:
        """What stands in info where episodes ended."""
        given = isinstance(info, dict) and "final_obs" in info
        if self._mode is not AutoresetMode.SAME_STEP:
            # In the other modes the env's own observation is the final one.
            if given:
                self._mismatch(f"info has a final_obs at {where}, as in same-step mode")
            return
        if not given:
            self._mismatch(
                f"info has no final_obs at {where}, where an episode ended: in this mode it holds "
                "what the last action led to"
            )
        last, final = rows.copy(), _arrays(info["final_obs"])
        self._envs.write_finals(final, ended, last)
        alike = (last == rows).reshape(len(rows), -1)[ended]
        self._kept += int(alike.all(-1).sum())
        leaves = self._envs.observations.leaves
        self._alike &= [alike[:, leaf.begin : leaf.end].all() for leaf in leaves]
        own = [final_of(final, int(i)) for i in np.flatnonzero(ended)]
        self._finals += [[np.asarray(leaf.of(seen)) for leaf in leaves] for seen in own]

    def _single(self, clock: _Clock) -> None:
        """Same-step mode: a final_obs is what a step of a single env returned, before its reset.

        Gymnasium keeps it as it is. Raises `UsageError` for a reset that writes over it.
        """
        made = self._vector_env.unwrapped
        if isinstance(made, SyncVectorEnv):
            self._refuse(_written_over(made.envs[0], clock))
        elif isinstance(made, AsyncVectorEnv):  # its envs live elsewhere: look at another one
            found = ""
            with contextlib.suppress(Exception), contextlib.closing(made.env_fns[0]()) as env:
                found = _written_over(env, clock)
            self._refuse(found)

    def _written_over(self, rows: np.ndarray) -> None:
        """Same-step mode: does a reset write over arrays that were given as final_obs?"""
        leaves, nobody = self._envs.observations.leaves, np.zeros(len(rows), bool)
        for number in range(FIRST):
            where = f"step {number} behind the last end"
            self._step(self._draw(rows, nobody, where), where)
            before = [[part.copy() for part in parts] for parts in self._finals]
            rows = self._look(_reset(self._vector_env, SEED + number), "its reset")
            for old, new in zip(before, self._finals, strict=True):
                for leaf, one, other, alike in zip(leaves, old, new, self._alike, strict=True):
                    if alike and not np.array_equal(one, other):
                        self._refuse(leaf.name)

    def _refuse(self, name: str) -> None:
        if name:
            raise UsageError(
                f"a reset writes over the array that the last step returned for {name}, so that "
                "in same-step mode final_obs shows the next episode: let reset and step return a "
                "copy of it (array.copy()), or use AutoresetMode.NEXT_STEP"
            )

    def _after(self, before: np.ndarray, ended: np.ndarray, reward: np.ndarray) -> None:
        resets = ~ended[before] & (reward[before] == 0)
        self._resets += int(resets.sum())
        self._again += int((~resets).sum())

    def _unreset(self, ended: np.ndarray, rows: np.ndarray) -> None:
        """Disabled mode: does it wait for us, and does it then reset these envs alone?"""
        following = self._look(self._envs.reset_some(ended), "reset with a reset_mask")
        if not np.array_equal(following[~ended], rows[~ended]):
            self._mismatch("reset with a reset_mask moves envs that the mask leaves out")
        if np.array_equal(following[ended], rows[ended]):
            self._mismatch("reset with a reset_mask leaves the envs where they ended")

    def _mismatch(self, seen: str) -> None:
        raise UsageError(
            f"its metadata declare autoreset_mode {self._mode.value}, but {seen}. Declare what it "
            "does: " + ", ".join(mode.value for mode in AutoresetMode)
        )
