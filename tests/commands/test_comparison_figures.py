"""Figures of a comparison that is not as usual: hostile names, single runs, missing curves."""

import re

import numpy as np
import pytest
from rich.console import Console

from proximo.commands import comparison_figures
from proximo.commands.comparing import _grid
from proximo.commands.comparison_figures import draw_comparison
from proximo.insight.comparison import Comparison, Plan, Run
from proximo.insight.references import choose
from proximo.insight.tables import aggregate_table, score_table

pytest.importorskip("matplotlib", reason="pictures are an extra")

HOSTILE = "$x^2$ <script>alert(1)</script> \x1b[2J & 50%\u202e"


def made(names, seeds=2, without=()):
    """A comparison in two envs with its curves. without: (env, name) of groups with no run."""
    random = np.random.default_rng(0)
    envs, runs, curves = ("A-v1", "B: \x1b]0;x\x07"), [], {}
    for env in envs:
        for name in names:
            for seed in range(1, 1 + seeds) if (env, name) not in without else ():
                steps = np.linspace(1e4, 1e5 * seed, 5)
                values = random.normal(size=5)
                curves.setdefault(env, {}).setdefault(name, []).append((steps, values))
                run = Run(
                    env=env,
                    algorithm=name,
                    seed=seed,
                    folder="",
                    score=float(values[-1]),
                    evaluation={},
                    total_steps=200_000,
                    steps=200_000,
                    steps_to_threshold=None,
                    seconds=1.0,
                )
                runs.append(run)
    plan = Plan(envs=envs, algorithms=names, seeds=seeds, total_steps=10, episodes=1, threads=1)
    scores = {env: [run.score for run in runs if run.env == env] for env in envs}
    limits = dict.fromkeys(envs)
    references = choose(scores, {}, {}, limits)
    whole = Comparison(plan=plan, runs=runs, thresholds=limits, references=references)
    return whole, curves


def test_names_are_shown_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_figures, "KINDS", ("svg", "pdf"))
    drawn = draw_comparison(*made((HOSTILE, "ppo")), "return", tmp_path)
    assert [name for _, name in drawn] == ["compare", "aggregates", "profiles", "improvement"]
    for _, name in drawn:
        text = (tmp_path / f"{name}.svg").read_text("utf-8")
        assert "<script" not in text
        assert "\x1b" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "$x^2$" in text
        # Fonts that a journal takes: TrueType, whose text can be searched.
        assert b"/Type3" not in (tmp_path / f"{name}.pdf").read_bytes()


def width(path):
    """Inches of an SVG."""
    return float(re.search(r'width="([\d.]+)pt"', path.read_text("utf-8"))[1]) / 72


def test_what_the_runs_do_not_allow_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_figures, "KINDS", ("svg",))
    names = ("a2c", "ppo")
    comparison, curves = made(names, seeds=1, without=[("A-v1", "ppo")])
    drawn = draw_comparison(comparison, curves, "return", tmp_path)
    assert [name for _, name in drawn] == ["compare", "aggregates", "profiles"]
    assert width(tmp_path / "profiles.svg") == pytest.approx(3.3)
    assert width(tmp_path / "compare.svg") == pytest.approx(6.9)


@pytest.mark.parametrize("table", [score_table, aggregate_table])
def test_a_narrow_terminal_breaks_no_interval(table):
    shown = table(made(("a2c", "ppo"))[0])
    console = Console(width=80)
    with console.capture() as captured:
        console.print(_grid(shown, narrow=True))
    text = captured.get()
    assert all(len(line) <= 80 for line in text.splitlines())
    for row in shown.rows:
        for cell in row:
            assert all(part in text for part in re.findall(r"\[.*?\]|± \S+|\(.*?\)", cell))
