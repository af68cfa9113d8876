"""Files on a disk that may be full, fail or lose its power."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from proximo.types import UsageError

LONGEST_WAIT = 2**26
"""Bytes of lines that wait for a full disk; what comes after them is left out."""


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader finds the old one or the new one, never half of one.

    Aside and to the disk, then under its name, then that to the disk. Raises `OSError`, which names
    the file and leaves no other behind.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        free = shutil.disk_usage(path.parent).free
        if len(data) > free:
            raise OSError(errno.ENOSPC, f"it takes {len(data):,} bytes, of which {free:,} are free")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    sync(path.parent)


def sync(folder: Path) -> None:
    """The names in a folder to the disk, where the system can: else the file alone is safe."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def warn(text: str) -> None:
    """Say on stderr what goes wrong; that may be a file on the same disk."""
    with contextlib.suppress(OSError):
        print(f"proximo: {text}", file=sys.stderr)


@contextlib.contextmanager
def writable(path: object) -> Iterator[None]:
    """Before training, a disk that fails is for the user to mend. Raises `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be written: {error.strerror}") from error


class Lines:
    """A file that grows by lines. What the disk does not take waits, and is written later."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """say: told once when the disk begins to fail. Raises `OSError`."""
        self._path, self._say = path, say
        self._file = path.open("ab", buffering=0)
        self._waiting = bytearray()
        self._error: OSError | None = None

    def write(self, line: bytes) -> None:
        if len(self._waiting) < LONGEST_WAIT:
            self._waiting += line
        try:
            while self._waiting:  # a full disk takes a part, and the rest of that line follows it
                del self._waiting[: self._file.write(self._waiting)]
            self._error = None
        except OSError as error:
            if self._error is None:
                self._say(
                    f"{self._path} cannot be written ({error.strerror}): training goes on, and "
                    "its lines wait until it can be"
                )
            self._error = error

    def sync(self) -> None:
        """Bring what the system has taken to the disk, where it can: a power cut spares that."""
        self.write(b"")
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Raises `OSError` if lines are left that could not be written."""
        if self._file.closed:
            return
        self.write(b"")
        self._file.close()
        if self._error:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))
