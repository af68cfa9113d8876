"""Every file, class and function that docs/glossary.md names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
PLACES = sorted(set(re.findall(r"`([\w/]+\.(?:py|cpp|h))(?::([\w.]+))?`", PAGE)))
TERMS = (
    *("advantage", "time limit", "truncation", "recurrent state", "privileged", "checkpoint"),
    *("rollout buffer", "BPTT", "observation normalization", "autoreset", "bootstrap", "GAE"),
)


def names(tree, prefix=""):
    """Every name that a module or a class defines, as `Class.method` below a class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names(node, f"{prefix}{node.name}.")
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_the_place_exists(file, name):
    path = ROOT / "src" / "proximo" / file
    assert path.is_file(), file
    if name:
        source = path.read_text(encoding="utf-8")
        defined = names(ast.parse(source)) if path.suffix == ".py" else re.findall(r"\w+", source)
        assert name in set(defined), f"{file} defines no {name}"


@pytest.mark.parametrize("term", TERMS)
def test_the_words_of_the_field_are_there(term):
    assert term.lower() in PAGE.lower()


def test_there_are_many_places():
    assert len(PLACES) > 40
