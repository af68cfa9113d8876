"""The checkpoints of a run folder: the last few of them, the newest whole one, the first skip."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from proximo.disk import duplicate, warn
from proximo.run.checkpoint import Checkpoint, Damaged, own_copy, write
from proximo.run.folder import RunFolder

MOST_TRIED = 64
"""Checkpoints that are tried where the last is damaged."""
SAVE_INTERVAL = 2.0
"""Seconds between saves of the last and best policy; more where they would take over SAVE_SHARE."""
SAVE_SHARE = 0.01


def dump_first_skip(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> str:
    """Write the tensors of the first skipped step; returns the path, "" if the disk fails."""
    for path in folder.glob("update-*.safetensors"):
        return str(path)
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        path = folder / f"update-{record['update']}.safetensors"
        write(path, {name: own_copy(tensor) for name, tensor in tensors.items()}, record)
        return str(path)
    return ""


def newest(
    folder: RunFolder, *, strict: bool = False, read: Callable[[Path], Checkpoint] = Checkpoint
) -> Checkpoint:
    """The checkpoint to go on from: `last`, or where it is damaged the newest that is whole.

    What is wrong with the others is said on stderr and in the log. read: what reads one of them.
    Raises `UsageError` if none is whole; strict: if `last` is not.
    """
    last = folder.checkpoint("last")
    try:
        return read(last)
    except Damaged as error:
        if strict:
            raise
        faults = [str(error)]
    for _, path in folder.numbered("last", "update")[:MOST_TRIED]:
        try:
            found = read(path)
        except Damaged as error:
            faults.append(str(error))
            continue
        faults.append(f"going on from {path}, after update {found.updates}; --strict refuses to")
        for fault in faults:
            folder.note(fault)
            warn(fault)
        return found
    raise Damaged(f"{faults[0]}; there is none to go on from")


class CheckpointManager:
    """Writes `last` as often as it costs little, keeps what it was, and outlives a full disk."""

    def __init__(
        self,
        folder: RunFolder,
        keep: int,
        say: Callable[[str], None],
        start: Checkpoint | None = None,
    ) -> None:
        """keep: number of last checkpoints. say: told of failures. start: where the run goes on."""
        self._folder, self._keep, self._say = folder, keep, say
        self._path = start.path if start else None
        self._updates = start.updates if start else 0
        self._due = -math.inf
        self._failing: set[str] = set()

    def __str__(self) -> str:
        return f"the last good checkpoint is {self._path}, after update {self._updates}"

    def now_and_then(self, save: Callable[[], None]) -> None:
        """Attempt it if its turn has come, which is when it costs SAVE_SHARE of the time."""
        begin = time.monotonic()
        if begin >= self._due:
            self.attempt("last", save)
            now = time.monotonic()
            self._due = now + max(SAVE_INTERVAL, (now - begin) / SAVE_SHARE)

    def attempt(self, what: str, save: Callable[[], None]) -> bool:
        """Save, and return whether it worked; a failing disk is reported once, and tried again."""
        try:
            save()
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                self._say(
                    f"{error.filename} could not be written ({error.strerror}): training goes on, "
                    f"and tries again later; {self}"
                )
            self._failing.add(what)
        return what not in self._failing

    def last(self, updates: int, write: Callable[[Path], None]) -> None:
        """Replace `last`, always whole; the one before becomes `last-N`. Raises `OSError`."""
        path = self._folder.checkpoint("last")
        if self._keep > 1 and self._path == path and self._updates < updates:
            kept = self._folder.checkpoint(f"last-{self._updates}")
            duplicate(path, kept, within=self._folder.path)
        write(path)
        self._path, self._updates = path, updates
        earlier = [(number, kept) for number, kept in self._folder.numbered("last")]
        good = [kept for number, kept in earlier if number < updates][: self._keep - 1]
        for _, kept in earlier:
            if kept not in good:
                with contextlib.suppress(OSError):
                    kept.unlink()
