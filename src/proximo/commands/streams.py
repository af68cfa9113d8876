"""Standard streams that fail, or that are closed: they change neither a verb nor its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


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
        """From now on nobody is listening: neither to this nor to what an env prints by itself."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._number)
        os.close(nothing)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """What can be printed to, whatever it is: closed, a broken pipe, a full disk, ASCII."""
    for number in range(3):  # what is closed would be the number of the next file that is opened
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
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
