"""A process that steps some envs: the envs in it, and the trainer's end of its pipes.

The trainer and its processes share one row of `RolloutBuffer` in memory without a name. Through
their pipes go one byte for a command and a line of JSON for an answer; tracebacks have a pipe of
their own, so that a signal at any moment leaves the answers whole.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from proximo.envs.config import EnvConfig
from proximo.envs.make import Envs, Space, make_env, make_envs
from proximo.envs.supervisor import GRACE, MEANT_FOR_TRAINER
from proximo.errors import UsageError, explain, faults
from proximo.spaces import Actions, Observations, space_record
from proximo.types import RolloutBuffer

MAP, BEGIN, STEP = b"m", b"b", b"s"
"""What a process is told: the memory stands; begin an episode in some envs; step some of them."""
CODE = """
import sys
words, sys.path[:] = int(sys.argv[1]), sys.argv[2:]
from proximo.envs.supervisor import supervise
supervise(words)
from proximo.envs.processes import work
work()
"""


class Fault(NamedTuple):
    """Why an env is lost."""

    what: str
    trace: str = ""


class Gone(Exception):
    """A process that is dead, or no longer answers."""

    def __init__(self, what: str, trace: str = "") -> None:
        super().__init__(what)
        self.fault = Fault(what, trace)


class Shared:
    """One row of the `RolloutBuffer` of all envs, and what else their processes share."""

    def __init__(
        self, memory: int, spaces: Sequence[Space], num_envs: int, agents: int, processes: int
    ) -> None:
        """memory: the descriptor of a file. An empty one is filled, so that it cannot run out."""
        seen, acts = Observations(spaces[0]), Actions(spaces[1])
        # Wide enough for whatever the trainer keeps them in.
        kind = np.uint8 if seen.dtype == np.uint8 else np.float64
        rows = num_envs * agents
        plan: list[tuple[str, tuple[int, ...], Any]] = [
            ("obs", (2, rows, *seen.shape), kind),
            ("final", (rows, *seen.shape), kind),
            ("env_action", (1, rows, *(acts.shape or ())), acts.dtype),
            ("reward", (1, rows), np.float64),
            *((name, (1, rows), np.bool_) for name in ("terminated", "done", "valid")),
            ("episode", (rows,), np.int64),
            ("active", (num_envs,), np.bool_),  # which envs a command is for
            ("doing", (processes,), np.int64),  # the env that is being stepped, or -1
            ("beat", (processes,), np.int64),  # moves with every env
        ]
        begins, size = [], 0
        for _, shape, dtype in plan:
            begins.append(size)
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64
        if not os.fstat(memory).st_size:
            with open(memory, "wb", closefd=False) as file:
                file.write(bytes(size))
        self._map = mmap.mmap(memory, size)
        for (name, shape, dtype), begin in zip(plan, begins, strict=True):
            flat: np.ndarray = np.frombuffer(self._map, dtype, int(np.prod(shape)), begin)
            setattr(self, name, flat.reshape(shape))

    obs: np.ndarray
    final: np.ndarray
    env_action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    valid: np.ndarray
    episode: np.ndarray
    active: np.ndarray
    doing: np.ndarray
    beat: np.ndarray

    def steps(self, rows: slice) -> RolloutBuffer:
        """The row of some of them."""
        nothing = np.empty(0)
        names = ("obs", "env_action", "reward", "terminated", "done", "valid")
        views = {name: getattr(self, name)[:, rows] for name in names}
        return RolloutBuffer(action=nothing, parameters=nothing, final_obs=[], **views)


# In the process of the envs


class _Env:
    """One env, and its row in the memory that is shared."""

    def __init__(self, make: Callable[[], Envs], number: int) -> None:
        self._make, self._number = make, number
        self._envs, self._broken = make(), False
        self.agents, self.names = self._envs.agents, self._envs.names
        self.spaces = self._envs.obs_space, self._envs.action_space

    def share(self, shared: Shared) -> None:
        first = self._number * self.agents
        self._rows, self._shared = slice(first, first + self.agents), shared
        self._steps = shared.steps(self._rows)

    def do(self, command: bytes) -> None:
        """Whatever the env raises is raised."""
        buffer = self._steps
        buffer.terminated[:], buffer.done[:], buffer.valid[:] = False, False, True
        buffer.final_obs.clear()
        try:
            if command == BEGIN:
                self._begin()
            else:
                self._envs.step(self._state, buffer, 0)
            self._look()
        except faults():
            self._broken = True
            raise
        for _, i, obs in buffer.final_obs:
            self._shared.final[self._rows][i] = obs

    def _begin(self) -> None:
        if self._broken:  # another one in its place
            self.close()
            self._envs, self._broken = self._make(), False
        episode = self._shared.episode[self._rows]
        self._state = self._envs.start(int(episode[0]))
        self._state.episode = episode  # the trainer sees which one it is, even if this is the end
        self._steps.obs[1] = self._state.obs
        self._steps.reward[:] = 0

    def _look(self) -> None:
        """Raises `UsageError` for what is not finite."""
        buffer = self._steps
        whom = [f"agent {name} " for name in self.names] or [""]
        for agent, reward in zip(whom, buffer.reward[0], strict=True):
            if not np.isfinite(reward):
                raise UsageError(f"it gave {agent}the reward {reward}")
        for i, obs in (*enumerate(buffer.obs[1]), *((i, obs) for _, i, obs in buffer.final_obs)):
            if not np.isfinite(obs).all():
                what = self._envs.observations.not_finite(obs)
                raise UsageError(f"it gave {whom[i]}{what}")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._envs.close()


def work() -> None:
    """The process of some envs: make them, then do as told until the trainer is gone."""
    Process.inside = True
    commands, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # an env may print, and must not answer in our place
    order = json.loads(commands.readline())

    def answer(**words: Any) -> None:
        text = json.dumps(words).encode() + b"\n"
        while text:
            text = text[os.write(answers, text) :]

    env = EnvConfig(**{**order["env"], "wrappers": tuple(order["env"]["wrappers"])})
    if "envs" not in order:
        answer(**_check(env))
        return
    first, last = order["envs"]

    def make(number: int) -> Callable[[], Envs]:
        return lambda: make_envs(env, order["seed"], first=number)

    try:
        envs = {i: _Env(make(i), i) for i in range(first, last)}
        records = [space_record(space) for space in envs[first].spaces]
    except faults() as error:
        answer(error=str(error) if isinstance(error, UsageError) else explain(error))
        return
    one = envs[first]
    answer(agents=one.agents, names=one.names, spaces=records)
    if commands.read(1) != MAP:
        return
    me = order["process"]
    shared = Shared(order["memory"], one.spaces, order["count"], one.agents, order["processes"])
    for one_env in envs.values():
        one_env.share(shared)
    while command := commands.read(1):
        failed = {}
        for i in np.flatnonzero(shared.active[first:last]) + first:
            shared.beat[me] += 1
            shared.doing[me] = i
            try:
                envs[i].do(command)
            except faults() as error:
                what = str(error) if isinstance(error, UsageError) else explain(error)
                failed[int(i)] = [what, traceback.format_exc()]
        shared.doing[me] = -1
        answer(**({"faults": failed} if failed else {}))
    for one_env in envs.values():
        one_env.close()


def _check(env: EnvConfig) -> dict[str, Any]:
    """What is found in an env apart."""
    from proximo.envs.check import Checked, check_env

    try:
        one_env = make_env(env)
    except UsageError as error:  # perhaps there can be no more of them
        note = f"not checked, for one apart cannot be made ({error})"
        return Checked([note], 0, 0, replayable=True, within=False)._asdict()
    try:
        return check_env(one_env)._asdict()
    except UsageError as error:
        return {"error": str(error)}


# In the trainer


class Process:
    """A process, its supervisor and the pipes to it. No call waits for longer than it is told."""

    inside = False
    """This is such a process itself."""

    def __init__(self, order: dict[str, Any], path: list[str], folder: str) -> None:
        """Raises `UsageError` in such a process, each of which would start more of them."""
        if Process.inside:
            raise UsageError(
                "it trains with --env.backend workers when it is imported, as each of their "
                'processes does to make its envs: train under if __name__ == "__main__"'
            )
        heard, words = os.pipe()
        for end in (heard, words):  # a full pipe holds nobody up, nor does an empty one
            os.set_blocking(end, False)
        self._words = open(heard, "rb", buffering=0)  # noqa: SIM115 it stays open
        before = signal.pthread_sigmask(signal.SIG_BLOCK, MEANT_FOR_TRAINER)
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", CODE, str(words), *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd=folder,
                pass_fds=(order["memory"], words),
                start_new_session=True,  # a terminal's signals are not for it
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(words)
        assert self._popen.stdin
        assert self._popen.stdout
        self._commands, self._answers = self._popen.stdin, self._popen.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._said = ""
        self.tell(json.dumps(order).encode() + b"\n")

    @property
    def pid(self) -> int:
        """The process of the envs, which its supervisor names first; 0 before it has."""
        number, line, _ = self._heard().partition("\n")
        return int(number) if line else 0

    def _heard(self) -> str:
        """All that came through the pipe of its words."""
        while not self._words.closed and (part := self._words.read(1 << 16)):
            self._said += part.decode(errors="replace")
        return self._said

    def tell(self, words: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer will be missed
            self._commands.write(words)

    def answer(self, seconds: float, beat: Callable[[], int] = lambda: 0) -> dict[str, Any]:
        """What it answers; every new beat gives it as many seconds again. Raises `Gone`.

        Time in which this process was stopped itself, as by a scheduler, does not count.
        """
        left, last, text = seconds, beat(), b""
        while not text.endswith(b"\n"):
            wait, begin = min(0.2, seconds), time.monotonic()
            if self._poll.poll(1000 * wait):
                part = os.read(self._answers.fileno(), 1 << 16)
                if not part:
                    raise self._dead()
                text += part
                continue
            left -= min(time.monotonic() - begin, 2 * wait)
            if beat() != last:
                left, last = seconds, beat()
            elif self._popen.poll() is not None:  # what it had started holds its pipes
                raise self._dead()
            elif left < 0:
                raise self._hung(seconds)
        found: dict[str, Any] = json.loads(text)
        return found

    def _dead(self) -> Gone:
        self.end(GRACE)
        code = self._popen.returncode
        how = f"ended with exit code {code}"
        if code is None:
            how = "closed its pipes"
        elif code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return Gone(f"its process {how}", self._said.partition("\n")[2])

    def _hung(self, seconds: float) -> Gone:
        size = before = len(self._heard())
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)  # what it is busy with
            while select.select([self._words], [], [], 0.3)[0] and len(self._heard()) > size:
                size = len(self._said)
        self.end(0)
        return Gone(f"no answer in {seconds:g} s (env.timeout)", self._said[before:])

    def hang_up(self) -> None:
        """It ends by itself."""
        self._commands.close()

    def end(self, seconds: float) -> None:
        """End it and all that it has started, by force after these seconds."""
        if self._words.closed:
            return
        self.hang_up()
        for force in (self._popen.terminate, self._popen.kill, self._popen.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
                break
            force()
            seconds = GRACE
        if pid := self.pid:  # where the supervisor itself was killed
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._answers.close()
        self._words.close()
