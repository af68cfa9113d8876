"""A Gymnasium vector env, in whichever mode it resets, and the check of how it does."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from proximo.envs.base import Envs, SyncEnvs, episode_seed
from proximo.envs.check import SECONDS, STEPS, refuse_statistics, try_reset, try_step, without_room
from proximo.envs.layers import close_all, title
from proximo.envs.watch import SEED, Checked, Clock, Sampler, Watch, infos_of, on_host, refusing
from proximo.errors import UsageError
from proximo.spaces import check_masks, map_leaves
from proximo.types import EnvState, RolloutBuffer


class VectorEnvs(Envs):
    """A Gymnasium vector env, which resets its envs itself in whichever mode it declares."""

    replayable = False

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int) -> None:
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.envs, self._seed = envs, seed
        metadata = getattr(envs, "metadata", None)
        mode = metadata.get("autoreset_mode") if isinstance(metadata, dict) else None
        if not isinstance(mode, AutoresetMode):
            raise UsageError(
                f"{title(envs)} declares metadata['autoreset_mode'] = {mode!r}: it must be one of "
                "gymnasium.vector.AutoresetMode, or its resets cannot be told from its steps"
            )
        self.mode = mode
        plain = envs.unwrapped
        # So does Gymnasium's 1.4; `check_vector` looks at what others do.
        self.owes = isinstance(plain, AsyncVectorEnv) and not plain.shared_memory
        """Next-step mode: whether a reset leaves the one due after an end, which then follows."""
        self.due = np.zeros(self.count, bool)
        """In which envs one is due before the first reset, where `owes`."""

    def _begin(self, state: EnvState, begun: np.ndarray) -> Any:
        if self.mode is AutoresetMode.DISABLED and len(state.obs):
            return self._laid(self.reset_some(begun))
        # One generator serves all the envs: it is seeded once, and goes on from there.
        # After a resume it is seeded anew, by how far it had come: not the same beginnings.
        first = episode_seed(self._seed, 0, int(state.episode.max()))
        seed = None if len(state.obs) else first
        obs, info = self.envs.reset(seed=seed)
        if not isinstance(info, dict):
            raise UsageError(infos_of(info))
        state.ret[:] = state.length[:] = 0
        state.resetting = self.owes & (state.resetting if seed is None else self.due)
        return self._laid(obs)

    def given(self, action: np.ndarray) -> Any:
        """The actions that lie in an array, as the vector env takes them."""
        return self.actions.given(action)

    def reset_some(self, which: np.ndarray) -> Any:
        return self.envs.reset(options={"reset_mask": which.copy()})[0]

    def _laid(self, seen: Any) -> np.ndarray:
        """The observations of all envs, copied: some give every one in one and the same array."""
        rows = np.empty((self.count, *self.observations.shape), self.observations.dtype)
        self.observations.write(seen, rows)
        return rows

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        answer = self.envs.step(self.actions.given(buffer.env_action[t]))
        self._fill(state, buffer, t, slice(None), answer)

    def _fill(
        self, state: EnvState, buffer: RolloutBuffer, t: int, rows: slice, answer: Any
    ) -> None:
        """Write the answer to step t of the envs in these rows."""
        obs, reward, terminated, truncated, info = answer
        # NumPy's: arrays of other libraries would take our own over, with types of theirs.
        terminated = np.asarray(terminated, bool)
        done = terminated | np.asarray(truncated, bool)
        if self.mode is AutoresetMode.NEXT_STEP:
            if state.resetting[rows].any():
                buffer.valid[t, rows] = ~state.resetting[rows]
                done &= buffer.valid[t, rows]
            state.resetting[rows] = done
        buffer.reward[t, rows] = np.asarray(reward)
        following = buffer.obs[t + 1, rows]
        self.observations.write(obs, following)
        if done.any():
            buffer.terminated[t, rows], buffer.done[t, rows] = terminated & done, done
            last, first = following.copy(), rows.start or 0
            if self.mode is AutoresetMode.SAME_STEP:
                self.write_finals(info["final_obs"], done, last)
            buffer.final_obs.extend((t, first + int(i), last[i]) for i in np.flatnonzero(done))
            state.episode[rows] += done
            if self.mode is AutoresetMode.DISABLED:
                self.observations.write(self.reset_some(done), following)

    def write_finals(self, final: Any, done: np.ndarray, rows: np.ndarray) -> None:
        """True successors: one per env, or batched by leaf where observations are nested."""
        for i in np.flatnonzero(done):
            self.observations.write(final_of(final, int(i)), rows[i])

    def check(self) -> Checked | None:
        return check_vector(self)

    def examine(self, **limits: Any) -> Checked:
        limits.pop("episodes", None)  # it ends once the mode of the resets is known
        return check_vector(self, **limits)

    @property
    def resets(self) -> str:
        return (
            f"the envs reset themselves, in autoreset mode {self.mode.value} ({MODES[self.mode]})"
        )

    def restore(self, state: EnvState) -> bool:
        state.obs = np.empty(0)
        return super().restore(state)

    def _close(self) -> list[str]:
        return close_all([self.envs])


def final_of(final: Any, index: int) -> Any:
    """One env's part of `final_obs`, the env's own array where it is one."""
    if isinstance(final, np.ndarray):
        return final[index]
    return map_leaves(
        lambda part: (part if isinstance(part, list) else np.asarray(part))[index], final
    )


MODES = {
    AutoresetMode.NEXT_STEP: "the step after an end resets",
    AutoresetMode.SAME_STEP: "the step that ends resets, and info has final_obs",
    AutoresetMode.DISABLED: "reset with a reset_mask does",
}
"""What the modes mean."""
ENDS = 4
"""Ends of episodes after which the mode of the resets is known."""
FIRST = 4
"""Steps that are repeated to see whether a vector env's reset leaves others due."""
ENOUGH = 32
"""Different actions for the envs of a step, without masks."""


