"""`proximo plot`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from proximo.commands.arguments import optional, parse, show
from proximo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw the learning curves of a run; of several runs of one task, their mean with a band.

    The band is one standard deviation over runs to each side. Runs of other algorithms or settings
    are curves of their own, with a label.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")]
    """Run folders."""
    out: Annotated[Path | None, optional("FILE")] = None
    """The picture; by default curves.png in the (first) run folder."""


def main(arguments: list[str]) -> int:
    command = parse(Plot, "plot", arguments)
    if not command.runs:
        raise UsageError("name at least one run folder")

    from proximo.commands.curves import draw_curves
    from proximo.run.folder import RunFolder

    folders = [RunFolder.open(run) for run in command.runs]
    out = command.out or command.runs[0] / "curves.png"
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--out is {out}: its name must end in .png, .svg or .pdf")
    if not out.parent.is_dir():
        raise UsageError(f"--out is {out}: there is no folder {out.parent}")
    for note in draw_curves(folders, out):
        show(note)
    show(f"curves in {out}")
    return 0
