"""Nothing that is loaded can run code: no pickle, no eval, in any source file."""

import ast
from pathlib import Path

import pytest

import proximo

SOURCES = sorted(Path(proximo.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load"}


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
