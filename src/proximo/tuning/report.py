"""What a search has found: tables for people and programs, and the best settings as a preset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from proximo.errors import printable
from proximo.insight.statistics import summary
from proximo.insight.tables import Table, as_csv, markdown, number
from proximo.run.config import Config, from_tables, task_name, to_tables
from proximo.run.toml import toml_value
from proximo.tuning.proposals import importance
from proximo.tuning.search import CHECKED, FOUND, Progress, Search
from proximo.tuning.space import get
from proximo.tuning.trials import Trial

SHOWN = 10
"""Trials in the table of the best."""
OF_A_RUN = ("seed", "threads", "device")
"""Settings of `run` that a preset leaves to the user."""


def tables(search: Search, done: Progress) -> list[Table]:
    """All tables that the trials allow."""
    found = [_best_trials(search, done)]
    if shares := importance(search.space, done.trials.values()):
        found.append(_importance(shares))
    if search.how.check_seeds:
        found.append(_check(search, done))
    return found


def _check(search: Search, done: Progress) -> Table:
    """The best trial and the baselines: scores in the search, and on seeds that it has not used."""
    rows = []
    for trial in done.compared:
        scores = done.fresh(trial)
        found = summary(scores)
        half = "" if np.isnan(found["half_width"]) else f" ± {number(found['half_width'])}"
        lowest = number(float(scores.min())) if len(scores) else "-"
        name = name_of(trial)
        score = number(trial.score) if trial.score is not None else trial.state
        best = " (best)" if trial is done.best else ""
        rows.append(
            [f"{name}{best}", score, f"{number(found['mean'])}{half}", lowest, str(len(scores))]
        )
    head = ["settings", "in the search", "on fresh seeds", "worst", "runs"]
    return Table(head, rows, title="Checked on fresh seeds")


def name_of(trial: Trial) -> str:
    """A trial for people: by its number, or as the preset or the defaults that it is."""
    return f"trial {trial.number}" if trial.origin == FOUND else trial.origin


def _best_trials(search: Search, done: Progress) -> Table:
    complete = [t for t in done.trials.values() if t.state == "complete"]
    complete.sort(key=lambda trial: (-(trial.score or 0.0), trial.number))
    rows = []
    for trial in complete[:SHOWN]:
        scores = np.array(trial.scores)
        origin = "" if trial.origin == FOUND else f" ({trial.origin})"
        spread = f"{number(float(scores.min()))} to {number(float(scores.max()))}"
        cells = [number(trial.score or 0.0), spread, number(trial.seconds, ".1f")]
        rows.append([f"{trial.number}{origin}", *cells])
    return Table(["trial", "score", "of its seeds", "seconds"], rows, title="Best trials")


def _importance(shares: dict[str, float]) -> Table:
    rows = [[name, f"{share:.0%}"] for name, share in shares.items()]
    return Table(["setting", "importance"], rows, title="Importance of the settings")


def legend(search: Search, done: Progress) -> Iterator[str]:
    """What the tables mean, in sentences."""
    how, states = search.how, [trial.state for trial in done.trials.values()]
    seeds = "seed" if how.seeds == 1 else "seeds"
    yield (
        f"{len(states)} trials: {states.count('complete')} complete, {states.count('pruned')} "
        f"pruned, {states.count('failed')} failed. Score: mean return of {how.episodes} "
        f"deterministic episodes of the last policy, over {how.seeds} training {seeds}."
    )
    if not how.check_seeds:
        return
    yield (
        f"Fresh seeds: {how.check_seeds} training seeds and {CHECKED} episodes each that the "
        "search has not used, with the 95% interval of their mean. The best of many trials was "
        "lucky too, so its score in the search is too high; this one is not."
    )
    yield verdict(done)


def verdict(done: Progress) -> str:
    """Whether what the search has found is better than what it began with."""
    first, *others = done.compared
    scores = {trial.number: done.fresh(trial) for trial in done.compared}
    if first.origin != FOUND:
        return f"No trial came to its end but {' and '.join(t.origin for t in done.compared)}."
    if any(not len(found) for found in scores.values()):
        return "Some runs on fresh seeds failed, so nothing is said of their difference."
    rival = max(others, key=lambda trial: scores[trial.number].mean())
    own, its = summary(scores[first.number]), summary(scores[rival.number])
    gain = own["mean"] - its["mean"]
    apart = abs(gain) > float(np.hypot(own["half_width"], its["half_width"]))
    words = "higher" if gain > 0 else "lower"
    sure = "" if apart else ", which may be chance"
    return (
        f"On fresh seeds trial {first.number} is {abs(gain):.2f} {words} than the {rival.origin}"
        f"{sure}."
    )


def page(search: Search, done: Progress) -> str:
    """report.md."""
    blocks = [f"# Search for settings: {printable(task_name(search.base), keep='')}"]
    for table in tables(search, done):
        blocks += [f"## {table.title}", markdown(table)]
    blocks += list(legend(search, done))
    blocks += ["## Best settings", f"```toml\n{preset_text(search, done)}```"]
    return "\n\n".join(blocks) + "\n"


def csv_of_trials(search: Search, done: Progress) -> str:
    """Each trial in a row."""
    return as_csv([_row(search, done.trials[number]) for number in sorted(done.trials)])


def _row(search: Search, trial: Trial) -> dict[str, Any]:
    config = search.config(trial)
    values = {d.name: get(config, d.name) for d in search.space}
    return {
        "trial": trial.number,
        "origin": trial.origin,
        "state": trial.state,
        "score": "" if trial.score is None else trial.score,
        "scores": " ".join(repr(curve[-1]) for curve in trial.curves),
        "seconds": trial.seconds,
        **{name: str(value) for name, value in values.items()},
    }


def preset_text(search: Search, done: Progress) -> str:
    """The best settings as a preset: those that differ from the defaults of the algorithm."""
    best = search.config(done.best)
    scores = done.fresh(done.best)
    result = ""
    if len(scores):
        half = summary(scores)["half_width"]
        interval = "" if np.isnan(half) else f" ± {half:.1f} (95% interval)"
        count = f"worst of {len(scores)} seeds {scores.min():.1f}"
        result = f"{best.env.id} {scores.mean():.1f}{interval}, {count}"
    how = search.how
    source = f"proximo tune: trial {done.best.number} of {how.trials}, {how.seeds} seeds each"
    about = {"envs": [best.env.id], "source": source} | ({"result": result} if result else {})
    return "\n".join(
        _section(name, table) for name, table in [("preset", about), *_differing(best)]
    )


def _differing(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    plain = to_tables(from_tables({"algorithm": {"name": config.algorithm.name}}))
    for section, table in to_tables(config).items():
        name = {"name": table["name"]} if section == "algorithm" else {}
        values = {k: x for k, x in table.items() if x != plain[section][k]}
        dropped = {"run": OF_A_RUN, "env": ("id", "threads")}.get(section, ())
        values = name | {k: x for k, x in values.items() if k not in dropped}
        if section == "run":
            values["total_steps"] = table["total_steps"]
        if values:
            yield section, values


def _section(name: str, table: dict[str, Any]) -> str:
    lines = [f"{key} = {toml_value(value)}" for key, value in table.items()]
    return "\n".join([f"[{name}]", *lines]) + "\n"
