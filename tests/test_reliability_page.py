"""Every test that docs/reliability.md and SECURITY.md name is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tests_that_are_named_are_there():
    named = re.findall(
        r"`(test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs/reliability.md").read_text()
    )
    assert len(named) > 40
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        functions = {
            n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)
        }
        assert not test or test in functions, f"{file} has no {test}"


def test_the_files_that_are_linked_are_there():
    for page in ("SECURITY.md", "docs/reliability.md"):
        for link in re.findall(r"\]\((?!https:)([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).is_file(), link
