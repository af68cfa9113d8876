"""Training in a terminal: what `train` and `resume` share."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from types import FrameType

from proximo.commands.display import LiveDisplay, PlainDisplay
from proximo.envs.make import return_threshold
from proximo.loop import run_session
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config
from proximo.run.folder import RunFolder, free_path
from proximo.run.presets import Preset
from proximo.run.session import Session
from proximo.types import Metrics, Rollout, TrainState


class Interrupt:
    """A callback: the first Ctrl-C or SIGTERM ends training after the update, a second at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.signal, self.interrupted = number, True

    def __call__(self, state: TrainState, rollout: Rollout, metrics: Metrics) -> bool:
        return self.interrupted


def begin(
    config: Config, preset: Preset | None, *, run_dir: Path | None, start: Path | None, quiet: bool
) -> int:
    """Train from the beginning, in a new folder."""
    policy = Checkpoint(RunFolder.open(start).checkpoint("last")) if start else None
    folder = RunFolder.create(run_dir or free_path(config), config)
    lines = [f"{config.algorithm.name} on {config.env.id}, run folder {folder.path}"]
    if preset:
        lines.append(
            f"settings: preset {preset.name} ({preset.source}); --preset none for defaults"
        )
    if start:
        lines.append(f"policy: from {start}")
    try:
        return _train(config, folder, lines, quiet=quiet, start=policy)
    except BaseException:
        # Only what is still at its beginning: a session that has updated keeps its folder.
        if not folder.metrics_file.exists() or not folder.read_metrics():
            folder.remove()
        raise


def go_on(config: Config, folder: RunFolder, saved: Checkpoint, *, quiet: bool) -> int:
    """Train on, from a checkpoint."""
    task = f"{config.algorithm.name} on {config.env.id}"
    lines = [f"{task}, going on in {folder.path} after update {saved.updates}"]
    return _train(config, folder, lines, quiet=quiet, resume=saved)


def _train(
    config: Config,
    folder: RunFolder,
    lines: list[str],
    *,
    quiet: bool,
    start: Checkpoint | None = None,
    resume: Checkpoint | None = None,
) -> int:
    interrupt = Interrupt()
    display: LiveDisplay | PlainDisplay | None = None
    threshold = return_threshold(config.env)
    if not quiet:
        kind = LiveDisplay if sys.stdout.isatty() else PlainDisplay
        display = kind(config.run.total_steps, folder.note)
    session = Session(
        config, folder=folder, callbacks=[interrupt], display=display, start=start, resume=resume
    )
    device = session.config.run.device
    if config.run.device == "auto":
        small = "small networks are faster there" if device == "cpu" else "the network is large"
        lines.append(f"device: {device} ({small})")
    if threshold is not None:
        lines.append(f"solved at a return of {threshold:g}")
    lines += session.notes
    for line in lines:
        folder.note(line)
        if not quiet:
            print(line, flush=True)
    try:
        with display or contextlib.nullcontext():
            agent = run_session(session)
    except KeyboardInterrupt:
        kept = folder.path.exists()
        print(
            "stopped at once; "
            + (
                f"go on from the last checkpoint by: proximo resume {folder.path}"
                if kept
                else "nothing was learned yet"
            ),
            file=sys.stderr,
        )
        return 128 + (interrupt.signal or signal.SIGINT)
    result = agent.result
    if interrupt.signal is not None:
        print(
            f"stopped after update {result['updates']}; go on by: proximo resume {folder.path}",
            file=sys.stderr,
        )
        return 128 + interrupt.signal
    if not quiet:
        mean = result["return_mean"]
        score = "no episode ended" if mean is None else f"return {mean:.1f} (last 100 episodes)"
        print(
            f"{score} after {result['steps']:,} steps in {result['seconds']:.1f} s\n"
            f"run folder: {folder.path}"
        )
    return 0
