"""A policy as one ONNX file, which acts without PyTorch.

The graph holds one-hots, scaling, standardisation, masks and bounds. It is run, and compared with
the policy, before the file is written.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from proximo.errors import UsageError, faults
from proximo.functional.distributions import ILLEGAL
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK, Leaf, torch_dtype

TOLERANCE = 1e-4
"""Between the file's numbers and the policy's, in shares of the largest of them, or of 1."""
BATCHES, STEPS = (1, 7), 4
"""Observations that the file is tried on: in so many envs, for so many steps."""


class Exported(NamedTuple):
    """Inputs and outputs of an ONNX file, and its difference from the policy."""

    inputs: tuple[str, ...]  # name, type and shape of each
    outputs: tuple[str, ...]
    observations: int  # on which it was compared with the policy
    difference: float  # the largest, as `TOLERANCE` measures it


def export(
    policy: ActorCritic,
    path: Path,
    about: dict[str, str],
    *,
    write: Callable[[Path, bytes], None],
    privileged: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Exported:
    """Write the file by `write`, with `about` as its metadata. Raises `UsageError`.

    privileged: first keys of what only the critic sees, which the file does not ask for.
    """
    path = path.absolute()  # a network may change the current folder
    _check_path(path, overwrite)
    onnxruntime = [_extra(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    policy = copy.deepcopy(policy)
    policy.compute_in("float32")  # as the file does
    acting = _Acting(policy, privileged)
    try:
        data = _graph(acting, about)
    except faults() as error:
        if not policy.own:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"this run's network cannot be exported ({reason}): the size of a batch must be "
            "x.shape[0], not len(x), and what is computed must not depend on the numbers"
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    difference = _compare(session, policy, acting)
    try:
        write(path, data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    ends = (session.get_inputs(), session.get_outputs())
    put, got = (tuple(map(_in_words, end)) for end in ends)
    return Exported(put, got, sum(BATCHES) * STEPS, difference)


def _check_path(path: Path, overwrite: bool) -> None:
    if path.suffix != ".onnx":
        raise UsageError(f"the file to write is {path}: its name must end in .onnx")
    if not path.parent.is_dir():
        raise UsageError(f"the file to write is {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"the file to write is {path}: that is a folder")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UsageError(f"{path} exists: choose another name, or say --overwrite (overwrite=True)")


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f'export needs {error.name}: pip install "proximo[export]"') from error


def _in_words(end: Any) -> str:
    kind = end.type.removeprefix("tensor(").removesuffix(")")
    return f"{end.name} {kind} [{', '.join(map(str, end.shape))}]"


class _Acting(nn.Module):
    """The computation in the file: from leaves of observations to leaves of actions."""

    def __init__(self, policy: ActorCritic, privileged: tuple[str, ...]) -> None:
        """Copy the policy, without the critic: exporting changes it."""
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu().eval()
        self.policy.critic = self.policy.critic_recurrent = None
        recurrent = self.policy.actor_recurrent
        self.state_size = recurrent.state_size if recurrent else 0
        leaves = policy.observations.leaves
        self.hidden = {leaf.path for leaf in leaves if leaf.path and leaf.keys[0] in privileged}
        self.shown = [leaf for leaf in leaves if leaf.path not in self.hidden]
        self.inputs = [_input(leaf) for leaf in self.shown]
        self.outputs = [_output(leaf) for leaf in policy.actions.leaves] + ["distribution"]
        if recurrent:
            self.inputs.append("recurrent_state")
            self.outputs.append("next_recurrent_state")
        for name in (*self.inputs, *self.outputs):
            if (self.inputs + self.outputs).count(name) > 1:
                raise UsageError(f"two parts of this env would be named {name}: rename a key")

    def given(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """The leaves of an observation that are inputs of the file."""
        pairs = zip(self.policy.observations.leaves, parts, strict=True)
        return [part for leaf, part in pairs if leaf.path not in self.hidden]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Each [N, *leaf], as `inputs` and `outputs` name them; the recurrent state is [N, C]."""
        policy, recurrent_state = self.policy, inputs[-1] if self.state_size else None
        row = self._row({leaf.path: part for leaf, part in zip(self.shown, inputs, strict=False)})
        action, distribution, moved = policy.act(row, None, recurrent_state)
        nested = policy.actions.nested(policy.head.env_action(action))
        parts = [leaf.of(nested) for leaf in policy.actions.leaves]
        return (*parts, distribution.parameters, *([] if moved is None else [moved]))

    def _row(self, given: dict[tuple[Any, ...], Tensor]) -> Tensor:
        """`Observations.write` in the graph, in the type of the policy."""
        rows, kind = self.policy.observations, self.policy.dtype
        if rows.plain:
            return given[()] if rows.dtype == np.uint8 else given[()].to(kind)
        count = next(iter(given.values())).shape[0]  # `len` would fix it
        parts = []
        for leaf in rows.leaves:
            if leaf.path not in given:  # only the critic would look at it
                part = torch.zeros(count, leaf.end - leaf.begin)
            else:
                part = leaf.columns(given[leaf.path])
            parts.append(part.to(torch_dtype(rows.dtype)))
        return torch.cat(parts, -1).to(kind)


