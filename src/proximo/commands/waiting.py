"""Waiting: what a verb says on the way that prints only at its end."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from proximo.commands.arguments import say, show
from proximo.run.display import clock


class Patience:
    """Says on stderr every five seconds how far a verb is that prints only at its end."""

    INTERVAL = 5.0

    def __init__(self) -> None:
        self._begin = self._printed = time.perf_counter()

    def __call__(self, ended: int, total: int) -> None:
        """Take in how many episodes have ended."""
        now = time.perf_counter()
        if now - self._printed < self.INTERVAL:
            return
        self._printed, spent = now, now - self._begin
        left = f", {clock(spent / ended * (total - ended))} left" if ended else ""
        show(f"episode {ended + 1} of {total}, {clock(spent)} so far{left}", file=sys.stderr)


SLOW = 5.0
"""Seconds after which a command says what it is doing."""


@contextlib.contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Say what is going on if it is still going on after a while."""
    timer = threading.Timer(SLOW, say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
