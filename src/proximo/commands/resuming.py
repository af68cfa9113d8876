"""`proximo resume`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from proximo.commands.arguments import allow_code, parse, show


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run exactly where its last checkpoint stands.

    The result is the same, to the bit, as if it had never stopped (on the same processor and
    versions, for envs that are stepped singly and answer alike; the run says so if they do not).
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
    total_episodes: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """End after this many episodes instead."""
    stop_at: Annotated[float | None, arg(metavar="R", help_behavior_hint="")] = None
    """End early at this return instead."""
    env: Annotated[str | None, arg(metavar="ENV", help_behavior_hint="")] = None
    """The env, which a run in code of your own (module:Class) needs to hear again."""
    wrappers: Annotated[tuple[str, ...], arg(metavar="WRAPPER ...", help_behavior_hint="")] = ()
    """Its wrappers, in the same way."""
    net: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The network, where it is code of your own, which needs to be said again."""
    algorithm: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The algorithm, in the same way."""
    schedule: Annotated[tuple[str, ...], arg(metavar="module:NAME ...", help_behavior_hint="")] = ()
    """Its schedules, in the same way."""
    callback: Annotated[tuple[str, ...], arg(metavar="module:NAME ...", help_behavior_hint="")] = ()
    """Its callbacks, in the same way, and further ones."""
    strict: bool = False
    """Refuse a last checkpoint that is damaged, instead of going on from the newest whole one."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    command = parse(Resume, "resume", arguments)

    from proximo.commands.running import go_on
    from proximo.run.checkpoint import newest
    from proximo.run.consent import WHAT, Named
    from proximo.run.folder import RunFolder
    from proximo.run.named_callbacks import with_callbacks
    from proximo.run.resuming import continued

    folder = RunFolder.open(command.run)
    folder.check_begun()
    named = Named(
        env=command.env,
        wrappers=command.wrappers,
        net=command.net,
        algorithm=command.algorithm,
        schedules=command.schedule,
        callbacks=command.callback,
    )
    config = allow_code(folder.read_config(), named, tuple(WHAT), "resume", arguments)
    config, callbacks = with_callbacks(config, command.callback, again=True, kept=True)
    changes = ("total_steps", "total_episodes", "stop_at", "engine", "device")
    saved, result = newest(folder, strict=command.strict), folder.read_result()
    config, ended = continued(config, saved, result, {n: getattr(command, n) for n in changes})
    if not ended:
        return go_on(config, folder, saved, callbacks, quiet=command.quiet)
    if (result.get("stopped_by"), result.get("updates")) != (ended, saved.updates):
        # Killed before its result was written, or that is of another state.
        go_on(config, folder, saved, callbacks, quiet=command.quiet)
    if not command.quiet:
        early = {"stop_at": "--stop-at", "total_episodes": "--run.total-episodes"}.get(ended)
        show(
            f"{command.run} is finished: {saved.steps:,} of {config.run.total_steps:,} steps"
            f"{f', ended early at its {early}' if early else ''}. "
            "To train further, give --total-steps"
        )
    return 0
