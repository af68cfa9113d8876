"""Standard streams that fail or are closed: they change neither a verb nor its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from proximo.envs.library_warnings import shown_once


class _Output(io.TextIOWrapper):
    """An output that drops what its reader does not take, and escapes what its encoding lacks."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._number = stream.fileno()
        super().__init__(
            io.BufferedWriter(io.FileIO(self._number, "wb", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering or stream.isatty(),
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Discard what is printed from now on, also by an env or a library."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._number)
        os.close(nothing)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Streams that take text whatever they are: closed, a broken pipe, a full disk, ASCII.

    Warnings of other libraries go there once, in one line.
    """
    for number in range(3):  # the next file that is opened would get the number of a closed one
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 it stays open
        elif type(stream) is io.TextIOWrapper:
            with contextlib.suppress(OSError):
                stream.flush()
            setattr(sys, name, _Output(stream))
    try:
        with shown_once():
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
