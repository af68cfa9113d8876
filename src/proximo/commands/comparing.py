"""`proximo compare`."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from proximo.commands.arguments import check_least, optional, parse, show
from proximo.commands.compared import Failure
from proximo.commands.gathering import again, gathered
from proximo.commands.trials import Work, as_file_name, planned
from proximo.envs.config import EnvConfig, cores
from proximo.errors import UsageError, printable
from proximo.insight.comparison import SCORED, Comparison, Plan, Run
from proximo.insight.legend import legend
from proximo.insight.references import choose, random_scores, read_references
from proximo.insight.tables import Table, tables_of
from proximo.run.config import algorithm_type

if TYPE_CHECKING:
    import rich.table

WIDE = 200
"""Letters of a line where there is no terminal."""
BREAK = re.compile(r" (?=[\[±(]|a run)|(?<=steps to) ")
"""Spaces at which a cell of a table may become two lines."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several algorithms in one env or several, with the same seeds; compare their scores.

    Every run is made by `proximo train ALGORITHM ENV` and scored by `proximo eval`: with the
    preset of this algorithm for this env, or else plain defaults. Evaluations along the way, which
    change nothing that is learned, give the curves. DIR keeps the tables (Markdown, LaTeX, CSV),
    the figures (PNG, SVG, PDF), all numbers and the run folders. The same line with --dir DIR
    trains what an earlier one left out. With --from nothing is trained.
    """

    env: Annotated[Positional[str], optional("ENV,ENV,...")] = ""
    """Environments: Gymnasium ids such as CartPole-v1, or module:Class."""
    algorithms: Annotated[str, optional("NAME,NAME,...")] = ""
    """Algorithms to compare, such as a2c,trpo,ppo."""
    seeds: int = 5
    """K: every algorithm is trained with each of the seeds 1 to K."""
    processes: Annotated[int | None, optional("N")] = None
    """Runs at a time; by default as many as there are cores for their threads. The results are
    the same bits for any number."""
    threads: int = 1
    """Threads of every run."""
    total_steps: Annotated[int | None, optional("N")] = None
    """Environment steps of every run; by default those of its settings."""
    episodes: Annotated[int | None, optional("N")] = None
    """Episodes of the evaluation at the end of every run; by default 100."""
    threshold: Annotated[float | None, optional("R")] = None
    """Return to reach; by default the one at which Gymnasium calls ENV solved, if it names one."""
    references: Annotated[Path | None, optional("FILE")] = None
    """TOML file of lines "ENV" = [LOW, HIGH]: the scores that become 0 and 1 over several envs. By
    default those of a random policy and the threshold, or without one of the highest run."""
    start: Annotated[tuple[Path, ...], optional("FOLDER ...", name="from")] = ()
    """Compare the runs in these folders: run folders, folders of them, earlier comparisons."""
    dir: Annotated[Path | None, optional("DIR")] = None
    """A new or empty folder, or that of an earlier comparison; by default runs/compare-ENV."""

    @property
    def envs(self) -> list[str]:
        return [env.strip() for env in self.env.split(",")] if self.env else []


def main(arguments: list[str]) -> int:
    command = parse(Compare, "compare", arguments)
    names = _check(command)

    from proximo.commands.pictures import figure

    figure()  # fail now with what would fail after hours
    here = Path.cwd()
    work = _settled(command, _work(command, names))
    os.chdir(here)  # an env may have changed it, and the runs would not find its module
    plan, place = work.record.plan, work.place
    place.create()
    show(f"{plan.title}, {plan.seeds_in_words}, in {place.name}")
    processes = command.processes or max(1, cores() // (plan.threads or 1))
    if work.trials and not command.start:
        at_a_time = min(processes, len(work.trials))
        work = replace(work, record=replace(work.record, processes=at_a_time))
    say = partial(_say, itertools.count(1), len(work.trials), len(plan.envs) > 1)
    try:
        failures = work.finish(processes, say)
    except KeyboardInterrupt as stop:
        again = "" if command.start else f": the same line with --dir {place.name} goes on"
        show(f"stopped; the runs so far are in {place.name}{again}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    return _conclude(work, failures)


def _check(command: Compare) -> list[str]:
    """Names of the algorithms. Raises `UsageError` for settings that cannot be worked with."""
    if not command.env and not command.start:
        raise UsageError("name an env, as in: proximo compare CartPole-v1 --algorithms a2c,ppo")
    if not command.algorithms and not command.start:
        raise UsageError("name the algorithms to compare, as in: --algorithms a2c,trpo,ppo")
    # By the name of its class: an algorithm may have several.
    typed = command.algorithms.split(",") if command.algorithms else []
    names = [algorithm_type(name.strip()).name for name in typed]
    for flag, words, line in (
        ("--algorithms is", names, command.algorithms),
        ("ENV is", command.envs, command.env),
    ):
        for word in words:
            if words.count(word) > 1:
                raise UsageError(f"{flag} {line}: name {word} only once")
    check_least(command, seeds=1, processes=1, threads=1, episodes=1, total_steps=1)
    if command.threshold is not None and not math.isfinite(command.threshold):
        raise UsageError(f"--threshold is {command.threshold}: give a finite number")
    return names


def _free_folder(envs: Sequence[str]) -> Path:
    others = [f"and-{len(envs) - 3}-more"] if len(envs) > 3 else []  # a name may not be long
    name = f"compare-{as_file_name('-'.join([*envs[:3], *others]) or 'runs')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def _work(command: Compare, names: list[str]) -> Work:
    """The runs to compare, and those that are still to be made. Raises `UsageError`."""
    from proximo.envs.layers import close_all
    from proximo.envs.make import make_env

    envs, sources = command.envs, command.start
    in_place = len(sources) == 1 and (sources[0] / "compare.json").exists()
    if in_place and not (envs or names or command.dir):
        return again(sources[0], command.episodes)
    path = command.dir or _free_folder(envs)
    if sources:
        return gathered(sources, envs, names, command.episodes, path)
    plan = Plan(
        envs=tuple(envs),
        algorithms=tuple(names),
        seeds=command.seeds,
        total_steps=command.total_steps,
        episodes=command.episodes or SCORED,
        threads=command.threads,
    )
    work = planned(plan, path)
    for env in envs:  # fail now with what would fail in every run
        close_all([make_env(EnvConfig(id=env))])
    return work


def _settled(command: Compare, work: Work) -> Work:
    """With thresholds and reference scores: of the line, else of the record, else found out."""
    from proximo.envs.make import return_threshold

    record = work.record
    envs, known = record.plan.envs, record.thresholds
    thresholds = {
        env: known[env] if env in known else return_threshold(EnvConfig(id=env)) for env in envs
    }
    if command.threshold is not None:
        if len(envs) > 1:
            raise UsageError(
                f"--threshold is {command.threshold:g}, for one env, and there are {len(envs)}: "
                "leave it out, or give --references"
            )
        thresholds[envs[0]] = command.threshold
    given = record.given | (read_references(command.references) if command.references else {})
    # Code is imported where the line names it, and never because a run folder does.
    named = [env for env in envs if ":" not in env or env in command.envs]
    needed = [env for env in named if env not in given | record.at_random]
    at_random = record.at_random | (random_scores(needed) if len(envs) > 1 else {})
    settled = replace(record, thresholds=thresholds, at_random=at_random, given=given)
    return replace(work, record=settled)


def _say(numbers: Iterator[int], count: int, several: bool, outcome: Run | Failure) -> None:
    """How a trial ended."""
    number, env = next(numbers), f" on {outcome.env}" if several else ""
    if isinstance(outcome, Failure):
        show(str(outcome), file=sys.stderr)
    else:
        show(
            f"{outcome.algorithm}{env} seed {outcome.seed}: score {outcome.score:.2f} in "
            f"{outcome.seconds:.1f} s ({number} of {count})"
        )


def _conclude(work: Work, failures: Sequence[Failure]) -> int:
    """Write and print what follows from the runs; returns the exit code."""
    from proximo.commands.comparison_figures import draw_comparison

    record, place = work.record, work.place
    runs, curves, reading = place.read_curves(record.runs, record.thresholds)
    scores = {env: [r.score for r in runs if r.env == env] for env in record.plan.envs}
    references = choose(scores, record.given, record.at_random, record.thresholds)
    comparison = Comparison(
        plan=record.plan, runs=runs, thresholds=record.thresholds, references=references
    )
    said = legend(comparison, record.processes)
    figures = draw_comparison(comparison, curves, reading, place.path)
    place.write(replace(record, runs=runs), **comparison.numbers(), failures=failures)
    place.write_tables(comparison, said, failures, figures)
    print_tables(tables_of(comparison), said)
    show(f"tables{', figures' if figures else ''} and all numbers in {place.name}")
    return 1 if failures else 0


def print_tables(tables: Iterable[Table], legend: Iterable[str]) -> None:
    """Print tables for a terminal, and the sentences below them."""
    from rich.console import Console

    # A file or a pipe has no width to which a row would have to be broken.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    console = Console(width=width)
    for table in tables:
        grid = _grid(table)
        whole = console.measure(grid, options=console.options.update(max_width=WIDE)).maximum
        console.print(grid if whole <= width else _grid(table, narrow=True))
    for line in legend:
        show(textwrap.fill(line, width) if sys.stdout.isatty() else line)


def _grid(table: Table, *, narrow: bool = False) -> rich.table.Table:
    """A table for a terminal; a narrow one has intervals in a line of their own, and no frame."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=table.title or None)
    if narrow:
        grid.box, grid.show_edge, grid.pad_edge, grid.collapse_padding = (
            box.SIMPLE,
            False,
            False,
            True,
        )
    for place, title in enumerate(table.head):
        head = BREAK.sub("\n", title) if narrow else title
        name = place < table.names
        grid.add_column(head, justify="left" if name else "right", no_wrap=name or narrow)
    for row in table.rows:
        cells = [printable(cell, keep="") for cell in row]
        numbers = [BREAK.sub("\n", cell) if narrow else cell for cell in cells[table.names :]]
        grid.add_row(*map(Text, [*cells[: table.names], *numbers]))
    return grid
