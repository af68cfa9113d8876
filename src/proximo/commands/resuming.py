"""`proximo resume`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from proximo.commands.arguments import optional, parse, show
from proximo.commands.stored import OfEnv

Engine = Literal["auto", "torch", "compile", "native"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class Resume(OfEnv):
    """Continue a run exactly where its last checkpoint stands.

    The result is the same, to the bit, as if it had never stopped (on the same processor and
    versions, for envs that are stepped singly and answer alike; the run says so if they do not).
    Rows that were logged after the checkpoint are dropped and made again.
    """

    engine: Annotated[Engine | None, optional("{auto,torch,compile,native}")] = None
    """Another engine than so far; the bits then differ in the last places."""
    device: Annotated[Device | None, optional("{auto,cpu,cuda,mps}")] = None
    """Another device than so far; the bits then differ in the last places."""
    total_steps: Annotated[int | None, optional("N")] = None
    """Train to this many steps instead, whatever ended the run; schedules keep their horizon."""
    total_episodes: Annotated[int | None, optional("N")] = None
    """End after this many episodes instead."""
    stop_at: Annotated[float | None, optional("R")] = None  # End early at this return instead.
    schedule: Annotated[tuple[str, ...], optional("module:Name ...")] = ()
    """Schedules of the run that are code; likewise."""
    callback: Annotated[tuple[str, ...], optional("module:Name ...")] = ()
    """Callbacks of the run; likewise, and further ones."""
    strict: bool = False
    """Refuse a damaged last checkpoint, instead of continuing from the newest whole one."""
    quiet: bool = False  # Print nothing but errors.


def main(arguments: list[str]) -> int:
    command = parse(Resume, "resume", arguments)

    from proximo.commands.running import go_on
    from proximo.run.control import continued
    from proximo.run.folder import RunFolder
    from proximo.run.keeping import newest
    from proximo.run.named_callbacks import with_callbacks

    folder = RunFolder.open(command.run)
    folder.check_begun()
    code = {"schedules": command.schedule, "callbacks": command.callback}
    config = command.config("resume", arguments, **code)
    config, callbacks = with_callbacks(config, command.callback, again=True, kept=True)
    changes = ("total_steps", "total_episodes", "stop_at", "engine", "device")
    saved = newest(folder, strict=command.strict)
    config, ended = continued(config, folder, saved, {n: getattr(command, n) for n in changes})
    # It may have been killed before its result was written, or that is of another state.
    if not ended or not folder.has_result(ended, saved.updates):
        exit_code = go_on(config, folder, saved, callbacks, quiet=command.quiet)
        if not ended:
            return exit_code
    if not command.quiet:
        early = {"stop_at": "--stop-at", "total_episodes": "--run.total-episodes"}.get(ended)
        show(
            f"{command.run} is finished: {saved.steps:,} of {config.run.total_steps:,} steps"
            f"{f', ended early at its {early}' if early else ''}. "
            "To train further, give --total-steps"
        )
    return 0
