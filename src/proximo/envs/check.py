"""Check of an env before training: it is played for a moment, at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, ValuesView
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from proximo.envs.layers import check_spaces, layers
from proximo.envs.parallel_env import ByAgent, ParallelEnv, part_of
from proximo.envs.watch import SEED, Checked, Clock, Sampler, Watch, infos_of, refusing, short
from proximo.errors import UsageError, explain, faults
from proximo.spaces import MASK, Actions, Observations, check_masks, own_copy

SECONDS = 0.1
"""Duration of the check; a step that has begun is waited for."""
STEPS = 300
"""Steps of the first episodes, at most; a third of that for their repetition."""
EPISODES = 2
PARTS = ("observation", "reward", "terminated", "truncated")
"""Parts of a step's return value, each by agent."""


def check_env(
    env: gym.Env[Any, Any],
    *,
    seconds: float = SECONDS,
    steps: int = STEPS,
    episodes: int = EPISODES,
) -> Checked:
    """Play the first episodes of an env, and the first one again. Raises `UsageError`."""
    with refusing(env):
        refuse_statistics(env)
        play, clock, ended = RandomPlay(env), Clock(0.7 * seconds, steps), 0
        first: list[tuple[ByAgent, Answer]] = []
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
        notes = [*without_room(play.actions), *play.watch.notes.values()]
        if not ended and clock.left == 0 and limit_of(env) is None:
            notes.append(
                f"no episode ended in the first {steps} steps, and there is no time limit: where "
                "none ever ends there are no returns to show; env.max_episode_steps sets a limit"
            )
        again = Clock(seconds - clock.seconds, steps // 3)
        difference = "" if again.over else _replay(env, beginning, first, again)
        notes += [difference] if difference else []
        steps = clock.taken + again.taken
        return Checked(notes, steps, ended, play.watch.within, replayable=not difference)


def check_made(make: Callable[[], gym.Env[Any, Any]]) -> Checked:
    """`check_env` of an env that is made for it; a note where none can be made."""
    try:
        env = make()
    except UsageError as error:  # perhaps there can be no more of them
        return Checked([f"not checked, for one apart cannot be made ({error})"])
    return check_env(env)


class Answer(NamedTuple):
    """Result of a step, by agent."""

    rows: ByAgent  # observations of those who acted
    rewards: ByAgent
    acting: ByAgent  # observations of those who act next; empty: the episode has ended

    def equals(self, other: Answer) -> bool:
        return all(_same(a, b) for a, b in zip(self, other, strict=True))


def _same(one: ByAgent, other: ByAgent) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[a], other[a]) for a in one)


