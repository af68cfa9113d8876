"""The run folder: where everything that a run leaves behind stands."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from proximo.run.config import Config, read_config, to_toml
from proximo.run.disk import replace, warn, writable
from proximo.types import UsageError, check_utf8


class RunFolder:
    """config.toml, metrics.jsonl, checkpoints/, log, versions.json and result.json of one run."""

    def __init__(self, path: str | Path) -> None:
        """Raises `UsageError` for a path that is not UTF-8, which safetensors cannot open."""
        self.name = str(path)
        """As the user gave it, for messages."""
        self._given, self._absolute = Path(path), Path(path).absolute()
        self._start = None if self._given.is_absolute() else Path.cwd()
        check_utf8(str(self._absolute))
        self._log_fails = False
        self._made: list[Path] = []

    @property
    def path(self) -> Path:
        """As it was given, while that leads there: a world may change the current folder."""
        with contextlib.suppress(OSError):  # or remove it
            if self._start is None or Path.cwd() == self._start:
                return self._given
        return self._absolute

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def nonfinite(self) -> Path:
        """What the first gradient step that was left out was not taken along."""
        return self.path / "nonfinite"

    @property
    def _versions_file(self) -> Path:
        return self.path / "versions.json"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def create(cls, path: str | Path, config: Any, resume: str = "proximo resume") -> RunFolder:
        """A new folder with its configuration, a dataclass of dataclasses.

        Raises `UsageError` if something stands there; resume: how one goes on with such a run.
        """
        folder = cls(path)
        if folder.path.exists():
            raise UsageError(
                f"the run folder {path} exists: choose another with --run-dir, or go on with "
                f"that run by: {resume} {path}"
            )
        folder._made = [parent for parent in folder._absolute.parents if not parent.exists()]
        try:
            folder._checkpoints.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"the run folder {path} cannot be made: {error.strerror}") from error
        try:
            with writable(folder.path):
                folder.write_config(config)
                _replace(folder._versions_file, json.dumps(versions(), indent=2) + "\n")
        except BaseException:
            folder.remove()
            raise
        return folder

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
        pattern = re.compile(rf"({'|'.join(stems)})-(\d{{1,18}})\.safetensors")
        found = ((pattern.fullmatch(p.name), p) for p in self._checkpoints.glob("*-*"))
        return sorted(((int(match[2]), p) for match, p in found if match), reverse=True)

    def read_config(self) -> Config:
        return read_config(self.config_file)

    def write_config(self, config: Any) -> None:
        _replace(self.config_file, to_toml(config))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl, without lines that are none, as one that was cut off."""
        try:
            lines = self.metrics_file.read_bytes().splitlines()
        except OSError:
            return []
        return [row for row in map(_row, lines) if row]

    def cut_metrics(self, update: int, every: int) -> list[dict[str, Any]]:
        """Drop what was logged after this update, or only because the run had ended there.

        Returns what remains.
        """
        rows = [
            row
            for row in self.read_metrics()
            if row["update"] <= update and row["update"] % every == 0
        ]
        _replace(self.metrics_file, "".join(f"{orjson.dumps(row).decode()}\n" for row in rows))
        return rows

    def write_result(self, result: dict[str, Any]) -> None:
        _replace(self.result_file, json.dumps(result, indent=2) + "\n")

    def read_result(self) -> dict[str, Any]:
        """How the run ended; nothing if it has not, or if the file is damaged."""
        try:
            result = json.loads(self.result_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return result if isinstance(result, dict) else {}

    def note(self, text: str) -> None:
        """Add a line to the log; a disk that does not take it ends nothing, but is named once."""
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(text.rstrip() + "\n")
        except OSError as error:
            if not self._log_fails:
                warn(f"{self.log_file} cannot be written ({error.strerror}): it will lack lines")
            self._log_fails = True

    def remove(self) -> None:
        """Undo `create`: the folder, and those above it that were made for it and are empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _replace(path: Path, text: str) -> None:
    replace(path, text.encode())


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, if it is one."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict) or type(row.get("update")) is not int:
        return None
    return row if type(row.get("seconds")) in (int, float) else None


def free_path(config: Config, parent: str | Path = "runs") -> Path:
    """A folder that does not exist yet: runs/CartPole-v1-ppo-seed1, then with -2, -3, ..."""
    world = re.sub(r"[^A-Za-z0-9._-]+", "-", config.env.id or "world")
    base = f"{world}-{config.algorithm.name}-seed{config.run.seed}"
    return free(Path(parent) / base)


def free(path: Path) -> Path:
    """This path, or the first of path-2, path-3, ... where nothing stands yet."""
    return next(p for p in _numbered(path) if not p.exists())


def _numbered(path: Path) -> Iterable[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


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
    here = Path(__file__).resolve().parent
    try:
        # Only if this very file is under version control: an environment may lie in a checkout.
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, timeout=10, check=True)
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
