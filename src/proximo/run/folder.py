"""The run folder: where everything that a run leaves behind stands."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proximo import disk
from proximo.disk import replace, sync, warn, writable
from proximo.errors import UsageError, check_utf8, printable
from proximo.run.config import Config, check_storable, read_config, title, to_toml
from proximo.types import Row

if TYPE_CHECKING:
    from proximo.nets.custom import Maker

LONGEST_ROW = 2**16
"""Bytes of a line of metrics.jsonl."""
MOST_ROWS = 2**32
"""Bytes of all of them."""
KEPT_ROWS = 2**25
"""Bytes of those that are held in memory: of more, evenly chosen ones are."""
LONGEST_RESULT = 2**20
"""Bytes of result.json."""

if sys.platform != "win32":
    import fcntl

LINES = ("metrics.jsonl", "samples.jsonl")
"""Files that grow while a run trains."""


class Lost(NamedTuple):
    """Rows that a log should have and has not: how many, and the updates of the first and last."""

    number: int
    first: int
    last: int

    def more(self, begin: int, end: int, every: int) -> Lost:
        """With those that are missing between the rows of two updates."""
        first, last = (begin // every + 1) * every, (end - 1) // every * every
        if first > last:
            return self
        return Lost(self.number + (last - first) // every + 1, self.first or first, last)


class RunFolder:
    """config.toml, metrics.jsonl, checkpoints/, log, versions.json and result.json of one run."""

    def __init__(self, path: str | Path) -> None:
        """Raises `UsageError` for a path that is not UTF-8, which safetensors cannot open."""
        self.name = str(path)
        """As the user gave it, for messages."""
        self.path = Path(path).absolute()  # an env may change the current folder
        check_utf8(str(self.path))
        self.config_file = self.path / "config.toml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.log_file = self.path / "log"
        self.result_file = self.path / "result.json"
        self.nonfinite = self.path / "nonfinite"
        """What the first gradient step that was left out was not taken along."""
        self._versions_file = self.path / "versions.json"
        self._checkpoints = self.path / "checkpoints"
        self._log_fails = self._noted = False
        self._made: list[Path] = []
        self._claim: int | None = None  # a descriptor of the folder, which holds the lock

    @classmethod
    def create(
        cls, path: str | Path, config: Any, resume: str = "proximo resume", net: Maker | None = None
    ) -> RunFolder:
        """A new folder with its configuration, or one whose run had no checkpoint yet.

        resume: how one continues such a run. net: what makes the network that the configuration
        names. Raises `UsageError` if anything else stands there, or for what cannot be stored.
        """
        check_storable(config, net)
        folder = cls(path)
        exists = UsageError(
            f"the run folder {path} exists: choose another with --run-dir, or go on with "
            f"that run by: {resume} {path}"
        )
        if folder.path.exists() and not folder.is_vacant():
            raise exists
        folder._made = [parent for parent in folder.path.parents if not parent.exists()]
        try:
            folder._checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the run folder {path} cannot be made: {error.strerror}") from error
        folder.claim()
        if not folder.is_vacant():  # another process was here before the claim
            folder.release()
            raise exists
        try:
            with writable(folder.path):
                folder.write_config(config)
                _replace(folder._versions_file, json.dumps(versions(), indent=2) + "\n")
                for made in (folder.path, *folder._made):
                    sync(made.parent)
        except BaseException:
            folder.remove()
            raise
        return folder

    def is_vacant(self) -> bool:
        """Nothing is here, or only what a run writes before its first checkpoint."""
        try:
            begun = self._checkpoints.is_dir()  # which `create` makes first
            return all(begun and self._is_of_a_beginning(path) for path in self.path.iterdir())
        except OSError:
            return False

    def _is_of_a_beginning(self, path: Path) -> bool:
        if path.is_symlink():
            return False
        if path.match(".*.partial"):
            return True
        if path == self._checkpoints:
            return all(inner.match(".*.partial") for inner in path.iterdir())
        if path.name == "model":  # of a language model: what it is, without its weights
            return not any(
                inner.is_symlink() or inner.match("*.safetensors*") for inner in path.iterdir()
            )
        if path.name in LINES:
            return not path.stat().st_size
        return path in (self._versions_file, self.config_file, self.log_file) and path.is_file()

    def check_begun(self) -> None:
        """Raises `UsageError` where a run was killed before its first checkpoint."""
        if self.is_vacant():
            raise UsageError(
                f"the run folder {self.path} holds no checkpoint yet: its run was stopped while it "
                "began. Type the same line again that began it"
            )

    def claim(self) -> None:
        """Lock the folder until `release` or the end of the process. Raises `UsageError`."""
        if sys.platform == "win32" or self._claim is not None:
            return
        with contextlib.suppress(OSError):  # a file system without locks
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if isinstance(error, BlockingIOError):
                    raise UsageError(
                        f"another process is training in the run folder {self.path}: wait until "
                        "it has ended, or stop it"
                    ) from None
                raise
            self._claim = handle
            # What an env forks must not hold it when this process is killed.
            os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Let other processes write here."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run. Raises `UsageError` if there is none."""
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UsageError(f"{path} is no run folder: it has no config.toml")
        return folder

    def checkpoint(self, name: str | int) -> Path:
        """The file of a checkpoint: "last", "best", or the number of an update."""
        stem = f"update-{name}" if isinstance(name, int) else name
        return self._checkpoints / f"{stem}.safetensors"

    def numbered(self, *stems: str) -> list[tuple[int, Path]]:
        """Number and file of the checkpoints STEM-NUMBER, the newest first."""
        pattern = re.compile(rf"({'|'.join(stems)})-([0-9]{{1,18}})\.safetensors")
        found = ((pattern.fullmatch(p.name), p) for p in self._checkpoints.glob("*-*"))
        return sorted(((int(match[2]), p) for match, p in found if match), reverse=True)

    def checkpoint_bytes(self) -> int:
        """Of all checkpoints together."""
        return sum(path.stat().st_size for path in self._checkpoints.glob("*.safetensors"))

    def read_config(self) -> Config:
        return read_config(self.config_file)

    def write_config(self, config: Any) -> None:
        _replace(self.config_file, to_toml(config))

    def read_metrics(self) -> list[Row]:
        """Whole rows of metrics.jsonl; of a long file evenly chosen ones, and the last."""
        try:
            return _thinned((line, row) for line, row in self._metrics() if row)
        except OSError:
            return []

    def cut_metrics(self, update: int, every: int, *, ended: bool) -> tuple[list[Row], Lost]:
        """Drop rows after this update, and the last one of a run that now continues.

        Returns the rest, as `read_metrics`, and what it lacks. ended: the run is over at `update`.
        """
        found, lost = 0, Lost(0, 0, 0)

        def kept() -> Iterator[tuple[bytes, Row]]:
            nonlocal found, lost
            for line, row in self._metrics():
                number = row["update"] if row else 0
                if row and found < number <= update:
                    if number % every and not (ended and number == update):
                        continue
                    lost, found = lost.more(found, number, every), number
                    file.write(line.rstrip(b"\r\n") + b"\n")
                    yield line, row

        rows = list[Row]()
        with disk.replacing(self.metrics_file) as file, contextlib.suppress(FileNotFoundError):
            rows = _thinned(kept())
        return rows, lost.more(found, update + 1, every)

    def _metrics(self) -> Iterator[tuple[bytes, Row | None]]:
        for line in disk.lines(self.metrics_file, LONGEST_ROW, MOST_ROWS):
            yield line, _row(line)

    def write_result(self, result: dict[str, Any]) -> None:
        _replace(self.result_file, json.dumps(result, indent=2) + "\n")

    def read_result(self) -> dict[str, Any]:
        """How the run ended; nothing if it has not, or if the file is damaged."""
        try:
            result = json.loads(disk.read(self.result_file, LONGEST_RESULT))
        except (OSError, ValueError, RecursionError):
            return {}
        known: dict[str, Any] = result if isinstance(result, dict) else {}
        if "doubts" in known:  # names of schema 1
            known["warnings"] = known.pop("doubts")
        return known

    def has_result(self, ended: str, updates: int) -> bool:
        """The result is of a run that this setting has ended, after so many updates."""
        result = self.read_result()
        return (result.get("stopped_by"), result.get("updates")) == (ended, updates)

    def remove_result(self) -> None:
        """A run that continues has not ended. Raises `OSError`."""
        self.result_file.unlink(missing_ok=True)

    def sync_log(self) -> None:
        """Bring the log to the disk, if there is more of it than before."""
        if self._noted:
            self._noted = False
            sync(self.log_file)

    def note(self, text: str) -> None:
        """Add a line to the log; a disk that does not take it ends nothing, but is named once."""
        try:
            with disk.grow(self.log_file) as file:
                file.write(f"{printable(text).rstrip()}\n".encode())
            self._noted = True
        except OSError as error:
            if not self._log_fails:
                warn(f"{self.log_file} cannot be written ({error.strerror}): it will lack lines")
            self._log_fails = True

    def enter(self) -> None:
        """Before a run goes on here: refuse links, remove what a kill left. Raises `OSError`."""
        for folder in (self.path, self._checkpoints, self.nonfinite):
            if folder.is_symlink() or folder.exists():
                disk.sweep(folder, within=self.path)

    def remove(self) -> None:
        """Undo `create`: the folder, and those above it that were made for it and are empty."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _replace(path: Path, text: str) -> None:
    replace(path, text.encode())


def _thinned(found: Iterable[tuple[bytes, Row]]) -> list[Row]:
    """Rows of at most `KEPT_ROWS` bytes: of longer files every second, fourth, ... and the last."""
    kept, stride, size, last = list[tuple[int, Row]](), 1, 0, None
    for number, (line, last) in enumerate(found):
        if number % stride == 0:
            kept.append((len(line), last))
            size += len(line)
        while size > KEPT_ROWS and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
            size = sum(length for length, _ in kept)
    rows = [row for _, row in kept]
    return [*rows, last] if last and rows[-1] is not last else rows


def _row(line: bytes) -> Row | None:
    """A line of metrics.jsonl, if it is one."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict) or type(row.get("update")) is not int:
        return None
    if type(row.get("seconds")) not in (int, float):
        return None
    return {name: value for name, value in row.items() if not isinstance(value, list | dict)}


