"""Training in a terminal: the shell of every run, and `train` and `resume`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from proximo.commands.arguments import say, show
from proximo.commands.signals import Interrupt
from proximo.commands.waiting import said_if_slow
from proximo.errors import TrainingError, UsageError, explain
from proximo.loop import run_session
from proximo.run.callbacks import Watcher
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, task_name
from proximo.run.control import make_session, start_from
from proximo.run.display import CONTROL, Display, make_display, screen_for
from proximo.run.folder import RunFolder, free_path
from proximo.run.named_callbacks import with_callbacks
from proximo.run.presets import Preset
from proximo.run.profile import in_words
from proximo.run.session import Session
from proximo.types import Row


def begin(
    config: Config, preset: Preset | None, *, run_dir: Path | None, start: Path | None, quiet: bool
) -> int:
    """Train from the beginning, in a new folder."""
    lines = []
    if preset:
        lines.append(
            f"settings: preset {preset.name} ({preset.source}"
            f"{'' if preset.measured(config.env.id) else f'; not measured in {config.env.id}'}); "
            "--preset none for defaults"
        )
    config, policy = start_from(config, start, "--net.module ")
    if policy:
        lines.append(f"policy and network: from {start}")
    config, callbacks = with_callbacks(config, (), again=False, kept=True)
    folder = RunFolder.create(run_dir or free_path(config), config)
    lines = [f"{task_name(config)}, run folder {folder.name}", *lines]
    return _train(config, folder, lines, callbacks, quiet=quiet, start=policy)


def go_on(
    config: Config, folder: RunFolder, saved: Checkpoint, callbacks: list[Any], *, quiet: bool
) -> int:
    """Train on, from a checkpoint."""
    ended = config.run.ended_by(saved.record)
    what = "writing the result of" if ended else "going on in"
    lines = [f"{task_name(config)}, {what} {folder.name} after update {saved.updates}"]
    horizon = int(saved.record["horizon"])
    if config.run.total_steps > horizon and not ended:
        rates = config.algorithm.rates(1.0, saved.record.get("rate_scale", 1.0))
        words = " and ".join(f"the {name.replace('_', ' ')} is {r:g}" for name, r in rates.items())
        lines.append(f"schedules ended at {horizon:,} steps; from there {words}")
        if not any(rates.values()):
            lines.append(
                "WARNING: at a learning rate of 0 nothing more is learned. To train this policy "
                f"further, begin a new run with it: proximo train ... --from {folder.name}"
            )
    return _train(config, folder, lines, callbacks, quiet=quiet, resume=saved)


def supervise(
    make: Callable[[Interrupt], Session],
    ending: Callable[[Session, Row], Iterable[str]],
    folder: RunFolder,
    display: Display | None,
    lines: Iterable[str],
    *,
    grace: float,
    resume: str,
) -> int:
    """The shell of every run: trains, and heeds signals; returns the exit code.

    ending: what is said at the end of a run that was not interrupted. display: None is quiet.
    lines: what is said first. resume: the command that continues a run. Raises `TrainingError`.
    """
    quiet = display is None
    with Interrupt(folder, grace, resume) as interrupt:
        try:
            session = make(interrupt)
            interrupt.install()  # the envs are there, and perhaps handlers of theirs
            note([*lines, *session.log.setup_notes], folder, quiet=quiet)

            def check_signals(state: Any, rollout: Any, row: Row) -> None:
                if interrupt.signal:
                    session.interruption = "interrupted"
                if interrupt.save_requested:
                    interrupt.save_requested = False
                    if session.save():
                        note([f"SIGUSR1: saved after update {state.updates}"], folder, quiet=quiet)

            session.callbacks.append(Watcher(check_signals))  # after all: saved with their part
            with display or contextlib.nullcontext():
                result = run_session(session)
        except KeyboardInterrupt:
            show(interrupt.stopped_at_once(), file=sys.stderr)
            return 128 + (interrupt.signal or signal.SIGINT)
        except (TrainingError, SystemExit) as error:
            what = str(error)
            if isinstance(error, SystemExit):  # errors of envs name them: perhaps a network's
                what = f"code of your own has ended the training: {explain(error)}"
                if not folder.path.exists():  # nothing was learned yet
                    raise UsageError(what) from error
            raise TrainingError(
                f"{what}\nThe run is kept, and the traceback is in {folder.log_file}; "
                f"go on by: {resume} {folder.name}"
            ) from error
    if interrupt.signal and result["stopped_by"] == "interrupted":  # and not after the last update
        after = f"stopped after update {result['updates']}"
        show(f"{after}; go on by: {resume} {folder.name}", file=sys.stderr)
        return 128 + interrupt.signal
    if not quiet:
        say("\n".join(ending(session, result)))
    return 0


def note(lines: Iterable[str], folder: RunFolder, *, quiet: bool) -> None:
    """Write lines to the log of a run, and print them."""
    for line in lines:
        folder.note(line)
        if not quiet:
            say(line)


def _train(
    config: Config,
    folder: RunFolder,
    lines: list[str],
    callbacks: list[Any],
    *,
    quiet: bool,
    start: Checkpoint | None = None,
    resume: Checkpoint | None = None,
) -> int:
    screen = None if quiet else screen_for()
    display = make_display(screen, CONTROL, config.run.total_steps, folder)

    def make(interrupt: Interrupt) -> Session:
        slow = f"making {config.env.num_envs} envs and trying one takes long: still at it"
        with contextlib.nullcontext() if quiet else said_if_slow(slow):
            return make_session(
                config,
                folder=folder,
                callbacks=[*callbacks, interrupt],
                display=display,
                watch=display.move if display else None,
                start=start,
                resume=resume,
            )

    def ending(session: Session, result: Row) -> list[str]:
        late = [x for x in result.get("warnings", ()) if x not in session.log.setup_notes]
        return [*late, *_ending(result, config, folder)]

    grace = config.run.grace
    return supervise(make, ending, folder, display, lines, grace=grace, resume="proximo resume")


def _ending(result: dict[str, Any], config: Config, folder: RunFolder) -> list[str]:
    """What the user reads last."""
    lines = in_words(result["profile"]) if "profile" in result else []
    if result["stopped_by"] == "stop_at":
        lines.append(
            f"ended early: the smoothed return, {result['return_smoothed']:.1f}, and an evaluation "
            f"of {config.run.eval_episodes} episodes, {result['evaluation']:.1f}, reached "
            f"{config.run.stop_at:g}"
        )
    elif "evaluation" in result:
        lines.append(f"evaluation of the last policy: {result['evaluation']:.1f}")
    mean = result["return_mean"]
    score = "no episode ended (does the env have a time limit? see --env.max-episode-steps)"
    if mean is not None:
        score = f"return {mean:.1f} (last 100 episodes of training, with the policies before)"
    lines.append(f"{score} after {result['steps']:,} steps in {result['seconds']:.1f} s")
    return [*lines, f"run folder: {folder.name}"]