class RandomPlay:
    """Random actions in an env, of one agent or several, whose every answer is checked."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        check_spaces(env)
        self._env, self._space = env, own_copy(env.action_space)
        observations = Observations(own_copy(env.observation_space))
        self.actions = Actions(self._space)
        self._agents = env if isinstance(env, ParallelEnv) else None
        self.watch, self._sampler = Watch(observations), Sampler(self.actions)
        check_masks(observations.masks, self._space)

    def reset(self, seed: int, where: str) -> ByAgent:
        """Rows of those who act first."""
        seen = try_reset(self._env, seed)
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
            agent: self._sampler.draw(shown.legal(row), _for(agent, where))
            for agent, row in rows.items()
        }

    def step(self, actions: ByAgent, where: str) -> Answer:
        given = {agent: self.actions.nested(action.copy()) for agent, action in actions.items()}
        if self._agents:
            whole = try_step(self._agents, given, self._space, where)
            names = [f" at {where}, of its {name}" for name in PARTS]
            parts, info = list(zip(whole, names, strict=False)), whole[-1]
            answers = {a: (*(part_of(a, *part) for part in parts), info) for a in actions}
        else:
            answers = {None: try_step(self._env, given[None], self._space, where)}
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
            return Answer(rows, rewards, {} if ended else rows)
        return Answer(rows, rewards, self._acting(whole[0], rows, where))

    def _acting(self, seen: ByAgent, rows: ByAgent, where: str) -> ByAgent:
        """The rows of the agents that are present; rows: those that are known."""
        assert self._agents
        acting = {}
        for agent in self._agents.present:
            if agent not in self._agents.agents:
                raise UsageError(
                    f"its agents hold {agent!r} at {where}, who is not one of its possible_agents "
                    f"{self._agents.agents}: name all there that ever act"
                )
            if agent in rows:
                acting[agent] = rows[agent]
            else:
                obs = part_of(agent, seen, f" at {where}, of its {PARTS[0]}")
                acting[agent] = self.watch.look(obs, _for(agent, where))
        return acting


def _for(agent: Any, where: str) -> str:
    return where if agent is None else f"{where} for agent {agent!r}"


def try_reset(env: Any, seed: int) -> Any:
    """The observation after a reset. Raises `UsageError` for whatever is wrong with it."""
    try:
        answer = env.reset(seed=seed)
    except UsageError:
        raise
    except faults() as error:
        text = f"it failed at its reset: {explain(error)}"
        if isinstance(error, TypeError) and "seed" in str(error):
            remedy = "def reset(self, *, seed=None, options=None)"
            if not isinstance(env, ParallelEnv):
                remedy += ", and in it super().reset(seed=seed)"
            text = f"its reset takes no seed ({error}), as Gym's did before 0.26: write {remedy}"
        raise UsageError(text) from error
    if isinstance(env, VectorEnv) and isinstance(answer, tuple) and isinstance(answer[-1], list):
        raise UsageError(infos_of(answer[-1]))
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], dict):
        raise UsageError(
            "its reset must return two things, (observation, info), but returned "
            f"{short(answer)}: write return observation, {{}}"
        )
    return answer[0]


def try_step(env: Any, action: Any, space: gym.Space[Any], where: str) -> Any:
    try:
        return env.step(action)
    except UsageError:
        raise
    except faults() as error:
        what = f"action {short(action)}, which is one"
        if isinstance(env, ParallelEnv):
            what = f"actions {short(action)}, each of them one"
        raise UsageError(
            f"it failed at {where} on the {what} of its action_space {space}: {explain(error)}"
        ) from error


def _replay(
    env: gym.Env[Any, Any], beginning: ByAgent, first: list[tuple[ByAgent, Answer]], clock: Clock
) -> str:
    """How the first episode differs when it is played again; empty if it does not."""
    source = "self.np_random, which super().reset(seed=seed) sets"
    if isinstance(env, ParallelEnv):
        source = "a generator that reset makes anew from its seed"
    consequence = (
        "so that a run of the same seed differs, a resumed one may begin new episodes, and an "
        f"evaluation may show something else. Draw only from {source}, and let nothing outlive "
        "reset, neither in the env nor in a wrapper of it"
    )
    play = RandomPlay(env)
    if not _same(play.reset(SEED, "its reset"), beginning):
        return f"reset with the same seed gives another observation, {consequence}"
    for number, (actions, answer) in enumerate(first):
        if not clock.step():
            break
        again = play.step(actions, f"step {number} of the first episode, played again")
        if not again.equals(answer):
            text = f"the same seed and actions give another step {number} of the episode"
            return f"{text}, {consequence}"
    return ""


def without_room(actions: Actions) -> Iterator[str]:
    """Notes on parts of an action that leave nothing to choose."""
    for leaf in actions.without_room:
        yield (
            f"the action space{leaf.place}, {short(leaf.space)}, allows only one value of some "
            "number: there is nothing to learn of it. Leave it out, or give it room"
        )


def limit_of(env: gym.Env[Any, Any]) -> int | None:
    """Steps after which a wrapper truncates the episodes of an env, or None."""
    if isinstance(env, ParallelEnv):
        return env.limit
    limits = [layer for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
    return min((limit._max_episode_steps for limit in limits), default=None)


def begin_at(env: gym.Env[Any, Any], steps: int) -> None:
    """Let the time limit of an env that was just reset count these steps as taken."""
    if isinstance(env, ParallelEnv):
        env.begin_at(steps)
    else:
        limits = [layer for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
        shortest: Any = min(limits, key=lambda limit: limit._max_episode_steps)
        shortest._elapsed_steps = steps


def masks_beside(env: gym.Env[Any, Any]) -> str:
    """Place of action masks that are not in the observation: info, method, or empty for none."""
    if any(callable(getattr(layer, "action_masks", None)) for layer in layers(env)[-1:]):
        return "method"
    return "info" if MASK in env.reset(seed=SEED)[1] else ""


def running_statistics(env: Any) -> str:
    """An error text for running statistics that an env or a wrapper keeps; empty if none does.

    They are objects with a mean and a variance that are updated. Allowed are frozen ones
    (`update_running_mean` is False), and those of a single env that every reset sets back.
    """
    kept = list(_kept(env))
    if not kept or (not isinstance(env, VectorEnv) and _set_back(env)):
        return ""
    keeper, name, _ = kept[0]
    ours = {"obs": "--net.normalize-obs", "re": "--algorithm.normalize-reward"}
    remedy = next((flag for word, flag in ours.items() if name.startswith(word)), "")
    return (
        f"{keeper} keeps running statistics ({name}), which no checkpoint holds and which begin "
        "anew in every env and evaluation, so that what is scored is not what was trained: leave "
        f"it out and use {remedy or ' or '.join(ours.values())}, which are saved with the policy"
    )


def _kept(env: Any) -> Iterator[tuple[str, str, Any]]:
    """(class, attribute, object) of running statistics; the object is None in other processes."""
    seen = layers(env.parallel if isinstance(env, ParallelEnv) else env)
    for vector in [layer for layer in seen if isinstance(layer, SyncVectorEnv)]:
        seen += [layer for one in vector.envs for layer in layers(one)]
    for layer in seen:
        if getattr(layer, "update_running_mean", True):
            for name, value in getattr(layer, "__dict__", {}).items():
                several = value.values() if isinstance(value, dict) else value
                parts = several if isinstance(several, ValuesView | list | tuple) else [value]
                kept = filter(_is_statistics, list(parts))
                yield from ((type(layer).__name__, name, part) for part in kept)
        if isinstance(layer, AsyncVectorEnv) and (name := _in_processes(layer)):
            yield "a wrapper of its envs", name, None


def _set_back(env: gym.Env[Any, Any]) -> bool:
    """A reset leaves these statistics as an earlier one of the same seed did."""
    play, moments, where = RandomPlay(env), [], "the first step"
    for seed in (SEED, SEED + 1, SEED):
        rows = play.reset(seed, "its reset")
        try:
            moments.append([_moments(value) for *_, value in _kept(env)])
        except faults():  # as those of no number yet
            return False
        play.step(play.draw(rows, where), where)
    return bool(moments[0] == moments[-1])


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


def refuse_statistics(env: Any) -> None:
    if text := running_statistics(env):
        raise UsageError(f"{text}. If they change nothing that is shown, use --env.no-check")


def _is_statistics(value: Any) -> bool:
    kind, attributes = type(value), getattr(value, "__dict__", {})
    mean = "mean" in attributes or isinstance(getattr(kind, "mean", None), property)
    spread = any(name in attributes or hasattr(kind, name) for name in ("var", "std"))
    return mean and spread and any(hasattr(kind, name) for name in ("update", "push"))
