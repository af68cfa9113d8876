"""Video of an env, and the one place that imports imageio."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np

from proximo.commands.pictures import extra
from proximo.envs.layers import title
from proximo.errors import UsageError, explain, faults

PICTURE = (
    "with the render_mode rgb_array, which its __init__ is given and must keep, it must return an "
    "array [height, width, 3] of uint8"
)
"""Contract of `render` for a video."""
RATE = 30.0
"""Frames per second where an env does not name any."""
RATES = 0.1, 1000.0
"""Lowest and highest rate that a file can show."""


def frame_rate(metadata: dict[str, Any]) -> tuple[float, str]:
    """Frames per second of an env's metadata, or a default with a warning."""
    rate = metadata.get("render_fps", RATE)
    number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
    if number and RATES[0] <= rate <= RATES[1]:
        return float(rate), ""
    warning = f"render_fps of its metadata is {rate!r}: shown at {RATE:g} frames a second"
    return RATE, "" if rate is None else warning


class Video:
    """Frames of an env, written to a .gif or .mp4 one by one as they come.

    A GIF shows at most 25 frames a second, which browsers do not slow down; frames are left out
    evenly, so that its time stays true. The file replaces an older one only when it is whole.
    """

    def __init__(self, path: Path, rate: float, env: gym.Env) -> None:
        """`rate`: the env's frames per second. Raises `UsageError`."""
        self._path, self._env, self._gif = path, env, path.suffix == ".gif"
        self._stride = max(1, round(rate / 25)) if self._gif else 1
        self._scale, self._shape = 255, (0, 0)
        self.frames = 0
        imageio = extra("imageio.v2")
        if self._gif:
            duration = 1000 * self._stride / rate  # milliseconds a frame
            options: dict[str, Any] = {"duration": duration, "loop": 0, "subrectangles": True}
        else:
            extra("imageio_ffmpeg")
            # Its report would stand among ours; what it cannot write is seen in the end.
            options = {"fps": rate, "macro_block_size": 1, "ffmpeg_log_level": "quiet"}
        with self._written():
            self._aside = tempfile.TemporaryDirectory(dir=path.parent, prefix=".proximo-")
            self._file = Path(self._aside.name, path.name)
            self._writer = imageio.get_writer(self._file, **options)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).strip().splitlines()[0]
            raise UsageError(f"the video {self._path} cannot be written: {reason}") from error

    def watch(self) -> None:
        """Add a picture of the env as it is now. Raises `UsageError` if it gives none."""
        if (picture := self.take()) is not None:
            self.write(picture)

    def take(self) -> np.ndarray | None:
        """Picture of the env as it is now, in the size of the first, if its state has a frame.

        Raises `UsageError`.
        """
        due = self.frames % self._stride == 0
        picture = self._fit(self._drawn()) if due else None
        self.frames += 1
        return picture

    def write(self, frame: np.ndarray) -> None:
        """Add a frame. Raises `UsageError`."""
        with self._written():
            self._writer.append_data(frame)

    def _drawn(self) -> np.ndarray:
        """Picture [height, width, 3] of uint8, from bytes, fractions of one, or grey."""
        name = title(self._env)
        try:
            drawn: Any = self._env.render()
        except NotImplementedError as error:
            raise UsageError(f"{name} has no method render: {PICTURE}") from error
        except faults() as error:
            raise UsageError(f"the method render of {name} failed: {explain(error)}") from error
        try:
            picture = np.asarray(drawn)
        except Exception:
            picture = np.empty(0, object)
        if picture.dtype.kind not in "buif":
            raise UsageError(f"the method render of {name} returned {_short(drawn)}: {PICTURE}")
        if picture.ndim == 2:
            picture = picture[..., None]
        if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or not picture.size:
            raise UsageError(
                f"the method render of {name} returned an array of shape {np.shape(drawn)}: "
                f"{PICTURE}"
            )
        if picture.dtype == bool:
            picture = picture * np.uint8(255)
        low, high = picture.min(), picture.max()
        if not 0 <= low <= high <= 255:
            raise UsageError(
                f"the method render of {name} returned numbers from {low:g} to {high:g}: {PICTURE}"
            )
        if picture.dtype.kind == "f":
            if high > 1:  # so those before were all but black
                self._scale = 1
            picture = np.rint(picture * self._scale)
        picture = picture[..., :3]  # without transparency
        return np.broadcast_to(picture, (*picture.shape[:2], 3)).astype(np.uint8)

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        """The picture in the size of the first one: a video has one size, an mp4 even sides."""
        if not self.frames:
            even = 1 if self._gif else 2
            self._shape = tuple(-(-side // even) * even for side in picture.shape[:2])
        if picture.shape[:2] == self._shape:
            return picture
        rows, columns = (
            np.arange(size) * old // size
            for size, old in zip(self._shape, picture.shape[:2], strict=True)
        )
        fitted: np.ndarray = picture[rows][:, columns]
        return fitted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Finish the file, or after an error leave none. Raises `UsageError` if that fails."""
        with self._aside, self._written():
            if kind:
                with contextlib.suppress(Exception):
                    self._writer.close()
                return
            self._writer.close()
            if not self._file.is_file() or not self._file.stat().st_size:
                raise OSError("the encoder wrote nothing")
            os.replace(self._file, self._path)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
