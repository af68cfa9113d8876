"""Ctrl-C, SIGTERM and SIGUSR1 during a run of the command line."""

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

AT_ONCE = 3.0  # seconds in which a run that is stopped at once may still close its envs


class Interrupt:
    """Signal handlers of a run, while it is entered; as a callback it ends the run after an update.

    Handlers that an env installs are replaced after each update. The first Ctrl-C ends the run
    after the update, saved; the second at once. SIGTERM ends it within `grace` seconds: after the
    update if there is time, else at once. It may come twice, as `timeout` sends it. SIGUSR1 asks
    for a checkpoint (`save_requested`), and the run continues.

    Python's handlers wait until the main thread is back from C code, where an env or a long update
    may keep it. So a thread listens too, and ends the process when the time is up: files are
    replaced in one step and the processes of envs end with it, so it may do so at any time.
    """

    def __init__(self, folder: RunFolder, grace: float, resume: str) -> None:
        """`resume`: the command that continues a run."""
        self._folder, self._grace, self._resume = folder, grace, resume
        self.signal: signal.Signals | None = None
        """Signal that ends the run; SIGTERM, if that was among them."""
        self.save_requested = False
        self._at_once = False
        self._thread_code = 0  # exit code by the signals that the thread has received

    def __enter__(self) -> Self:
        self._main_thread = threading.get_ident()
        self._wakeup_recv, self._wakeup_send = socket.socketpair()
        self._wakeup_send.setblocking(False)
        names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is not on Windows
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._previous_handlers = {number: signal.getsignal(number) for number in numbers}
        self._previous_wakeup_fd = self._set_wakeup_fd()
        self.install()
        if hasattr(os, "register_at_fork"):  # signals to what an env forks are not the run's
            os.register_at_fork(after_in_child=self._restore)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _set_wakeup_fd(self) -> int:
        return signal.set_wakeup_fd(self._wakeup_send.fileno(), warn_on_full_buffer=False)

    def install(self) -> None:
        """Replace the handlers that an env has installed."""
        for number in self._previous_handlers:
            if signal.getsignal(number) != self._handle:
                signal.signal(number, self._handle)
        self._set_wakeup_fd()

    def __exit__(self, *error: object) -> None:
        self._restore()
        self._wakeup_send.close()

    def _restore(self) -> None:
        if self._previous_handlers:
            signal.set_wakeup_fd(self._previous_wakeup_fd)
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler or signal.SIG_DFL)

    def __call__(self, state: object, rollout: object, row: object) -> bool:
        self.install()
        if self._thread_code and not self.signal:  # a handler of an env has taken it
            self.signal = signal.Signals(self._thread_code - 128)
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (self.signal and number == signal.SIGINT):
            signal.default_int_handler(number, frame)
        if number not in (signal.SIGINT, signal.SIGTERM):
            self.save_requested = True
        elif self.signal is not signal.SIGTERM:
            self.signal = signal.Signals(number)

    def _listen(self) -> None:
        """Interrupt the main thread, and at last end the process, when its time is up."""
        interrupt_at = exit_at = math.inf
        while True:
            left = min(interrupt_at, exit_at) - time.monotonic()
            if left > 0:
                wait = None if math.isinf(left) else left
                if not select.select([self._wakeup_recv], [], [], wait)[0]:
                    continue
                numbers = self._wakeup_recv.recv(64)
                if not numbers:  # the run is over
                    return self._wakeup_recv.close()
                now = time.monotonic()
                for number in numbers:
                    if number == signal.SIGTERM and self._thread_code != 128 + number:
                        self._thread_code = 128 + number
                        exit_at = min(exit_at, now + self._grace)
                        interrupt_at = min(interrupt_at, exit_at - min(AT_ONCE, self._grace / 2))
                    elif number == signal.SIGINT and self._thread_code:
                        exit_at = min(exit_at, now + AT_ONCE)
                    elif number == signal.SIGINT:
                        self._thread_code = 128 + number
            elif interrupt_at <= exit_at:
                interrupt_at, self._at_once = math.inf, True
                if self._previous_handlers:
                    _interrupt(self._main_thread)
            else:
                os.write(2, f"{self.stopped_at_once()}\n".encode())
                os._exit(self._thread_code)

    def stopped_at_once(self) -> str:
        """Message for a run that did not end its update."""
        if self._folder.checkpoint("last").exists():
            advice = f"go on from its last checkpoint by: {self._resume} {self._folder.name}"
        else:
            advice = "nothing had been learned yet"
        return f"stopped at once; {advice}"


def _interrupt(thread: int) -> None:
    """Interrupt a thread as Ctrl-C does, out of its sleep too."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:
        signal.pthread_kill(thread, signal.SIGINT)
