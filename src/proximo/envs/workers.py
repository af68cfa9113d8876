"""Single envs in processes of their own, under supervision.

For envs that are slow, and for those that crash. An env that raises, hangs, dies or answers
nonsense begins a new episode, and what this update has seen of the old one is left out; the others
in a process that is lost are brought back by their seeds and actions. What is learned from is the
same to the bit, however many processes there are, and the same as that of envs in the trainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from proximo.envs.check import Checked
from proximo.envs.config import EnvConfig
from proximo.envs.make import REPLAYED, Envs, Maker, cores, episode_seed
from proximo.envs.processes import BEGIN, MAP, STEP, Fault, Gone, Process, Shared
from proximo.envs.supervisor import GRACE
from proximo.errors import UsageError
from proximo.named import find, name_of
from proximo.spaces import recorded_space
from proximo.types import EnvState, RolloutBuffer

START = 120.0
"""Seconds in which a process must have made its envs."""
SPAN = 10_000
"""Steps within which an env may fail `env.restarts` times."""
Lost = dict[int, Fault | None]
"""Envs that are lost, and why; None: by no fault of theirs, with a process."""


class WorkerEnvs(Envs):
    """W single envs, each with seeds of its own, spread over processes.

    Row w*A + a is agent a of env w; A is 1 but for PettingZoo's.
    """

    replayable = True

    def __init__(self, env: EnvConfig, seed: int, source: Maker | None = None) -> None:
        """Raises `UsageError` for envs that cannot be made there, and for a lack of memory."""
        if os.name != "posix":
            raise UsageError("env.backend is workers, which needs Linux or macOS: use sync")
        name = env.id if source is None else _importable(source)
        self._env, self._seed = env, seed
        self.report: Callable[[str, str], None] = lambda text, trace: None
        """Told of every fault that is mended: in words, and where in the env it came from."""
        self._clock = 0
        self._charged: dict[str, deque[int]] = {}  # when each of them failed
        self._parts: list[RolloutBuffer] = []  # since `remember`
        self._path, self._folder = list(sys.path), os.getcwd()
        size = min(env.processes or cores(), env.num_envs)
        ends = [env.num_envs * k // size for k in range(size + 1)]
        self._spread = [range(*pair) for pair in itertools.pairwise(ends)]
        self._home = [k for k, own in enumerate(self._spread) for _ in own]
        self._memory = _memory()
        self._order = {
            "env": dataclasses.asdict(
                dataclasses.replace(env, id=name, backend="sync", num_envs=1)
            ),
            "seed": seed,
            "memory": self._memory,
            "trainer": os.getpid(),
            "count": env.num_envs,
            "processes": size,
        }
        self._processes: list[Process | None] = [None] * size
        try:
            self._made = self._launch(range(size))
            spaces = [recorded_space(record) for record in self._made["spaces"]]
            self.agents, self.names = self._made["agents"], tuple(self._made["names"])
            super().__init__(env.num_envs * self.agents, *spaces)
            self._shared = Shared(self._memory, spaces, env.num_envs, self.agents, size)
        except Gone as lost:
            self.close()
            raise _failure(f"no env was made: {lost}", lost.fault) from lost
        except OSError as error:
            self.close()
            raise UsageError(
                f"there is no memory to share with the processes of {env.num_envs} envs ({error}): "
                "fewer env.num_envs need less"
            ) from error
        except BaseException:
            self.close()
            raise
        self._shared.doing[:] = -1
        for process in self._processes:
            assert process
            process.tell(MAP)

    def _launch(self, which: Iterable[int]) -> dict[str, Any]:
        """New processes; what each of them says of its envs. Raises `Gone` and `UsageError`."""
        for k in which:
            own = self._spread[k]
            order = {**self._order, "process": k, "envs": [own.start, own.stop]}
            self._processes[k] = Process(order, self._path, self._folder)
        found: list[dict[str, Any]] = []
        for k in which:
            process = self._processes[k]
            assert process
            found.append(process.answer(max(START, self._env.timeout)))
            if "error" in found[-1]:
                raise UsageError(f"in a process of its own: {found[-1]['error']}")
            if found[-1] != found[0]:
                raise UsageError(f"the envs are not alike: {found[0]}, but also {found[-1]}")
        return found[0]

    def check(self) -> Checked:
        """Play an env apart for a moment, in a process of its own.

        Raises `UsageError` for one that cannot be trained in.
        """
        process = Process(self._order, self._path, self._folder)
        try:
            found = process.answer(max(START, self._env.timeout))
        except Gone as gone:
            raise _failure(f"an env that was played apart: {gone}", gone.fault) from gone
        finally:
            process.end(0)
        if "error" in found:
            raise UsageError(found["error"])
        return Checked(**found)

    def _relaunch(self, k: int) -> None:
        """Process k again, where it is gone. Raises `Gone` and `UsageError`."""
        self._shared.doing[k] = -1
        try:
            made = self._launch([k])
            if made != self._made:
                raise UsageError(f"its envs are no longer alike: {made}")
        except (Gone, UsageError):
            self._end(k)
            raise
        process = self._processes[k]
        assert process
        process.tell(MAP)

    def _end(self, k: int, seconds: float = 0) -> None:
        process, self._processes[k] = self._processes[k], None
        if process:
            process.end(seconds)

    def _rows(self, env: int) -> slice:
        return slice(env * self.agents, (env + 1) * self.agents)

    def _do(self, command: bytes, envs: Sequence[int]) -> Lost:
        """Let these envs do it, all processes at once; returns those that are lost by it.

        Raises `UsageError` when a process has failed once too often.
        """
        shared, lost = self._shared, Lost()
        shared.active[:] = False
        shared.active[envs] = True
        busy = sorted({self._home[env] for env in envs})
        for k in busy:
            try:
                if not self._processes[k]:
                    self._relaunch(k)
            except (Gone, UsageError) as error:
                self._lose(k, Fault(f"not started again: {error}"), lost)
        running = [(k, process) for k in busy if (process := self._processes[k])]
        for _, process in running:
            process.tell(command)
        for k, process in running:
            beat = partial(shared.beat.item, k)
            try:
                faults = process.answer(self._env.timeout, beat).get("faults", {})
                lost |= {int(env): Fault(*fault) for env, fault in faults.items()}
            except Gone as gone:
                self._processes[k] = None
                self._lose(k, gone.fault, lost)
        return lost

    def _lose(self, k: int, fault: Fault, lost: Lost) -> None:
        """Process k is gone, and all of its envs with it: by one of them, or by none."""
        own, culprit = self._spread[k], int(self._shared.doing[k])
        lost |= dict.fromkeys(own)
        if culprit >= 0:
            lost[culprit] = fault
        else:
            self._charge(f"the process of envs {own.start} to {own.stop - 1}", "", fault)

    def _charge(self, who: str, where: str, fault: Fault) -> None:
        """Report a fault. Raises `UsageError` if it is one too many."""
        past, limit = self._charged.setdefault(who, deque()), self._env.restarts
        past.append(self._clock)
        while past[0] <= self._clock - SPAN:
            past.popleft()
        text = f"{who}{where}: {fault.what}"
        if len(past) > limit:
            raise _failure(
                f"{text}. It may fail {limit} times in {SPAN:,} steps (env.restarts), and has",
                fault,
            )
        self.report(f"{text}. Restart {len(past)} of {limit} in {SPAN:,} steps", fault.trace)

    def fresh(self, state: EnvState) -> None:
        first = not len(state.obs)
        begun = (state.length > 0).reshape(-1, self.agents).any(-1)
        if not begun.any():
            return
        rows = np.repeat(begun, self.agents)
        state.episode += rows
        state.ret[rows] = state.length[rows] = 0
        for i in np.flatnonzero(rows):
            state.actions[i] = []
        self._shared.episode[:] = state.episode
        lost = self._do(BEGIN, np.flatnonzero(begun).tolist())
        for env, fault in lost.items():
            if first and fault:
                raise _failure(f"env {env} failed at its first reset: {fault.what}", fault)
        self._recover(lost, set(), state, lambda env: [])
        obs = self._shared.obs[1].astype(self.observations.dtype)
        if not first:
            obs[~rows] = state.obs[~rows]
        state.obs = obs

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        if not self._parts or self._parts[-1] is not buffer:
            self._parts.append(buffer)
        self._clock += 1
        shared, left, cut = self._shared, list(range(self._env.num_envs)), set[int]()
        while left:
            shared.env_action[0] = buffer.env_action[t]
            lost = self._do(STEP, left)
            self._recover(lost, cut, state, partial(self._log, state, t), buffer.obs[t])
            left = [env for env in lost if env not in cut]
        for name in ("reward", "terminated", "done", "valid"):
            getattr(buffer, name)[t] = getattr(shared, name)[0]
        buffer.obs[t + 1] = shared.obs[1]
        for i in np.flatnonzero(shared.done[0]):
            buffer.final_obs.append((t, int(i), shared.final[i].astype(buffer.obs.dtype)))
        state.episode[:] = shared.episode
        for env in cut:
            self._leave_out(env, t)

    def _recover(
        self,
        lost: Lost,
        cut: set[int],
        state: EnvState,
        log: Callable[[int], Sequence[np.ndarray] | None],
        obs: np.ndarray | None = None,
    ) -> None:
        """Bring lost envs back to where they stood; those at fault begin a new episode: `cut`.

        log: what was done in an env since it began, if all of it is known; obs: what was seen
        then, to compare. More envs may be lost on the way: they are added.
        """
        shared, todo = self._shared, dict(lost)
        while todo:
            for env, fault in todo.items():
                if fault:
                    episode = int(shared.episode[env * self.agents])  # perhaps it was the next
                    goes_on = env not in cut and episode == state.episode[env * self.agents]
                    done = log(env) if goes_on else ()
                    where = f"after {len(done)} steps of" if done else "at the beginning of"
                    if done is None:
                        where = f"after more than {REPLAYED:,} steps of"
                    seed = episode_seed(self._seed, env, episode)
                    self._charge(
                        f"env {env}",
                        f" failed {where} its episode {episode} (seed {seed})",
                        fault,
                    )
                    cut.add(env)
                    state.episode[self._rows(env)] = episode + 1
            for env in todo:
                if env not in cut and log(env) is None:
                    self.report(
                        f"env {env} was lost with its process after more than {REPLAYED:,} "
                        "steps of an episode, which are not replayed: it begins a new one",
                        "",
                    )
                    cut.add(env)
                    state.episode[self._rows(env)] += 1
                shared.episode[self._rows(env)] = state.episode[self._rows(env)]
            logs = {env: log(env) or () for env in todo if env not in cut}
            if failed := self._do(BEGIN, list(todo)) or self._replay(logs):
                todo = {**dict.fromkeys(todo), **failed}
                lost |= todo
                continue
            strange = [env for env in logs if obs is not None and not self._shows(env, obs)]
            for env in strange:
                self.report(f"env {env} does not come back by its seed and actions", "")
                cut.add(env)
                state.episode[self._rows(env)] += 1
            todo = dict.fromkeys(strange)

    def _shows(self, env: int, obs: np.ndarray) -> bool:
        rows = self._rows(env)
        return np.array_equal(self._shared.obs[1, rows].astype(obs.dtype), obs[rows])

    def _replay(self, logs: dict[int, Sequence[np.ndarray]]) -> Lost:
        """Do again in every env what its log says. Returns those that are lost by it."""
        for t in range(max(map(len, logs.values()), default=0)):
            active = [env for env, log in logs.items() if t < len(log)]
            for env in active:
                self._shared.env_action[0, self._rows(env)] = logs[env][t]
            if lost := self._do(STEP, active):
                return lost
        return Lost()

    def _log(self, state: EnvState, t: int, env: int) -> Sequence[np.ndarray] | None:
        """[n][A, ...] the actions since an env began, up to row t of the latest steps.

        None where they are no longer kept.
        """
        rows, first = self._rows(env), env * self.agents
        log, known = _by_step(state, rows), self.remembered(state)[first]
        for part in self._parts:
            begin = int(self._begins(part)[first])
            if begin:
                log, known = [], True
            end = t if part is self._parts[-1] else len(part)
            log += list(part.env_action[begin:end, rows])
        return log if known else None

    def _leave_out(self, env: int, t: int) -> None:
        """An episode was cut in row t: nothing of it in these steps counts."""
        rows = self._rows(env)
        for i in range(rows.start, rows.stop):
            end = t + 1
            for part in reversed(self._parts):
                begin = max((at + 1 for at, j, _ in part.final_obs if j == i), default=0)
                part.valid[begin:end, i] = False
                if begin:
                    break
                end = len(part)
            buffer = self._parts[-1]
            buffer.final_obs.append((t, i, buffer.obs[t, i].copy()))

    def remember(self, state: EnvState, buffer: RolloutBuffer) -> None:
        super().remember(state, buffer)
        self._parts.clear()

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        # An env begins anew behind the step at which nobody in it is left.
        gone = (buffer.done | ~buffer.valid).reshape(len(buffer), -1, self.agents).all(-1)
        behind = np.arange(1, len(buffer) + 1)[:, None]
        return np.repeat((gone * behind).max(0), self.agents)

    def _bring_back(self, state: EnvState) -> bool:
        self._shared.episode[:] = state.episode
        envs = range(self._env.num_envs)
        lost = self._do(BEGIN, envs)
        lost = lost or self._replay({i: _by_step(state, self._rows(i)) for i in envs})
        for env, fault in lost.items():
            if fault:
                self._charge(f"env {env}", " failed while its episode was replayed", fault)
        return not lost and all(self._shows(env, state.obs) for env in envs)

    def close(self) -> list[str]:
        for process in self._processes:
            if process:
                process.hang_up()
        until = time.monotonic() + GRACE
        for k in range(len(self._processes)):
            self._end(k, max(0.0, until - time.monotonic()))
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        return []


def _by_step(state: EnvState, rows: slice) -> list[np.ndarray]:
    """The actions in some rows since these began: [n][A, ...]."""
    logs = [np.concatenate(log) for log in state.actions[rows] if log]
    return list(np.stack(logs, 1)) if logs else []


def _failure(text: str, fault: Fault) -> UsageError:
    error = UsageError(text)
    if fault.trace:
        error.add_note(f"In the process of the env:\n{fault.trace}")
    return error


def _memory() -> int:
    """The descriptor of an empty file without a name: in memory, where the system has such."""
    if sys.platform == "linux":
        return os.memfd_create("proximo")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _importable(source: Maker) -> str:
    """The name by which another process finds what makes the env. Raises `UsageError`."""
    with contextlib.suppress(AttributeError, UsageError):  # without a name, or not by that name
        name = name_of(source)
        if not name.startswith("__main__:") and find(name) == source:
            return name
    raise UsageError(
        f"env.backend is workers, whose processes import the env by its name, but {source} has "
        "none: define it in a module (not in the script that is run, nor in a function), or use "
        "sync"
    )
