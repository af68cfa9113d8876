"""Tables of a comparison in words, for a terminal, a page of Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from proximo.errors import printable
from proximo.insight.comparison import Comparison

NAMES = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}
"""Aggregate -> its name for people."""
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}
"""Characters that mean something else to LaTeX, or nothing in its usual fonts."""


class Table(NamedTuple):
    """Head and rows of words: names first, numbers after them."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""
    names: int = 1  # columns that hold names
    best: frozenset[tuple[int, int]] = frozenset()  # cells to set off: row, column


def number(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def with_interval(value: float, low: float, high: float, form: str = ".2f") -> str:
    text = number(value, form)
    return text if math.isnan(low) else f"{text} [{number(low, form)}, {number(high, form)}]"


def _mean(row: Mapping[str, Any]) -> str:
    half = "" if math.isnan(row["half_width"]) else f" ± {number(row['half_width'])}"
    return number(row["mean"]) + half


def tables_of(comparison: Comparison) -> list[Table]:
    """All tables that its runs allow."""
    shown = [score_table(comparison)]
    if comparison.aggregates:
        shown += [aggregate_table(comparison), reference_table(comparison)]
    return [*shown, improvement_table(comparison)] if comparison.improvements else shown


def score_table(comparison: Comparison) -> Table:
    """A row for each algorithm in each env; without a threshold there is no column for it."""
    several = len(comparison.plan.envs) > 1
    head = ["env"] * several + ["algorithm", "mean score", "IQM", "seconds a run"]
    limits = {limit for limit in comparison.thresholds.values() if limit is not None}
    if limits:
        head.insert(-1, "steps to threshold" if several else f"steps to {limits.pop():g}")
    rows = []
    for row in comparison.rows:
        count = row["runs"]
        name = row["algorithm"]
        if count != comparison.plan.seeds:
            name += f" ({count} of {comparison.plan.seeds} runs)"
        steps = f"{number(row['steps_to_threshold'], ',.0f')} ({row['reached']} of {count})"
        if comparison.thresholds[row["env"]] is None:
            steps = "-"
        rows.append(
            [
                *[row["env"]] * several,
                name,
                _mean(row),
                with_interval(row["iqm"], row["iqm_low"], row["iqm_high"]),
                *[steps] * ("steps" in head[-2]),
                number(row["seconds"], ".1f"),
            ]
        )
    return Table(head, rows, names=1 + several, title="Scores in the envs" * several)


def score_matrix(comparison: Comparison) -> Table:
    """Mean scores: a row for each env, a column for each algorithm, the best of a row set off."""
    width, rows, best = len(comparison.plan.algorithms), [], set()
    for i, env in enumerate(comparison.plan.envs):
        cells = comparison.rows[i * width : (i + 1) * width]
        shown = [number(cell["mean"]) for cell in cells]
        rows.append([env, *map(_mean, cells)])
        top = max((cell["mean"] for cell in cells if cell["runs"]), default=math.nan)
        if width > 1:  # all that cannot be told from it
            best |= {(i, 1 + j) for j, text in enumerate(shown) if text == number(top) != "-"}
    return Table(["env", *comparison.plan.algorithms], rows, best=frozenset(best))


def aggregate_table(comparison: Comparison) -> Table:
    rows = [
        [row["algorithm"]]
        + [with_interval(row[key], row[f"{key}_low"], row[f"{key}_high"]) for key in NAMES]
        for row in comparison.aggregates
    ]
    return Table(["algorithm", *NAMES.values()], rows, title="Over all envs, normalised scores")


def improvement_table(comparison: Comparison) -> Table:
    rows = [
        [row["x"], row["y"], with_interval(row["p"], row["low"], row["high"])]
        for row in comparison.improvements
    ]
    return Table(["X", "Y", "P(X > Y)"], rows, names=2, title="Probability of improvement")


def reference_table(comparison: Comparison) -> Table:
    rows = [
        [env, f"{ends.low:.4g}", f"{ends.high:.4g}", ends.source]
        for env, ends in comparison.references.items()
    ]
    return Table(["env", "score 0", "score 1", "references"], rows, title="Normalisation")


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""

    def line(cells: Iterable[str]) -> str:
        shown = (printable(cell, keep="").replace("|", r"\|") for cell in cells)
        return f"| {' | '.join(shown)} |"

    rule = "|---" * table.names + "|---:" * (len(table.head) - table.names) + "|"
    return "\n".join([line(table.head), rule, *map(line, table.rows)])


def escape(text: str) -> str:
    """Text as LaTeX shows it letter for letter."""
    return "".join(ESCAPES.get(mark, mark) for mark in printable(text, keep=""))


def _negative(text: str) -> str:
    """A minus before a number is longer than a hyphen; a dash stands for nothing."""
    return "--" if text == "-" else re.sub(r"(?<![\w)])-(?=\d)", "$-$", text)


def latex(table: Table, caption: str, label: str) -> str:
    """A floating table of the package booktabs."""
    lines = []
    for i, row in enumerate(table.rows):
        names = [escape(cell) for cell in row[: table.names]]
        numbers = [_negative(escape(cell)) for cell in row[table.names :]]
        cells = [
            rf"\textbf{{{cell}}}" if (i, j) in table.best else cell
            for j, cell in enumerate([*names, *numbers])
        ]
        if i and table.names > 1 and row[0] == table.rows[i - 1][0]:
            cells[0] = ""
        lines.append(f"    {' & '.join(cells)} \\\\")
    columns = "l" * table.names + "r" * (len(table.head) - table.names)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {' & '.join(map(escape, table.head))} \\\\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of numbers with the names of their columns; nothing where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        cells = ["" if isinstance(x, float) and math.isnan(x) else x for x in row.values()]
        writer.writerow(cells)
    return text.getvalue()
