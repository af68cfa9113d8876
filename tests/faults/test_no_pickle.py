"""Nothing that is loaded can run code: no pickle, no eval, in any source file."""

import ast
from pathlib import Path

import pytest

import proximo

SOURCES = sorted(Path(proximo.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load"}
IMPORTING = {
    "__init__.py": 'f"proximo.{_HOMES[name]}"',
    "language/__init__.py": 'f"proximo.language.{_HOMES[name]}"',
    "functional/__init__.py": 'f"{__name__}.{name}"',
    "cli.py": 'f"proximo.commands.{module}"',
    "imports.py": "module_name",
    "envs/registries.py": "package",
    "commands/pictures.py": "module",
    "export.py": "module",
    "insight/installation.py": "name",
    "envs/suites.py": "module",
}
"""Who imports by a name that is not in its source: the first four from a table of their own,
imports.py what the user has named, the last five packages of a fixed list."""


def forbidden(source):
    """Whatever in a source could run code that stands in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names]
            found += [name for name in names if name in CALLS or name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS | BUILTINS else []
            if name.endswith("import_module") and isinstance(node.args[0], ast.Constant):
                found += [node.args[0].value] if node.args[0].value in MODULES else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def test_there_are_sources_to_look_at():
    assert len(SOURCES) > 30


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_file_cannot_run_what_it_loads(path):
    assert forbidden(path.read_text(encoding="utf-8")) == []


def imports_by_name(source):
    """What is imported by a name that is only known when it runs."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    loading = [c for c in calls if ast.unparse(c.func) == "importlib.import_module"]
    return [ast.unparse(c.args[0]) for c in loading if not isinstance(c.args[0], ast.Constant)]


def test_nothing_else_imports_by_a_name_that_could_come_from_a_file():
    root = Path(proximo.__file__).parent
    found = {
        path.relative_to(root).as_posix(): imports_by_name(path.read_text(encoding="utf-8"))
        for path in SOURCES
    }
    found = {path: names for path, names in found.items() if names}
    assert {path: [name.replace("'", '"')] for path, (name,) in found.items()} == {
        path: [name] for path, name in IMPORTING.items()
    }


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "from joblib import load",
        "def f():\n    import dill.settings",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "f(allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "importlib.import_module('yaml')",
    ],
)
def test_what_is_forbidden_is_found(planted):
    assert forbidden(planted)


@pytest.mark.parametrize("harmless", ["policy.eval()", "re.compile(x)", "json.loads(text)"])
def test_what_only_looks_like_it_is_not(harmless):
    assert forbidden(harmless) == []
