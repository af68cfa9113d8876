"""Commands of this command line, many at a time, in processes that end with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a process has to end after SIGTERM."""
LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which numerical libraries learn of their threads."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str


class Children:
    """Processes of the command line that end with this one, each with so many threads."""

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._ended = False
        self._variables = os.environ | dict.fromkeys(LIBRARIES, str(threads))

    def run(self, *words: str, module: str = "proximo", given: str | None = None) -> Ended:
        """Run `proximo WORDS`, or another module, to its end. given: its stdin."""
        with self._lock:
            if self._ended:
                raise KeyboardInterrupt
            child = subprocess.Popen(  # noqa: S603 our own command line, with words it has checked
                [sys.executable, "-m", module, *words],
                stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._variables,
                text=True,
                errors="replace",
            )
            self._running.append(child)
        out, err = child.communicate(given)
        with self._lock:
            self._running.remove(child)
        return Ended(words, child.returncode, out, err)

    def end(self) -> None:
        """Terminate them as by Ctrl-C, which a terminal may have sent them already, or kill."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


def run_all(
    children: Children,
    tasks: Sequence[Callable[[], T]],
    processes: int,
    finished: Callable[[T], None],
) -> None:
    """Do these tasks, so many at a time; `finished` has the result of each as it ends.

    Raises `KeyboardInterrupt` with the number of the signal, once all children have ended.
    """
    raise_on_signals()
    with ThreadPoolExecutor(max(1, processes)) as pool:
        try:
            for future in as_completed([pool.submit(task) for task in tasks]):
                finished(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise


def raise_on_signals() -> None:
    """Let SIGINT and SIGTERM raise a `KeyboardInterrupt` with their number."""
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, _stop)
    if hasattr(signal, "SIGUSR1"):  # it is meant for the runs, which then save
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
