"""`proximo resume`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from proximo.commands.arguments import optional, parse, show
from proximo.commands.stored import OfRun

if TYPE_CHECKING:
    from proximo.run.checkpoint import Checkpoint
    from proximo.run.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Resume(OfRun):
    """Continue a run exactly where its last checkpoint stands.

    The result is the same, to the bit, as if it had never stopped (on the same processor and
    versions, for envs that are stepped singly and answer alike; the run says so if they do not).
    Rows that were logged after the checkpoint are dropped and made again.
    """

    engine: Annotated[
        Literal["auto", "torch", "compile", "native"] | None,
        optional("{auto,torch,compile,native}"),
    ] = None
    """Another engine than so far; the bits then differ in the last places."""
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        optional("{auto,cpu,cuda,mps}"),
    ] = None
    """Another device than so far; the bits then differ in the last places."""
    total_steps: Annotated[int | None, optional("N")] = None
    """Train to this many steps instead, whatever ended the run; schedules keep their horizon."""
    total_episodes: Annotated[int | None, optional("N")] = None
    """End after this many episodes instead."""
    stop_at: Annotated[float | None, optional("R")] = None
    """End early at this return instead."""
    strict: bool = False
    """Refuse a damaged last checkpoint, instead of continuing from the newest whole one."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    command = parse(Resume, "resume", arguments)

    from proximo.commands.running import go_on
    from proximo.run.checkpoint import newest
    from proximo.run.config import success_threshold
    from proximo.run.folder import RunFolder

    folder = RunFolder.open(command.run)
    folder.check_begun()
    config = command.config("resume", arguments)
    settings = ("total_steps", "total_episodes", "stop_at", "engine", "device")
    given = {name: getattr(command, name) for name in settings}
    changed: dict[str, Any] = {name: x for name, x in given.items() if x is not None}
    saved, result = newest(folder, strict=command.strict), folder.read_result()
    if command.total_steps is not None:  # whatever ended the run does so no more
        changed = {"total_episodes": None, **changed}
        if _ended(config.run, saved, result) == "stop_at":
            success_at = success_threshold(config)
            changed = {"stop_at": None, "success_at": success_at, **changed}
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
    ended = _ended(config.run, saved, result)
    if not ended:
        return go_on(config, folder, saved, quiet=command.quiet)
    if (result.get("stopped_by"), result.get("updates")) != (ended, saved.updates):
        # Killed before its result was written, or that is of another state.
        go_on(config, folder, saved, quiet=command.quiet)
    if not command.quiet:
        early = {"stop_at": "--stop-at", "total_episodes": "--run.total-episodes"}.get(ended)
        show(
            f"{command.run} is finished: {saved.steps:,} of {config.run.total_steps:,} steps"
            f"{f', ended early at its {early}' if early else ''}. "
            "To train further, give --total-steps"
        )
    return 0


def _ended(run: RunConfig, saved: Checkpoint, result: dict[str, Any]) -> str:
    """The setting that has ended a run with this checkpoint, or "" if it continues."""
    if saved.steps and (ended := run.ended_by(saved.record)):
        return ended
    # The first checkpoints do not hold what the goal was compared with: their result tells.
    reached = (result.get("stopped_by"), result.get("updates")) == ("stop_at", saved.updates)
    old = "last_trial_return" not in saved.record
    return "stop_at" if old and reached and run.stop_at is not None else ""
