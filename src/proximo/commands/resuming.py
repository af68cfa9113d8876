"""`proximo resume`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from proximo.commands.arguments import allow_code, parse, show


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run exactly where its last checkpoint stands.

    The result is the same, to the bit, as if it had never stopped (on the same processor and
    versions, for worlds that are stepped singly and answer alike; the run says so if they do not).
    What was logged after the checkpoint is dropped and made again.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    engine: Annotated[
        Literal["auto", "torch", "compile", "native"] | None,
        arg(metavar="{auto,torch,compile,native}", help_behavior_hint=""),
    ] = None
    """Compute updates by another engine than so far; the bits then differ in the last places."""
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        arg(metavar="{auto,cpu,cuda,mps}", help_behavior_hint=""),
    ] = None
    """Go on with another device than so far; the bits then differ in the last places."""
    total_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Train to this many steps instead, whatever ended the run; schedules keep their horizon."""
    env: Annotated[str | None, arg(metavar="ENV", help_behavior_hint="")] = None
    """The world, which a run in code of your own (module:Class) needs to hear again."""
    wrappers: Annotated[tuple[str, ...], arg(metavar="WRAPPER ...", help_behavior_hint="")] = ()
    """Its wrappers, in the same way."""
    net: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The network, where it is code of your own, which needs to be said again."""
    strict: bool = False
    """Refuse a last checkpoint that is damaged, instead of going on from the newest whole one."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    command = parse(Resume, "resume", arguments)

    from proximo.commands.running import go_on
    from proximo.run.checkpoint import newest
    from proximo.run.folder import RunFolder

    folder = RunFolder.open(command.run)
    named = (command.env, command.wrappers, command.net)
    config = allow_code(folder.read_config(), *named, "resume", arguments)
    given = {name: getattr(command, name) for name in ("total_steps", "engine", "device")}
    changed = {name: value for name, value in given.items() if value is not None}
    if command.total_steps is not None:
        changed["total_episodes"] = None
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
    last = folder.checkpoint("last")
    saved = newest(folder, strict=command.strict)
    ended = folder.read_result().get("stopped_by") if saved.path == last else None
    reached = {"stop_at": "--stop-at", "total_episodes": "--run.total-episodes"}.get(str(ended))
    if saved.steps >= config.run.total_steps or (reached and command.total_steps is None):
        if not command.quiet:
            show(
                f"{command.run} is finished: {saved.steps:,} of {config.run.total_steps:,} steps"
                f"{f', ended early at its {reached}' if reached else ''}. "
                "To train further, give --total-steps"
            )
        return 0
    return go_on(config, folder, saved, quiet=command.quiet)
