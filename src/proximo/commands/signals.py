"""Ctrl-C, SIGTERM and SIGUSR1 while a run of the command line goes on."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Self

from proximo.run.folder import RunFolder

AT_ONCE = 3.0
"""Seconds in which a run that is stopped at once may still close its envs."""


class Interrupt:
    """Heeds signals while it is entered; as a callback it ends the training after an update.

    Signals belong to the run: handlers that an env installs are replaced after each update.

    The first Ctrl-C ends the run after the update, saved; the second at once. SIGTERM ends it
    within `grace` seconds: after the update if that is time enough, else at once. It may come
    twice, as `timeout` sends it. SIGUSR1 asks for a checkpoint, and the run goes on (`asked`).

    Python's handlers wait until the main thread is back from C code, where an env or a long
    update may keep it. So a thread listens besides, and where the time is up it ends the process:
    files are replaced in one step and the processes of envs end with it, so it may at any time.
    """

    def __init__(self, folder: RunFolder, grace: float, resume: str) -> None:
        """resume: how one goes on with a run."""
        self._folder, self._grace, self._resume = folder, grace, resume
        self.signal: signal.Signals | None = None
        """Which is to end the run; SIGTERM, if that was among them."""
        self.asked = False
        """For a checkpoint."""
        self._now = False
        self._code = 0  # of the process's end, by the signals that the thread has heard

    def __enter__(self) -> Self:
        self._main = threading.get_ident()
        self._ears, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is not on Windows
        heeded = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._before = {number: signal.getsignal(number) for number in heeded}
        self._rung = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self.install()
        if hasattr(os, "register_at_fork"):  # what an env forks is ended by signals of its own
            os.register_at_fork(after_in_child=self._restore)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def install(self) -> None:
        """Put our handlers in the place of those that an env has installed for itself."""
        for number in self._before:
            if signal.getsignal(number) != self._note:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)

    def __exit__(self, *error: object) -> None:
        self._restore()
        self._bell.close()

    def _restore(self) -> None:
        if self._before:
            signal.set_wakeup_fd(self._rung)
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler or signal.SIG_DFL)

    def __call__(self, state: object, seen: object, metrics: object) -> bool:
        self.install()
        if self._code and not self.signal:  # an env's own handler has taken it
            self.signal = signal.Signals(self._code - 128)
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._now or (self.signal and number == signal.SIGINT):
            signal.default_int_handler(number, frame)
        if number not in (signal.SIGINT, signal.SIGTERM):
            self.asked = True
        elif self.signal is not signal.SIGTERM:
            self.signal = signal.Signals(number)

    def _watch(self) -> None:
        told, over = math.inf, math.inf
        while True:
            left = min(told, over) - time.monotonic()
            if left > 0:
                wait = None if math.isinf(left) else left
                if not select.select([self._ears], [], [], wait)[0]:
                    continue
                heard = self._ears.recv(64)
                if not heard:  # the run is over
                    return self._ears.close()
                now = time.monotonic()
                for number in heard:
                    if number == signal.SIGTERM and self._code != 128 + number:
                        self._code, over = 128 + number, min(over, now + self._grace)
                        told = min(told, over - min(AT_ONCE, self._grace / 2))
                    elif number == signal.SIGINT and self._code:
                        over = min(over, now + AT_ONCE)
                    elif number == signal.SIGINT:
                        self._code = 128 + number
            elif told <= over:
                told, self._now = math.inf, True
                if self._before:
                    _wake(self._main)
            else:
                if os.isatty(1):
                    os.write(1, b"\x1b[?25h")  # the cursor, which the display has hidden
                os.write(2, f"{self.stopped_at_once()}\n".encode())
                os._exit(self._code)

    def stopped_at_once(self) -> str:
        """What a user should know of a run that did not end its update."""
        if self._folder.checkpoint("last").exists():
            advice = f"go on from its last checkpoint by: {self._resume} {self._folder.name}"
        else:
            advice = "nothing had been learned yet"
        return f"stopped at once; {advice}"


def _wake(thread: int) -> None:
    """Interrupt a thread as Ctrl-C does, out of its sleep too."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:
        signal.pthread_kill(thread, signal.SIGINT)
