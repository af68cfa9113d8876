"""Files on a disk that may be full, fail or lose its power, in folders that anybody may have made.

Nothing is written through a link: a folder is entered by its descriptor, a file is written under a
new random name, and a file that grows is a regular file with one name. Only regular files are read,
and of each at most the size that its kind may have.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from proximo.errors import UsageError, printable

LONGEST_WAIT = 2**26  # bytes of lines that wait for a full disk; later lines are dropped
HOLLOW = 2**26
"""Bytes from which a file that is nearly all holes is refused: it takes memory, but no disk."""

# Not every system has all of them.
_NOFOLLOW, _NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NONBLOCK
_READ = os.O_RDONLY | _NONBLOCK | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)
_GROW = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NOFOLLOW | _NONBLOCK


def opened(path: Path, most: float = math.inf) -> IO[bytes]:
    """Open a regular file of at most so many bytes, not nearly all holes. Raises `OSError`."""
    handle = os.open(path, _READ)
    try:
        _check(path, handle, most)
    except OSError:
        os.close(handle)
        raise
    return open(handle, "rb")


def check_regular(path: Path, most: float = math.inf) -> None:
    """Check a file as `opened` does, for a library that opens it by itself. Raises `OSError`."""
    opened(path, most).close()


def _check(path: Path, handle: int, most: float) -> None:
    found = os.fstat(handle)
    # Files that the kernel writes as they are read say that they are empty.
    if not stat.S_ISREG(found.st_mode) or (not found.st_size and os.read(handle, 4096)):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    held = 512 * getattr(found, "st_blocks", 0)
    if found.st_size > HOLLOW and held < found.st_size / 64 and (held or _is_hole(handle)):
        said = f"of its {found.st_size:,} bytes only {held:,} are on the disk"
        raise OSError(errno.EFBIG, said, str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))


def _is_hole(handle: int) -> bool:
    """A file without data, for systems that do not report its blocks on the disk."""
    try:
        os.lseek(handle, 0, getattr(os, "SEEK_DATA", os.SEEK_SET))
    except OSError as error:
        return error.errno == errno.ENXIO
    os.lseek(handle, 0, os.SEEK_SET)
    return False


def read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises `OSError`."""
    with opened(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def lines(path: Path, longest: int, most: int) -> Iterator[bytes]:
    """The lines of a regular file, one by one; longer ones are left out. Raises `OSError`."""
    with opened(path, most) as file:
        left, whole = most, True
        while line := file.readline(min(longest, left)):
            left -= len(line)
            ends = line.endswith(b"\n")
            if whole and (ends or len(line) < longest):
                yield line
            whole = ends


def replace(path: Path, data: bytes, within: Path | None = None) -> None:
    """Write a file atomically: a reader finds the old content or the new one, never a part.

    The data go to a temporary file and to the disk, then under their name. A link of that name is
    replaced, not followed. within: the folder that the user has named, below which no folder may be
    a link; None: the file's own. Raises `OSError`, which names the file; no temporary file stays.
    """
    free = shutil.disk_usage(path.parent).free
    if len(data) > free:
        said = f"it takes {len(data):,} bytes, of which {free:,} are free"
        raise OSError(errno.ENOSPC, said, str(path))
    with replacing(path, within) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, within: Path | None = None) -> Iterator[IO[bytes]]:
    """`replace` for a file that is written piece by piece."""
    temporary = _partial()
    with _entered(path.parent, within) as folder:
        try:
            with open(os.open(temporary, _NEW, 0o666, dir_fd=folder), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        with contextlib.suppress(OSError):  # where the system cannot, the file alone is safe
            os.fsync(folder)


@contextlib.contextmanager
def filling(folder: Path, within: Path | None = None) -> Iterator[Path]:
    """Temporary folder for a library that writes by itself; at the end its files move to `folder`.

    `folder` is made if it is missing. Each file replaces the one of its name atomically, so each is
    whole at every moment. within: see `replace`. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _entered(folder, within) as handle:
        name = _partial()
        os.mkdir(name, 0o700, dir_fd=handle)
        try:
            yield folder / name
            for file in sorted(os.listdir(folder / name)):
                sync(folder / name / file)
                os.replace(f"{name}/{file}", file, src_dir_fd=handle, dst_dir_fd=handle)
            sync(folder)
        finally:
            shutil.rmtree(name, ignore_errors=True, dir_fd=handle)


def grow(path: Path, within: Path | None = None) -> io.FileIO:
    """Open a regular file without other names, to append to it. Raises `OSError`."""
    with _entered(path.parent, within) as folder:
        try:
            handle = os.open(path.name, _GROW, 0o666, dir_fd=folder)
        except OSError as error:
            said = "it is a link" if path.is_symlink() else error.strerror
            raise OSError(error.errno, said, str(path)) from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        said = "it is no regular file, or has other names, by which other files would change"
        raise OSError(errno.EMLINK, said, str(path))
    return io.FileIO(handle, "ab")


def duplicate(path: Path, other: Path, within: Path | None = None) -> None:
    """Give a file a second name in its folder, or a copy; a missing one is no error."""
    with _entered(path.parent, within) as folder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(other.name, dir_fd=folder)
        with contextlib.suppress(OSError):
            ends = {"src_dir_fd": folder, "dst_dir_fd": folder}
            os.link(path.name, other.name, **ends, follow_symlinks=False)
            return
    gone = contextlib.suppress(FileNotFoundError)  # somebody has taken it away
    with gone, opened(path) as file, replacing(other, within) as copy:
        shutil.copyfileobj(file, copy)


def sweep(folder: Path, within: Path | None = None) -> None:
    """Remove partial files that a killed process has left. Raises `OSError`."""
    with _entered(folder, within) as handle:
        for name in os.listdir(handle):
            if name.startswith(".") and name.endswith(".partial"):
                try:
                    os.unlink(name, dir_fd=handle)
                except OSError:  # a folder
                    shutil.rmtree(name, ignore_errors=True, dir_fd=handle)


def _partial() -> str:
    return f".{secrets.token_hex(8)}.partial"


@contextlib.contextmanager
def _entered(folder: Path, within: Path | None) -> Iterator[int]:
    """Descriptor of a folder. `within` may be a link, but no folder below it."""
    handle = os.open(within or folder, _FOLDER)
    try:
        for part in folder.relative_to(within or folder).parts:
            try:
                inner = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=handle)
            except OSError as error:
                said = f"{folder} is a link or no folder" if folder.exists() else error.strerror
                raise OSError(error.errno, said, str(folder)) from error
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, where the system can (power cuts)."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | _NONBLOCK)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def warn(text: str) -> None:
    """Print a warning on stderr, which may be a file on the same full disk."""
    with contextlib.suppress(OSError):
        print(f"proximo: {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def writable(path: object) -> Iterator[None]:
    """Turn an `OSError` before training into a `UsageError`, which the user can fix."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be written: {error.strerror}") from error


class Lines:
    """File that grows by lines. Lines that the disk does not take are kept and written later."""

    def __init__(self, path: Path, say: Callable[[str], None], pause: float = 0.0) -> None:
        """say: called once when the disk starts to fail. pause: seconds between two writes, for
        lines that come fast; `sync` and `close` write what waits. Raises `OSError`.
        """
        self._path, self._say = path, say
        self._file = grow(path)
        self._waiting = bytearray()
        self._error: OSError | None = None
        self._pause, self._due = pause, -math.inf

    def write(self, line: bytes) -> None:
        if len(self._waiting) < LONGEST_WAIT:
            self._waiting += line
        if not self._pause:
            self._flush()
        elif (now := time.perf_counter()) >= self._due:
            self._due = now + self._pause
            self._flush()

    def _flush(self) -> None:
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
        """Flush written lines to the disk, where the system can (power cuts)."""
        self._flush()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Raises `OSError` if lines are left that could not be written."""
        if self._file.closed:
            return
        self._flush()
        self._file.close()
        if self._error:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))