def _input(leaf: Leaf) -> str:
    if leaf.path[:1] == (MASK,):
        return leaf.name
    return f"obs/{leaf.name}" if leaf.path else "observation"


def _output(leaf: Leaf) -> str:
    return f"action/{leaf.name}" if leaf.path else "action"


def _graph(acting: _Acting, about: dict[str, str]) -> bytes:
    """The content of the file."""
    rows, count = acting.policy.observations, 3  # neither 0 nor 1, which may be taken for special
    drawn = acting.given(rows.draw(np.random.default_rng(0), count))
    example = [torch.from_numpy(part) for part in drawn]
    if acting.state_size:
        example.append(torch.zeros(count, acting.state_size, dtype=acting.policy.dtype))
    shapes = (({0: torch.export.Dim("batch")},) * len(example),)
    with torch.no_grad(), _quiet():
        acting(*example)  # bounds of actions come to the CPU with the first one
        traced = torch.export.export(acting, tuple(example), dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced,
            dynamic_shapes=shapes,  # for the name
            input_names=acting.inputs,
            output_names=acting.outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the sources it came from: paths of this machine
    program.model.metadata_props.update(about)
    data: bytes = program.model_proto.SerializeToString()
    return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports on its internals; the file is tested afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _compare(session: Any, policy: ActorCritic, acting: _Acting) -> float:
    """Run the file beside the policy, each with its own state; returns the largest difference.

    The action must be the most likely one of the file's own distribution, which may differ from the
    policy's by `TOLERANCE`.
    """
    rows, drawn, worst = policy.observations, np.random.default_rng(1), 0.0
    for count in BATCHES:
        size = acting.state_size
        recurrent_state: Any = torch.zeros(count, policy.state_size).to(policy.obs_shift)
        remembered = recurrent_state[:, :size].cpu().numpy()  # by the file
        for _ in range(STEPS):
            parts = rows.draw(drawn, count)
            given = acting.given(parts) + [remembered] * bool(size)
            answer = session.run(acting.outputs, dict(zip(acting.inputs, given, strict=True)))
            outputs = dict(zip(acting.outputs, answer, strict=True))

            row = policy.as_rows(rows.rows(parts))
            _, distribution, recurrent_state = policy.act(row, None, recurrent_state)
            restored = torch.from_numpy(outputs["distribution"]).to(policy.device)
            nested = policy.actions.nested(policy.head.to_env(policy.head.restore(restored).mode()))
            expected = {_output(leaf): leaf.of(nested) for leaf in policy.actions.leaves}
            expected["distribution"] = distribution.parameters.cpu().numpy()
            if size:
                remembered = outputs["next_recurrent_state"]
                expected["next_recurrent_state"] = recurrent_state[:, :size].cpu().numpy()
            worst = max(worst, *(_apart(name, outputs[name], expected[name]) for name in outputs))
    return worst


def _apart(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference in shares of the largest number, or of 1; whole numbers: none."""
    apart, bound = np.inf, 0.0
    if found.shape == np.shape(expected):
        apart = float(np.abs(found.astype(float) - expected).max())
        if found.dtype.kind == "f":
            usual = np.asarray(expected, np.float64)  # float16 cannot be compared with ILLEGAL
            size = np.abs(usual[usual > ILLEGAL / 2]).max(initial=1.0)
            apart, bound = apart / float(size), max(TOLERANCE, float(np.finfo(found.dtype).eps))
    if not apart <= bound:
        raise UsageError(
            f"exported, this policy would not act as it does: {name} is off by {apart:.2g}. "
            "Nothing was written"
        )
    return apart
