"""A worker process as the trainer sees it: its pipes, and the memory that both share.

A command is one byte through a pipe, an answer a line of JSON; tracebacks have a pipe of their own,
so that a signal at any moment leaves the answers whole.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from proximo.envs.library_warnings import show_once
from proximo.envs.supervisor import GRACE_SECONDS, TRAINER_SIGNALS
from proximo.errors import UsageError
from proximo.spaces import Actions, Observations, Space
from proximo.types import FLAGS, RolloutBuffer

MAP, BEGIN, STEP = b"m", b"b", b"s"
"""Commands: map the memory; begin an episode in the active envs; step them."""
CODE = """
import sys
words, sys.path[:] = int(sys.argv[1]), sys.argv[2:]
from proximo.envs.supervisor import supervise
supervise(words)
from proximo.envs.child import work
work()
"""


class Failure(NamedTuple):
    """Why an env is lost."""

    what: str
    trace: str = ""


class WorkerDied(Exception):
    """A process that is dead, or no longer answers."""

    def __init__(self, what: str, trace: str = "") -> None:
        super().__init__(what)
        self.failure = Failure(what, trace)


class Shared:
    """Memory that all processes share: a row of a `RolloutBuffer`, and the state of the workers."""

    def __init__(
        self, memory: int, spaces: Sequence[Space], num_envs: int, agents: int, processes: int
    ) -> None:
        """memory: the descriptor of a file. An empty one is filled, so that it cannot run out."""
        seen, acts = Observations(spaces[0]), Actions(spaces[1])
        # Wide enough for whatever the trainer keeps them in.
        wide = np.uint8 if seen.dtype == np.uint8 else np.float64
        rows = num_envs * agents
        plan: list[tuple[str, tuple[int, ...], Any]] = [
            ("obs", (2, rows, *seen.shape), wide),
            ("final", (rows, *seen.shape), wide),
            ("env_action", (1, rows, *(acts.shape or ())), acts.dtype),
            ("reward", (1, rows), np.float64),
            *((name, (1, rows), np.bool_) for name in FLAGS),
            ("episode", (rows,), np.int64),
            ("active", (num_envs,), np.bool_),  # the envs that a command is for
            ("busy_env", (processes,), np.int64),  # the env that is being stepped, or -1
            ("heartbeat", (processes,), np.int64),  # counts the envs that were stepped
        ]
        sizes = [math.prod(shape) * np.dtype(kind).itemsize for _, shape, kind in plan]
        *begins, size = itertools.accumulate((-(-n // 64) * 64 for n in sizes), initial=0)
        if not os.fstat(memory).st_size:
            with open(memory, "wb", closefd=False) as file:
                file.write(bytes(size))
        self._map = mmap.mmap(memory, size)
        for (name, shape, kind), begin in zip(plan, begins, strict=True):
            setattr(self, name, np.ndarray(shape, kind, self._map, begin))

    obs: np.ndarray
    final: np.ndarray
    env_action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    valid: np.ndarray
    episode: np.ndarray
    active: np.ndarray
    busy_env: np.ndarray
    heartbeat: np.ndarray

    def steps(self, rows: slice) -> RolloutBuffer:
        """Views of the rows of some envs."""
        names = ("obs", "env_action", "reward", *FLAGS)
        return RolloutBuffer(**{name: getattr(self, name)[:, rows] for name in names})


class Process:
    """A worker process, its supervisor and the pipes to it. Every call has a time limit."""

    inside = False
    """This process is a worker itself."""

    def __init__(self, order: dict[str, Any], path: list[str], folder: str) -> None:
        """Raises `UsageError` in such a process, each of which would start more of them."""
        if Process.inside:
            raise UsageError(
                "it trains with --env.backend workers when it is imported, as each of their "
                'processes does to make its envs: train under if __name__ == "__main__"'
            )
        reader, writer = os.pipe()
        for end in (reader, writer):  # neither a full pipe nor an empty one blocks
            os.set_blocking(end, False)
        self._traces = open(reader, "rb", buffering=0)  # noqa: SIM115 it stays open
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINER_SIGNALS)
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", CODE, str(writer), *path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd=folder,
                pass_fds=(order["memory"], writer),
                start_new_session=True,  # a terminal's signals are not for it
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(writer)
        assert self._popen.stdin
        assert self._popen.stdout
        self._commands, self._answers = self._popen.stdin, self._popen.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._text = ""
        self.send(json.dumps(order).encode() + b"\n")

    @property
    def pid(self) -> int:
        """Number of the process of the envs, which its supervisor writes first; 0 before that."""
        number, line, _ = self._read_traces().partition("\n")
        return int(number) if line else 0

    def _read_traces(self) -> str:
        """All text from the pipe for tracebacks, which the number of the process begins."""
        while not self._traces.closed and (part := self._traces.read(1 << 16)):
            self._text += part.decode(errors="replace")
        return self._text

    def send(self, command: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer will be missed
            self._commands.write(command)

    def answer(self, seconds: float, heartbeat: Callable[[], int] = lambda: 0) -> dict[str, Any]:
        """Wait for an answer; each heartbeat, or a stop of this process, allows as long again."""
        left, last, text = seconds, heartbeat(), b""
        while not text.endswith(b"\n"):
            wait, begin = min(0.2, seconds), time.monotonic()
            if self._poll.poll(1000 * wait):
                part = os.read(self._answers.fileno(), 1 << 16)
                if not part:
                    raise self._dead()
                text += part
                continue
            left -= min(time.monotonic() - begin, 2 * wait)
            if heartbeat() != last:
                left, last = seconds, heartbeat()
            elif self._popen.poll() is not None:  # what it had started holds its pipes
                raise self._dead()
            elif left < 0:
                raise self._hung(seconds)
        answer: dict[str, Any] = json.loads(text)
        for warning in answer.pop("warnings", ()):
            show_once(warning)
        return answer

    def _dead(self) -> WorkerDied:
        self.end(GRACE_SECONDS)
        code = self._popen.returncode
        how = f"ended with exit code {code}"
        if code is None:
            how = "closed its pipes"
        elif code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return WorkerDied(f"its process {how}", self._text.partition("\n")[2])

    def _hung(self, seconds: float) -> WorkerDied:
        size = before = len(self._read_traces())
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)  # what it is busy with
            while select.select([self._traces], [], [], 0.3)[0] and len(self._read_traces()) > size:
                size = len(self._text)
        self.end(0)
        return WorkerDied(f"no answer in {seconds:g} s (env.timeout)", self._text[before:])

    def hang_up(self) -> None:
        """Close the pipe of commands, upon which the process ends by itself."""
        self._commands.close()

    def end(self, seconds: float) -> None:
        """End the process and all that it has started, by force after these seconds."""
        if self._traces.closed:
            return
        self.hang_up()
        for force in (self._popen.terminate, self._popen.kill, self._popen.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
                break
            force()
            seconds = GRACE_SECONDS
        if pid := self.pid:  # where the supervisor itself was killed
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._answers.close()
        self._traces.close()
