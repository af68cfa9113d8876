"""`proximo export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from proximo.commands.arguments import optional, parse, show
from proximo.commands.stored import OfRun


@dataclass(frozen=True, kw_only=True)
class Export(OfRun):
    """Write a trained policy as one ONNX file, which takes its most likely actions.

    It needs onnxruntime and not PyTorch to run. Before it is kept, it is compared with the policy.
    """

    out: Annotated[Path | None, optional("FILE")] = None
    """The .onnx file; by default policy.onnx in the run folder."""
    overwrite: bool = False  # Replace an existing file.
    checkpoint: Literal["last", "best"] = "last"  # Policy to use.


def main(arguments: list[str]) -> int:
    command = parse(Export, "export", arguments)

    from proximo.agent import load

    command.config("export", arguments)  # consent to import its code
    out = command.out or command.run / "policy.onnx"
    path = out.absolute()  # code of the user's own may change the current folder
    agent = load(command.run, command.checkpoint, net=command.net, algorithm=command.algorithm)
    model = agent.export(path, overwrite=command.overwrite)
    show(f"{command.checkpoint} policy of {command.run}, {agent.result['steps']:,} steps, in {out}")
    show(f"takes {', '.join(model.inputs)}")
    show(f"gives {', '.join(model.outputs)}")
    show(
        f"run on {model.observations} random observations, it acts as the policy does "
        f"(numbers within {model.difference:.1e})"
    )
    return 0
