"""Health of a run: rules over its readings, each with evidence, likely cause and remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from proximo.errors import explain, faults
from proximo.run.callbacks import Callback
from proximo.run.config import to_tables
from proximo.run.folder import RunFolder
from proximo.run.history import KEPT, History, thinned
from proximo.run.rules import CONTROL, EARLY, Rule
from proximo.run.rules_of_language import LANGUAGE
from proximo.run.toml import read_tables
from proximo.types import Row


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something unhealthy in a run."""

    rule: str
    """Name of the rule, such as kl-over-target: the heading of its paragraph in docs/health.md."""
    evidence: str
    """Readings that show it, with their values and updates."""
    cause: str
    """Likely cause, in one sentence."""
    remedy: str
    """What to type: settings, or a whole line."""
    update: int
    """Update in which it was first seen."""

    @property
    def link(self) -> str:
        """Where the rule is explained."""
        return f"docs/health.md#{self.rule}"

    def __str__(self) -> str:
        """As a log shows it."""
        return (
            f"{self.rule}: {self.evidence}. Likely cause: {self.cause}. Try: {self.remedy}. "
            f"See {self.link}"
        )


def rule_name(rule: Rule) -> str:
    """The name of a rule, as findings and docs/health.md have it."""
    return rule.__name__.replace("_", "-")


def as_tables(config: Any) -> Mapping[str, Any]:
    """Settings by section and name, of a configuration or of what its file holds."""
    return config if isinstance(config, Mapping) else to_tables(config)


def rules_of(settings: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of a run, the likely causes first; none for supervised stages."""
    stage = settings.get("lm", {}).get("stage")
    return {None: CONTROL, "ppo": LANGUAGE}.get(stage, ())


def diagnose(rows: Sequence[Row], config: Any) -> list[Finding]:
    """Findings over the rows of a run, the most likely cause first.

    config: as the run has it, or its tables. Supervised stages of language models have no rules.
    """
    settings = as_tables(config)
    if not rows:
        return []
    history, found = History(thinned(rows), settings), []
    with np.errstate(all="ignore"):  # what is too large for a number is NaN, and no rule applies
        for rule in rules_of(settings):
            waits = rule in CONTROL and rule not in EARLY and not history.long_enough
            if not waits and (sign := rule(history)):
                found.append(Finding(rule=rule_name(rule), **sign._asdict()))
    return found


def diagnose_run(folder: RunFolder) -> list[Finding]:
    """`diagnose` of a run folder, of control or of a language model. Raises `UsageError`."""
    return diagnose(folder.read_metrics(), read_tables(folder.config_file))


class HealthMonitor(Callback):
    """Runs the rules now and then, and says each finding once.

    Names of new findings stand in the row as `health`, for the user's callbacks, and in
    metrics.jsonl.
    """

    LEAST = 16_384
    """Environment steps between two looks at least; later a third of all steps so far.

    The steps at which looks are due are the same ones wherever a run was stopped and resumed."""
    EARLY = (8, 32)
    """Updates with a look in any case: they may take long."""
    phase = "checks"

    def __init__(
        self,
        config: Any,
        rows: Sequence[Row],
        say: Callable[[str], None],
        over: Callable[[Any], Any] = lambda state: False,
    ) -> None:
        """config: of the run. rows: from before a resume. over: this state ends the run."""
        self._settings: Mapping[str, Any] = as_tables(config)
        self._say, self._over = say, over
        self._failed = False
        self._rows = list[Row]()
        for row in rows:
            self._keep(row)
        self._due = self.LEAST
        if rows:
            self._passed(rows[-1])
        said = {name for row in rows for name in str(row.get("health", "")).split(", ")}
        self.findings = [x for x in self._diagnose() if x.rule in said]
        """Everything that has been said."""

    def __call__(self, state: Any, rollout: Any, row: Row) -> None:
        self._keep(row)
        due = self._passed(row) or "steps" not in row  # in language always: an update is long
        if due or row["update"] in self.EARLY or self._over(state):
            self._look(row)

    def report(self) -> list[dict[str, Any]]:
        """All findings, for result.json, after a last look."""
        if self._rows:
            self._look({})
        order = [rule_name(rule) for rule in rules_of(self._settings)]
        ranked = sorted(self.findings, key=lambda x: order.index(x.rule))
        return [{**asdict(finding), "link": finding.link} for finding in ranked]

    def _keep(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) > 6 * KEPT:
            self._rows = thinned(self._rows)

    def _passed(self, row: Row) -> bool:
        """Whether a look is due; sets when the next one is."""
        steps = row.get("steps")
        steps = steps if isinstance(steps, int) else 0  # a file may hold anything
        due = steps >= self._due
        while steps >= self._due:
            self._due += max(self.LEAST, self._due // 3)
        return due

    def _look(self, row: Row) -> None:
        said = {finding.rule for finding in self.findings}
        new = [x for x in self._diagnose() if x.rule not in said]
        self.findings += new
        for finding in new:
            self._say(f"health: {finding}")
        if new:
            row["health"] = ", ".join(finding.rule for finding in new)

    def _diagnose(self) -> list[Finding]:
        """Findings; a rule that fails ends no run, but is named, once."""
        try:
            return [] if self._failed else diagnose(self._rows, self._settings)
        except faults() as error:
            self._failed = True
            self._say(f"the rules of health failed, and are off: {explain(error)}")
            return []
