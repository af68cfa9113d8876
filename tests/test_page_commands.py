"""Every flag and setting that a page names exists, in README, docs/ and SECURITY.md."""

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from proximo.cli import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
VERBS = (
    *(f"train {name}" for name in ("ppo", "trpo", "ppo-penalty", "a2c", "qac", "reinforce")),
    *("resume", "eval", "play", "plot", "report", "export", "check", "doctor", "compare", "tune"),
    *(f"lm {stage}" for stage in ("sft", "reward", "ppo", "generate", "resume")),
)
FOREIGN = ("settings.md",)  # names the flags of other libraries and of earlier versions too
NO_FLAGS = {"--help", "--version", "--only", "--seeds", "--SECTION.FIELD"}
NO_FLAGS |= {"--logdir", "--backend-store-uri", "--project"}  # of trackers
NO_FLAGS |= {"--no-deps"}  # of pip


@pytest.fixture(scope="module")
def flags():
    """Flags of all verbs, with their dashes."""
    import contextlib
    import io

    found = set()
    for verb in VERBS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([*verb.split(), "--help"])
        found |= set(re.findall(r"--[a-z][\w.-]*[\w]", text.getvalue()))
    return found


def spelled(flag):
    return flag.replace("_", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_exists(page, flags):
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    named = {flag for part in code for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\w", part)}
    if page.name not in FOREIGN:
        assert {flag for flag in named - NO_FLAGS if spelled(flag) not in flags} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_exists(page, flags):
    text = page.read_text(encoding="utf-8")
    sections = "algorithm|rollout|env|net|run|sampling|kl|score|ptx|model"
    named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)(?![\w.:/(])", text))
    if page.name not in FOREIGN:
        assert {name for name in named if f"--{spelled(name)}" not in flags} == set()
