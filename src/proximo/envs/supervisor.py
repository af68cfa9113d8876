"""The parent of a process of envs, between it and the trainer: ends whatever that has started.

On Linux it is a subreaper (prctl(2)): a process without a parent becomes its child, whatever its
session or process group, so nothing that an env starts escapes it. Elsewhere it reaches the process
group of the envs. Imports nothing that takes long.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

TRAINER_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that a terminal or a scheduler sends to every process, and only the trainer obeys. It
blocks them while it starts a process, so that none comes before that can ignore them."""
GRACE_SECONDS = 1.5
"""Seconds in which all processes must have ended."""
LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def supervise(words: int) -> None:
    """Return in a new process, and stay behind as its parent, which ends as the process does.

    words: the descriptor of a pipe for the number of the new process, and later its traceback, if
    it crashes or is sent SIGUSR1. The parent kills the process when the trainer dies, and on
    SIGTERM if the trainer has closed its pipe.
    """
    trainer, parent = os.getppid(), os.getpid()
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    if process := os.fork():
        os.write(words, f"{process}\n".encode())
        _stand_by(process, trainer)
    os.setsid()  # its process group is what it has started, without the parent
    _end_with(parent)
    faulthandler.enable(words)
    faulthandler.register(signal.SIGUSR1, words)
    # Handlers and not SIG_IGN, which the programs that envs start would inherit.
    ignored = TRAINER_SIGNALS - {signal.SIGUSR1}
    for number in ignored:
        signal.signal(number, _ignore)
        signal.siginterrupt(number, False)
    os.register_at_fork(after_in_child=lambda: _default(ignored))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TRAINER_SIGNALS)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _default(numbers: set[signal.Signals]) -> None:
    """Let signals end what an env forks, as any process."""
    faulthandler.unregister(signal.SIGUSR1)
    for number in numbers:
        if signal.getsignal(number) is _ignore:
            signal.signal(number, signal.SIG_DFL)


def _end_with(parent: int) -> None:
    """Let this process be killed when its parent dies, whatever it is busy with."""
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        _when_gone(parent, lambda: os._exit(1))
    if os.getppid() != parent:  # it was too late
        os._exit(1)


def _when_gone(parent: int, act: Callable[[], None]) -> None:
    """Act, in a thread, as soon as this process has lost its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        act()

    threading.Thread(target=watch, daemon=True).start()


def _stand_by(process: int, trainer: int) -> NoReturn:
    """Wait for the process, end what it has started, and end as it did."""
    os.closerange(1, 1 << 16)  # the other pipes are not its own
    hung_up = select.poll()
    hung_up.register(0, 0)

    def end(number: int, frame: FrameType | None) -> None:
        if hung_up.poll(0):  # else it was meant for the trainer
            _kill(process)

    for number in (*TRAINER_SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TRAINER_SIGNALS)
    _when_gone(trainer, lambda: _kill(process))
    while (ended := os.waitpid(-1, 0))[0] != process:
        pass  # it was something that an env has started, and that had lost its parent
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)
    _end_children()
    code = os.waitstatus_to_exitcode(ended[1])
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one of the process already
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _end_children() -> None:
    """Kill all that has lost its parent, and what that leaves behind in turn."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:  # another user's cannot be killed
        for child in _children():
            _kill(child)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _children() -> list[int]:
    """The children of this process, where the system has /proc."""
    children, me = [], str(os.getpid())
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended by now
            state = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if state[1] == me:
                children.append(int(place.name))
    return children


def _kill(process: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)
