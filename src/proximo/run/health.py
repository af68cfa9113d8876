"""Health of a run: rules over its readings, each with evidence, likely cause and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proximo.run.folder import RunFolder
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


def diagnose(rows: Sequence[Row], config: Any) -> list[Finding]:
    """Findings over the rows of a run, the most likely cause first. config: as the run has it."""
    return []


def diagnose_run(folder: RunFolder) -> list[Finding]:
    """`diagnose` of a run folder, of control or of a language model."""
    return []
