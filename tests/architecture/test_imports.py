"""Imports run one way, as the design says; heavy packages stand in one room each."""

import ast
import sys
from pathlib import Path

import pytest

import proximo

SOURCE = Path(proximo.__file__).parent

# Each room may import those of the rows below it, not its own row's neighbours.
LAYERS = [
    ["cli"],
    ["commands"],
    ["tuning"],
    ["insight"],
    ["language"],
    ["loop"],
    ["agent"],
    ["run"],
    ["collect", "evaluation", "export", "algorithms"],
    ["state"],
    ["engines"],
    ["nets", "envs"],
    ["functional", "imports", "spaces"],
    ["disk", "types", "native"],
    ["errors"],
    ["bounds"],
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
EXTRAS = {
    "matplotlib": "commands.pictures",
    "imageio": "commands.video",
    "pandas": "run.metrics",
    "envpool": "envs.envpool",
    "jax": "envs.simulators",
    "minigrid": "envs.registries",
    "mujoco": "envs.mujoco",
    "pettingzoo": "envs.registries",
    "transformers": "language.model",
    "tokenizers": "language.blueprint",
    "peft": "language.adapters",
    "tensorboard": "run.trackers",
    "vmas": "envs.vmas",
    "wandb": "run.trackers",
    "mlflow": "run.trackers",
    "trackio": "run.trackers",
    "optuna": "tuning.proposals",
}
RUNTIME = {"torch", "numpy", "gymnasium", "safetensors", "orjson", "tyro", "rich", "proximo"}
PICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path):
    """Every module that a file imports, wherever in it: inside functions and type checks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module):
    return module.split(".")[0]


CASES = [(name, path) for name, path in modules() if name not in ("", "__main__")]


@pytest.mark.parametrize(("name", "path"), CASES, ids=[name for name, _ in CASES])
def test_imports_run_downwards(name, path):
    for target in imports(path):
        if not target.startswith("proximo."):
            continue
        other = room(target.removeprefix("proximo."))
        if other not in RANK:
            assert other == "__version__", f"{name} imports {target}, which is in no room"
            continue
        same = other == room(name)
        assert same or RANK[other] > RANK[room(name)], f"{name} may not import {target}"


def test_every_room_has_its_place():
    assert {room(name) for name, _ in CASES} == set(RANK)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_only_the_declared_packages_are_imported_and_none_that_pickles(name, path):
    roots = {target.split(".")[0] for target in imports(path)} - {""}
    assert not roots & PICKLING
    foreign = roots - RUNTIME - set(sys.stdlib_module_names)
    assert all(EXTRAS.get(package) == name for package in foreign), f"{name}: {foreign}"


def test_no_module_has_the_name_of_a_public_function():
    # With lazy imports, `from proximo import train` would return the module.
    for name in set(proximo.__all__) - {"functional"}:  # which is the room itself
        assert not (SOURCE / f"{name}.py").exists()
        assert not (SOURCE / name).exists()


PRINTS = {"cli": 4, "commands.arguments": 1, "disk": 1, "tuning.worker": 1}
"""Calls of print in a module: all else goes by `show`, which lets no control character pass.
A worker of a search prints JSON, in which they are escapes."""


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_what_is_printed_goes_one_way(name, path):
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    printing = [call for call in calls if ast.unparse(call.func) == "print"]
    writing = [call for call in calls if ast.unparse(call.func).startswith("sys.std")]
    writing = [call for call in writing if ast.unparse(call.func).endswith(".write")]
    assert len(printing + writing) <= PRINTS.get(name, 0)


def test_every_public_name_is_there():
    for name in proximo.__all__:
        assert getattr(proximo, name).__doc__