def lost_rows(rows: list[Row], lost: Lost, updates: int, **counter: int) -> str:
    """What rows lack or contradict of a state, in words. counter: name and number of the state."""
    if lost.number:
        count = f"the rows of {lost.number} updates" if lost.number > 1 else "the row of one update"
        span = f"from {lost.first} to {lost.last}" if lost.number > 1 else f"{lost.first}"
        return f"metrics.jsonl lacks {count}, {span}: lost, as in a power cut; curves have a gap"
    for name, value in counter.items() if rows and rows[-1]["update"] == updates else ():
        if (logged := rows[-1].get(name)) != value:
            return (
                f"metrics.jsonl has {logged!r:.20} {name} at update {updates}, the checkpoint "
                f"{value}: its rows are of another run"
            )
    return ""


def free_path(config: Config, parent: str | Path = "runs") -> Path:
    """A folder that does not exist yet: runs/CartPole-v1-ppo-seed1, then with -2, -3, ..."""
    env = re.sub(r"[^A-Za-z0-9._-]+", "-", config.env.id or "env")
    base = f"{env}-{title(config.algorithm)}-seed{config.run.seed}"
    return free(Path(parent) / base)


def free(path: Path) -> Path:
    """This path, or the first of path-2, path-3, ... where nothing stands yet, or only begins."""
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], others) if not p.exists() or _is_abandoned(p))


def _is_abandoned(path: Path) -> bool:
    """A run was killed there before its first checkpoint."""
    folder = RunFolder(path)
    try:
        folder.claim()
    except UsageError:
        return False
    vacant = folder.is_vacant()
    folder.release()
    return vacant


def versions() -> dict[str, str | None]:
    """What a result depends on besides its configuration."""
    packages = ("proximo", "torch", "numpy", "gymnasium", "safetensors")
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["machine"] = f"{platform.system()} {platform.machine()}"
    found["commit"] = _commit()
    return found


def _commit() -> str | None:
    """The commit of Proximo's own sources, where they are a checkout."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        line = ["git", "-C", str(here.parent), *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        # Only if this very file is under version control: an environment may lie in a checkout.
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--match=").strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