def check_vector(envs: VectorEnvs, *, seconds: float = SECONDS, steps: int = STEPS) -> Checked:
    """Step a vector env until some episodes have ended. Raises `UsageError`."""
    with refusing(envs.envs):
        refuse_statistics(envs.envs)
        return _VectorCheck(envs).play(Clock(seconds, steps))


class _VectorCheck:
    """Check of a vector env: its observations, and its resets at the ends of episodes."""

    def __init__(self, envs: VectorEnvs) -> None:
        self._envs, self._vector, self._mode = envs, envs.envs, envs.mode
        self._watch = Watch(envs.observations, (envs.count,))
        check_masks(envs.observations.masks, envs.action_space)
        self._sampler = Sampler(envs.actions)
        self._ends = self._resets = self._again = self._kept = 0
        leaves = envs.observations.leaves
        self._alike = np.ones(len(leaves), bool)  # which were, at all ends, as after the reset
        self._finals: list[list[np.ndarray]] = []  # as they were given, by leaf

    def play(self, clock: Clock) -> Checked:
        envs, watch = self._envs, self._watch
        notes = list(without_room(envs.actions))
        if self._mode is AutoresetMode.SAME_STEP:
            self._single(clock)
        rows, again = (self._look(try_reset(self._vector, SEED), "its reset") for _ in range(2))
        if not np.array_equal(rows, again):
            notes.append(
                "reset with the same seed gives other observations, so that a run of the same seed "
                "differs"
            )
        before = np.zeros(envs.count, bool)  # whose step is the reset after an end
        first: list[tuple[Any, np.ndarray]] = []
        while self._ends < ENDS and clock.step():
            where = f"step {clock.taken - 1}"
            action = self._draw(rows, before, where)
            obs, reward, terminated, truncated, info = self._step(action, where)
            done, rows = terminated | truncated, self._look(obs, where)
            if len(first) < FIRST:
                first.append((action, self._shown(rows, reward)))
            resets = ~done[before] & (reward[before] == 0)
            self._resets, self._again = self._resets + resets.sum(), self._again + (~resets).sum()
            done &= ~before
            if done.any():
                self._ends += int(done.sum())
                self._at(done, rows, info, where)
                if self._mode is AutoresetMode.DISABLED:
                    self._unreset(done, rows)
                    break
            if self._mode is AutoresetMode.NEXT_STEP:
                before = done
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
        notes += watch.notes.values()
        return Checked(notes, clock.taken, self._ends, watch.within)

    def _look(self, seen: Any, where: str) -> np.ndarray:
        return self._watch.look(map_leaves(on_host, seen), where)

    def _draw(self, rows: np.ndarray, before: np.ndarray, where: str) -> np.ndarray:
        envs, masks = self._envs, self._watch.observations.legal(rows)
        if masks is None:
            few = [self._sampler.draw(None, where) for _ in range(min(envs.count, ENOUGH))]
            return np.stack([few[i % ENOUGH] for i in range(envs.count)])
        # Those that are about to reset show their last state, where nothing need be legal.
        legal = [None if resets else mask for mask, resets in zip(masks, before, strict=True)]
        draw = self._sampler.draw
        return np.stack([draw(m, f"{where} in env {i}") for i, m in enumerate(legal)])

    def _step(self, action: np.ndarray, where: str) -> Any:
        given, space = self._envs.given(action), self._envs.action_space
        return self._watch.parts(try_step(self._vector, given, space, where), where)

    @staticmethod
    def _shown(rows: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """[N, numbers] what each of them showed and paid."""
        return np.column_stack([rows.reshape(len(rows), -1), reward])

    def _repeat(self, first: list[tuple[Any, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """The first steps from the first seed again, until they differ: [N] whose do, who ended."""
        self._look(try_reset(self._vector, SEED), "its reset")
        for action, shown in first:
            where = "the first steps, again"
            obs, reward, terminated, truncated, _ = self._step(action, where)
            other = (self._shown(self._look(obs, where), reward) != shown).any(-1)
            if other.any():
                break
        return other, terminated | truncated

    def _still_due(self, due: np.ndarray, first: list[tuple[Any, np.ndarray]]) -> None:
        """Next-step mode: does a reset leave those that are due after an end?

        Then only the envs in which one was due begin otherwise, and no longer once it is ended.
        (Gymnasium's AsyncVectorEnv does so without shared memory.)
        """
        other, done = self._repeat(first)
        if not other.any() or (other & ~due).any():
            return
        again, last = self._repeat(first)
        known = ~done  # in these none is due
        self._envs.owes = bool((other & known).any() and not (again & known).any())
        self._envs.due = last

    def _at(self, done: np.ndarray, rows: np.ndarray, info: Any, where: str) -> None:
        """Check info where episodes ended."""
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
        last, final = rows.copy(), map_leaves(on_host, info["final_obs"])
        self._envs.write_finals(final, done, last)
        alike = (last == rows).reshape(len(rows), -1)[done]
        self._kept += int(alike.all(-1).sum())
        leaves = self._envs.observations.leaves
        self._alike &= [alike[:, leaf.begin : leaf.end].all() for leaf in leaves]
        parts = [final_of(final, int(i)) for i in np.flatnonzero(done)]
        self._finals += [[np.asarray(leaf.of(seen)) for leaf in leaves] for seen in parts]

    def _single(self, clock: Clock) -> None:
        """Same-step mode: a final_obs is what a step of a single env returned, before its reset.

        Gymnasium keeps it as it is. Raises `UsageError` for a reset that writes over it.
        """
        made = self._vector.unwrapped
        if isinstance(made, SyncVectorEnv):
            self._refuse(_written_over(made.envs[0], clock))
        elif isinstance(made, AsyncVectorEnv):  # its envs live elsewhere: look at another one
            name = ""
            with contextlib.suppress(Exception), contextlib.closing(made.env_fns[0]()) as env:
                name = _written_over(env, clock)
            self._refuse(name)

    def _written_over(self, rows: np.ndarray) -> None:
        """Same-step mode: does a reset write over arrays that were given as final_obs?"""
        leaves, nobody = self._envs.observations.leaves, np.zeros(len(rows), bool)
        for number in range(FIRST):
            where = f"step {number} behind the last end"
            self._step(self._draw(rows, nobody, where), where)
            before = [[part.copy() for part in parts] for parts in self._finals]
            rows = self._look(try_reset(self._vector, SEED + number), "its reset")
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

    def _unreset(self, done: np.ndarray, rows: np.ndarray) -> None:
        """Disabled mode: does it wait for us, and does it then reset these envs alone?"""
        following = self._look(self._envs.reset_some(done), "reset with a reset_mask")
        if not np.array_equal(following[~done], rows[~done]):
            self._mismatch("reset with a reset_mask moves envs that the mask leaves out")
        if np.array_equal(following[done], rows[done]):
            self._mismatch("reset with a reset_mask leaves the envs where they ended")

    def _mismatch(self, seen: str) -> None:
        raise UsageError(
            f"its metadata declare autoreset_mode {self._mode.value}, but {seen}. Declare what it "
            "does: " + ", ".join(mode.value for mode in AutoresetMode)
        )


def _written_over(env: Env[Any, Any], clock: Clock) -> str:
    """The first leaf of an observation over whose array a later reset writes, or nothing."""
    alone = SyncEnvs([env], 0)
    observations, sampler = alone.observations, Sampler(alone.actions)
    for number in range(FIRST):
        seen = try_reset(env, SEED)
        for step in range(number + 1):
            where = f"step {step} of an env alone"
            action = sampler.draw(observations.legal(observations.row(seen)), where)
            given = alone.actions.given(action)
            seen, _, terminated, truncated, _ = try_step(env, given, alone.action_space, where)
            if terminated or truncated:
                break
        parts = [np.asarray(leaf.of(seen)) for leaf in observations.leaves]
        before = [part.copy() for part in parts]
        try_reset(env, SEED + number)
        for leaf, one, other in zip(observations.leaves, before, parts, strict=True):
            if not np.array_equal(one, other):
                return leaf.name
        if clock.over:
            break
    return ""
