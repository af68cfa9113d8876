"""docs/settings.md lists the names that the code knows, and no others."""

import re
from pathlib import Path

from proximo.commands import arguments, mistyped
from proximo.run.toml import RENAMED_SETTINGS

PAGE = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")


def rows(heading):
    """The table below a heading, as pairs of the words in its two columns, without dashes."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \| (`.*?) \|$", section, re.M)
    return [tuple(tuple(re.findall(r"`-*(.*?)`", cell)) for cell in pair) for pair in cells]


def test_short_flags():
    listed = {setting: short for short, (setting,) in rows("Short flags")}
    assert listed == {name: short for name, short in arguments.SHORT.items() if "." in name}


def test_old_names():
    assert {old: new for ((old,), (new,)) in rows("Old names")} == RENAMED_SETTINGS


def test_names_of_other_libraries():
    listed = {ours: others for ((ours,), others) in rows("From other libraries")}
    assert listed == mistyped.USUAL
