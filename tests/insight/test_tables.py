"""Tables of a comparison: their words, and what other programs read of them."""

import csv
import io
import math

import numpy as np
import pytest

from proximo.insight.comparison import Comparison, Plan, Run, steps_to
from proximo.insight.legend import legend
from proximo.insight.references import choose
from proximo.insight.statistics import interval, iqm
from proximo.insight.tables import (
    Table,
    aggregate_table,
    as_csv,
    latex,
    markdown,
    reference_table,
    score_matrix,
    score_table,
    tables_of,
)


def comparison(scores, seeds=None, thresholds=None, steps=(), given=None):
    """scores: env -> algorithm -> scores of its seeds. steps: to the threshold, of every group."""
    names = tuple(dict.fromkeys(name for groups in scores.values() for name in groups))
    runs = [
        Run(
            env=env,
            algorithm=name,
            seed=seed,
            folder="",
            score=float(score),
            evaluation={},
            total_steps=1000,
            steps=1000,
            steps_to_threshold=steps[seed - 1] if steps else None,
            seconds=float(seed),
        )
        for env, groups in scores.items()
        for name, values in groups.items()
        for seed, score in enumerate(values, 1)
    ]
    plan = Plan(
        envs=tuple(scores),
        algorithms=names,
        seeds=seeds or max(len(v) for groups in scores.values() for v in groups.values()),
        total_steps=1000,
        episodes=10,
        threads=1,
    )
    limits = dict.fromkeys(scores) | (thresholds or {})
    reached = {env: [x for v in groups.values() for x in v] for env, groups in scores.items()}
    ends = choose(reached, given or {}, {"C": 20.0}, limits)
    return Comparison(plan=plan, runs=runs, thresholds=limits, references=ends)


def test_the_table_of_one_env():
    values = [1, 2, 3, 4, 5]
    here = comparison(
        {"C": {"ppo": values}}, thresholds={"C": 8}, steps=[None, 300, 100, None, 200]
    )
    low, high = interval(iqm, [np.array(values, float)])
    table = score_table(here)
    assert table.head == ["algorithm", "mean score", "IQM", "steps to 8", "seconds a run"]
    middle = f"3.00 [{low:.2f}, {high:.2f}]"
    assert table.rows == [["ppo", "3.00 ± 1.96", middle, "200 (3 of 5)", "3.0"]]
    assert tables_of(here) == [table]
    head, row = (score_table(comparison({"C": {"ppo": values}})))[:2]
    assert head == ["algorithm", "mean score", "IQM", "seconds a run"]
    assert row == [["ppo", "3.00 ± 1.96", middle, "3.0"]]


def test_the_table_of_one_run_and_of_none():
    here = comparison({"C": {"ppo": [7], "a2c": []}}, thresholds={"C": 475})
    assert score_table(here).rows == [
        ["ppo", "7.00", "7.00", "- (0 of 1)", "1.0"],
        ["a2c (0 of 1 runs)", "-", "-", "- (0 of 0)", "-"],
    ]
    assert here.improvements == []
    assert "Not in the aggregates" in "\n".join(legend(here, 1))


def test_the_table_of_several_envs_and_their_scales():
    scores = {
        "C": {"a2c": [20, 475], "ppo": [475, 475]},
        "P": {"a2c": [-900, -300], "ppo": [-100, -300]},
    }
    here = comparison(scores, thresholds={"C": 475})
    table = score_table(here)
    assert table.head[:3] == ["env", "algorithm", "mean score"]
    assert [row[:2] for row in table.rows] == [
        ["C", "a2c"],
        ["C", "ppo"],
        ["P", "a2c"],
        ["P", "ppo"],
    ]
    assert [row[-2] for row in table.rows] == ["- (0 of 2)", "- (0 of 2)", "-", "-"]
    assert reference_table(here).rows == [
        ["C", "20", "475", "random policy, threshold"],
        ["P", "-900", "-100", "lowest run, highest run"],
    ]
    a2c, ppo = here.aggregates
    # a2c: 0 1 and 0 3/4; ppo: 1 1 and 1 3/4
    assert (a2c["iqm"], a2c["mean"]) == pytest.approx((0.375, 0.4375))
    assert (ppo["iqm"], ppo["optimality_gap"]) == pytest.approx((1, 1 / 16))
    assert aggregate_table(here).rows[1][1].startswith("1.00 [")
    (better,) = here.improvements
    # C: one tie of 2 x 2 twice; P: -100 beats both, -300 beats one and ties one.
    assert (better["x"], better["p"]) == ("ppo", pytest.approx((3 / 4 + 3.5 / 4) / 2))


