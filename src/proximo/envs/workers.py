"""Single envs in processes of their own: for envs that are slow, and for those that crash.

An env that raises, hangs, dies or answers nonsense begins a new episode, and this update leaves out
what it has seen of the old one. The other envs of a lost process are replayed. The data are the
same to the bit as those of envs in the trainer, however many processes there are. Of many, one half
steps while the policy acts in the envs of the other.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from proximo.envs.base import NUMBERED, REPLAYED, Envs, Maker, by_step, episode_seed
from proximo.envs.config import EnvConfig, cores
from proximo.envs.processes import BEGIN, MAP, STEP, Failure, Process, Shared, WorkerDied
from proximo.envs.supervisor import GRACE_SECONDS
from proximo.envs.watch import Checked
from proximo.errors import UsageError
from proximo.imports import find, name_of
from proximo.spaces import recorded_space
from proximo.types import FLAGS, EnvState, RolloutBuffer

START_SECONDS = 120.0
"""Time in which a process must have made its envs."""
RESTART_STEPS = 10_000
"""Steps within which an env may fail `env.restarts` times."""
SPLIT = 8
"""Processes from which it pays to step them in two halves: the trainer needs some 25 µs for each of
them, and hides a half of that and of acting, but waits twice."""
LostEnvs = dict[int, Failure | None]
"""Envs that are lost, and why; None: by no fault of theirs, with a process."""
_Running = tuple[list[int], LostEnvs]
"""Processes that carry out a command, and the envs of those that could not be started for it."""
Log = Callable[[int], Sequence[np.ndarray] | None]
"""The actions in an env since it began: [n][A, ...]; None where not all are known."""


class WorkerEnvs(Envs):
    """W single envs with seeds of their own: row w*A + a is agent a of env w."""

    replayable = True

    def __init__(self, env: EnvConfig, seed: int, source: Maker | None = None) -> None:
        """Raises `UsageError` for envs that cannot be made there, and for a lack of memory."""
        if os.name != "posix":
            raise UsageError("env.backend is workers, which needs Linux or macOS: use sync")
        name = env.id if source is None else _importable(source)
        self._env, self._seed, self._source = env, seed, source
        self.stagger = env.stagger
        self._steps = 0
        self._failures: dict[str, deque[int]] = {}  # the steps at which each of them failed
        self._parts: list[RolloutBuffer] = []  # since `remember`
        self._path, self._folder = list(sys.path), os.getcwd()
        size = min(env.processes or cores(), env.num_envs)
        ends = [env.num_envs * k // size for k in range(size + 1)]
        self._envs_of = [range(*pair) for pair in itertools.pairwise(ends)]
        self._process_of = [k for k, envs in enumerate(self._envs_of) for _ in envs]
        self._running: dict[int, _Running] = {}  # by group
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
        self._processes: dict[int, Process] = {}
        try:
            self._made = self._launch(range(size))
            spaces = [recorded_space(record) for record in self._made["spaces"]]
            self.agents, self.names = self._made["agents"], tuple(self._made["names"])
            super().__init__(env.num_envs * self.agents, *spaces)
            edges = [end * self.agents for end in halves(ends)]
            self.groups = tuple(slice(*pair) for pair in itertools.pairwise(edges))
            self._shared = Shared(self._memory, spaces, env.num_envs, self.agents, size)
        except BaseException as error:
            self.close()
            if isinstance(error, WorkerDied):
                raise _failed(f"no env was made: {error}", error.failure) from error
            if isinstance(error, OSError):
                raise UsageError(
                    f"there is no memory to share with the processes of {env.num_envs} envs "
                    f"({error}): fewer env.num_envs need less"
                ) from error
            raise
        self._shared.busy_env[:] = -1
        for process in self._processes.values():
            process.send(MAP)

    def _launch(self, which: Iterable[int]) -> dict[str, Any]:
        """Start processes; returns the description of their envs. Raises `WorkerDied`."""
        for k in which:
            envs = self._envs_of[k]
            order = {**self._order, "process": k, "envs": [envs.start, envs.stop]}
            self._processes[k] = Process(order, self._path, self._folder)
        answers = [self._processes[k].answer(max(START_SECONDS, self._env.timeout)) for k in which]
        for answer in answers:
            if "error" in answer:
                raise UsageError(f"in a process of its own: {answer['error']}")
            if answer != answers[0]:
                raise UsageError(f"the envs are not alike: {answers[0]}, but also {answer}")
        return answers[0]

    def apart(self) -> Envs:
        if self._apart is None:
            env = dataclasses.replace(self._env, num_envs=1, processes=1, stagger=False)
            self._apart = apart = WorkerEnvs(env, NUMBERED, self._source)
            apart.report = lambda text, trace: self.report(f"evaluating: {text}", trace)
        return self._apart

    def check(self) -> Checked:
        process = Process(self._order, self._path, self._folder)
        try:
            answer = process.answer(max(START_SECONDS, self._env.timeout))
        except WorkerDied as died:
            raise _failed(f"an env that was played apart: {died}", died.failure) from died
        finally:
            process.end(0)
        if "error" in answer:
            raise UsageError(answer["error"])
        return Checked(**answer)

    def _relaunch(self, k: int) -> None:
        """Start process k again. Raises `WorkerDied` and `UsageError`."""
        self._shared.busy_env[k] = -1
        try:
            made = self._launch([k])
            if made != self._made:
                raise UsageError(f"its envs are no longer alike: {made}")
        except (WorkerDied, UsageError):
            if process := self._processes.pop(k, None):
                process.end(0)
            raise
        self._processes[k].send(MAP)

    def _do(self, command: bytes, envs: Sequence[int]) -> LostEnvs:
        """Run a command in these envs, in all processes at once; returns the envs lost by it."""
        return self._answers(self._command(command, envs))

    def _command(self, command: bytes, envs: Sequence[int]) -> _Running:
        """Send a command for these envs to their processes, all of which are idle."""
        shared, running, lost_envs = self._shared, list[int](), LostEnvs()
        processes = sorted({self._process_of[env] for env in envs})
        for k in processes:
            shared.active[self._envs_of[k]] = False
        shared.active[envs] = True
        for k in processes:
            try:
                if k not in self._processes:
                    self._relaunch(k)
                running.append(k)
            except (WorkerDied, UsageError) as error:
                self._lose(k, Failure(f"not started again: {error}"), lost_envs)
        for k in running:
            self._processes[k].send(command)
        return running, lost_envs

    def _answers(self, command: _Running) -> LostEnvs:
        """Wait until a command is carried out; returns the envs lost by it."""
        running, lost_envs = command
        for k in running:
            heartbeat = partial(self._shared.heartbeat.item, k)
            try:
                answer = self._processes[k].answer(self._env.timeout, heartbeat)
                for env, failure in answer["failures"].items():
                    lost_envs[int(env)] = Failure(*failure)
            except WorkerDied as died:
                del self._processes[k]
                self._lose(k, died.failure, lost_envs)
        return lost_envs

    def _lose(self, k: int, failure: Failure, lost_envs: LostEnvs) -> None:
        """All envs of a process that died are lost: by the fault of the one it stepped, or none."""
        envs, busy = self._envs_of[k], int(self._shared.busy_env[k])
        lost_envs |= dict.fromkeys(envs)
        if busy >= 0:
            lost_envs[busy] = failure
        else:
            self._count(f"the process of envs {envs.start} to {envs.stop - 1}", "", failure)

    def _count(self, who: str, where: str, failure: Failure) -> None:
        """Report a failure. Raises `UsageError` if it is one too many."""
        past, limit = self._failures.setdefault(who, deque()), self._env.restarts
        past.append(self._steps)
        while past[0] <= self._steps - RESTART_STEPS:
            past.popleft()
        text, within = f"{who}{where}: {failure.what}", f"in {RESTART_STEPS:,} steps"
        if len(past) > limit:
            text += f". It may fail {limit} times {within} (env.restarts), and has"
            raise _failed(text, failure)
        self.report(f"{text}. Restart {len(past)} of {limit} {within}", failure.trace)

    def _begin(self, state: EnvState, begun: np.ndarray) -> np.ndarray:
        first = not len(state.obs)
        self._shared.episode[:] = state.episode
        lost_envs = self._do(BEGIN, np.flatnonzero(begun[:: self.agents]).tolist())
        for env, failure in lost_envs.items():
            if first and failure:
                raise _failed(f"env {env} failed at its first reset: {failure.what}", failure)
        self._recover(lost_envs, set(), state, lambda env: [])
        obs: np.ndarray = self._shared.obs[1].astype(self.observations.dtype)
        if not first:
            obs[~begun] = state.obs[~begun]
        return obs

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        for group in range(len(self.groups)):
            self.send(buffer, t, group)
        for group in range(len(self.groups)):
            self.receive(state, buffer, t, group)

    def send(self, buffer: RolloutBuffer, t: int, group: int) -> None:
        if not self._parts or self._parts[-1] is not buffer:
            self._parts.append(buffer)
        rows = self.groups[group]
        envs = range(rows.start // self.agents, rows.stop // self.agents)
        self._running[group] = self._step(buffer.env_action[t], rows, envs)

    def _step(self, env_action: np.ndarray, rows: slice, envs: Sequence[int]) -> _Running:
        """Begin a step of these envs, whose actions are in these rows."""
        self._shared.env_action[0, rows] = env_action[rows]
        return self._command(STEP, envs)

    def receive(self, state: EnvState, buffer: RolloutBuffer, t: int, group: int) -> None:
        self._steps += not group
        shared, rows, cut = self._shared, self.groups[group], set[int]()
        lost_envs = self._answers(self._running.pop(group))
        while lost_envs:
            self._recover(lost_envs, cut, state, partial(self._log, state, t), buffer.obs[t])
            left = [env for env in lost_envs if env not in cut]
            lost_envs = self._answers(self._step(buffer.env_action[t], rows, left))
        for name in ("reward", *FLAGS):
            getattr(buffer, name)[t, rows] = getattr(shared, name)[0, rows]
        buffer.obs[t + 1, rows] = shared.obs[1, rows]
        for i in np.flatnonzero(shared.done[0, rows]) + rows.start:
            buffer.final_obs.append((t, int(i), shared.final[i].astype(buffer.obs.dtype)))
        state.episode[rows] = shared.episode[rows]
        for env in cut:
            self._discard(env, t)

    def _recover(
        self, lost_envs: LostEnvs, cut: set[int], state: EnvState, log: Log, obs: Any = None
    ) -> None:
        """Bring lost envs back to where they stood; those at fault begin a new episode: `cut`.

        obs: the observations then, to compare. More envs may be lost on the way: they are added.
        """
        shared, todo = self._shared, dict(lost_envs)

        def give_up(env: int, why: str = "") -> None:
            if why:
                self.report(f"env {env} {why}", "")
            cut.add(env)
            state.episode[self._rows(env)] += 1

        while todo:
            for env, failure in todo.items():
                if failure:
                    self._blame(env, failure, state, None if env in cut else log)
                    give_up(env)
            for env in todo:
                if env not in cut and log(env) is None:
                    why = f"was lost with its process after more than {REPLAYED:,} steps of an "
                    give_up(env, why + "episode, which are not replayed: it begins a new one")
                shared.episode[self._rows(env)] = state.episode[self._rows(env)]
            logs = {env: log(env) or () for env in todo if env not in cut}
            if failed := self._do(BEGIN, list(todo)) or self._replay(logs):
                todo = {**dict.fromkeys(todo), **failed}
                lost_envs |= todo
                continue
            strange = [env for env in logs if obs is not None and not self._shows(env, obs)]
            for env in strange:
                give_up(env, "does not come back by its seed and actions")
            todo = dict.fromkeys(strange)

    def _blame(self, env: int, failure: Failure, state: EnvState, log: Log | None) -> None:
        """Count a failure of an env. log: None where it has begun a new episode already."""
        rows = self._rows(env)
        episode = int(self._shared.episode[rows.start])  # perhaps it was the next
        actions = log(env) if log and episode == state.episode[rows.start] else ()
        where = f"after {len(actions)} steps of" if actions else "at the beginning of"
        if actions is None:
            where = f"after more than {REPLAYED:,} steps of"
        seed = episode_seed(self._seed, env, episode)
        where = f" failed {where} its episode {episode} (seed {seed})"
        self._count(f"env {env}", where, failure)
        state.episode[rows] = episode

    def _shows(self, env: int, obs: np.ndarray) -> bool:
        """The observation of an env is this one."""
        rows = self._rows(env)
        return np.array_equal(self._shared.obs[1, rows].astype(obs.dtype), obs[rows])

    def _replay(self, logs: Mapping[int, Sequence[np.ndarray]]) -> LostEnvs:
        """Step every env by its logged actions. Returns those that are lost by it."""
        for t in range(max(map(len, logs.values()), default=0)):
            active = [env for env, log in logs.items() if t < len(log)]
            for env in active:
                self._shared.env_action[0, self._rows(env)] = logs[env][t]
            if lost_envs := self._do(STEP, active):
                return lost_envs
        return {}

    def _log(self, state: EnvState, t: int, env: int) -> Sequence[np.ndarray] | None:
        """[n][A, ...] actions since an env began, up to row t; None: they are no longer kept."""
        rows = self._rows(env)
        log, known = by_step(state, rows), self.remembered(state)[rows.start]
        for part in self._parts:
            begin = int(self._begins(part)[rows.start])
            if begin:
                log, known = [], True
            end = t if part is self._parts[-1] else len(part)
            log += list(part.env_action[begin:end, rows])
        return log if known else None

    def _discard(self, env: int, t: int) -> None:
        """Mask the episode that was cut in row t: nothing of it in these steps counts."""
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

    def _bring_back(self, state: EnvState) -> bool:
        self._shared.episode[:] = state.episode
        envs = range(self._env.num_envs)
        logs = {env: by_step(state, self._rows(env)) for env in envs}
        lost_envs = self._do(BEGIN, envs) or self._replay(logs)
        for env, failure in lost_envs.items():
            if failure:
                self._count(f"env {env}", " failed while its episode was replayed", failure)
        return not lost_envs and all(self._shows(env, state.obs) for env in envs)

    def _close(self) -> list[str]:
        for process in self._processes.values():
            process.hang_up()
        until = time.monotonic() + GRACE_SECONDS
        while self._processes:
            self._processes.popitem()[1].end(max(0.0, until - time.monotonic()))
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        return []


def halves(ends: Sequence[int]) -> list[int]:
    """Edges of the envs that step by turns, of those between the processes: 0, ..., num_envs.

    Whole processes: two halves cost no more commands, and a process that dies loses only its own.
    """
    size = len(ends) - 1
    return [0, *([ends[size // 2]] if size >= SPLIT else []), ends[-1]]


def _failed(text: str, failure: Failure) -> UsageError:
    error = UsageError(text)
    if failure.trace:
        error.add_note(f"In the process of the env:\n{failure.trace}")
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