def test_an_algorithm_without_runs_in_some_env_is_in_no_aggregate():
    here = comparison({"C": {"a2c": [1, 2], "ppo": [3, 4]}, "P": {"a2c": [1, 2], "ppo": []}})
    assert [row["algorithm"] for row in here.aggregates] == ["a2c"]
    assert here.improvements == []
    assert "Not in the aggregates, with no run in some env: ppo." in legend(here, 1)


def test_references_are_given_or_of_a_random_policy_or_of_the_runs():
    scores, at_random = {"C": [100.0, 500.0]}, {"C": 20.0}
    given = {"C": (0.0, 9.0)}

    def ends(*how):
        found = choose(scores, *how)["C"]
        return found.low, found.high, found.source

    assert ends(given, at_random, {"C": 475.0}) == (0, 9, "given")
    assert ends({}, at_random, {"C": 475.0}) == (20, 475, "random policy, threshold")
    assert ends({}, at_random, {"C": None}) == (20, 500, "random policy, highest run")
    # A threshold that a random policy reaches is none.
    assert ends({}, at_random, {"C": 20.0}) == (20, 500, "random policy, highest run")
    assert ends({}, {}, {"C": None}) == (100, 500, "lowest run, highest run")
    assert ends({}, {"C": 500.0}, {"C": None}) == (100, 500, "lowest run, highest run")
    assert choose({"C": []}, {}, {}, {}) == {}


def test_steps_to_the_threshold_are_those_of_the_first_row_that_reaches_it():
    means = [None, -5.0, 0.0, 8.0, 7.0, 9.0]
    rows = [{"steps": 64 * (i + 1), "evaluation": mean} for i, mean in enumerate(means)]
    rows[2:2] = [{"steps": 150}]
    assert steps_to(rows, 8) == 256
    assert steps_to(rows, 0) == 192
    assert steps_to(rows, 9.5) is None
    assert steps_to(rows, None) is None
    assert steps_to([], 8) is None


def test_the_best_of_an_env_is_set_off_and_all_that_look_like_it():
    here = comparison({"C": {"a2c": [1], "ppo": [3], "trpo": [3.001]}, "P": {"a2c": [], "ppo": []}})
    table = score_matrix(here)
    assert table.head == ["env", "a2c", "ppo", "trpo"]
    assert table.best == {(0, 2), (0, 3)}
    text = latex(table, "Scores", "tab:scores")
    assert r"    C & 1.00 & \textbf{3.00} & \textbf{3.00} \\" in text
    assert r"    P & -- & -- & -- \\" in text
    assert r"\begin{tabular}{lrrr}" in text


def test_latex_shows_every_name_as_it_is():
    table = Table(["a_b", "x"], [["50% & $#_{}~^\\<>|", "-1.5 ± 2.0 [-3.0, -2.0]"]])
    text = latex(table, "100% of \\input{x}", "tab:x")
    assert r"50\% \& \$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"$-$1.5 $\pm$ 2.0 [$-$3.0, $-$2.0]" in text
    assert r"\caption{100\% of \textbackslash{}input\{x\}}" in text
    assert r"a\_b & x" in text


def test_a_name_cannot_break_a_table_of_markdown():
    text = markdown(Table(["a", "b"], [["x|y\n# z", "\x1b[2J"]]))
    assert text.splitlines() == ["| a | b |", "|---|---:|", r"| x\|y\n# z | \u001b[2J |"]


def test_csv_is_read_back_as_it_was():
    rows = [{"name": 'a,"b"\n', "x": 0.1, "y": math.nan}, {"name": "=1", "x": -1e-9, "y": None}]
    back = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["name"] for row in back] == ['a,"b"\n', "=1"]
    assert [float(row["x"]) for row in back] == [0.1, -1e-9]
    assert [row["y"] for row in back] == ["", ""]
    assert as_csv([]) == ""
