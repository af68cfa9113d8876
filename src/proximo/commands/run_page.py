"""`proximo doctor RUN`: the explanation of a run, as it is shown."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

from proximo.commands.arguments import show
from proximo.commands.layout import Page
from proximo.commands.stored import line_to_type
from proximo.insight.explanation import Explanation, curve_of, explain_run
from proximo.insight.proposal import duration
from proximo.run.profile import PHASES


def examine_run(path: str, *, as_json: bool) -> int:
    """Explain a run. Returns 1 if something is broken in it. Raises `UsageError`."""
    told = explain_run(path)
    if as_json:
        show(json.dumps(_record(told)))
    else:
        _show(told)
    return 1 if any(line.state == "broken" for line in told.lines) else 0


def _line(told: Explanation) -> str:
    """The line that goes on with the run; empty where none can."""
    if told.resume is None:
        return ""
    verb, code = told.resume
    more = [told.more[0], str(told.more[1])] if told.more else []
    return line_to_type(verb, [told.path, *more])(code)


def _record(told: Explanation) -> dict[str, Any]:
    found = {**asdict(told), "findings": [{**asdict(f), "link": f.link} for f in told.findings]}
    scores = [{"score": what, "first": a, "last": b} for what, a, b in told.scores]
    return {**found, "scores": scores, "resume": _line(told) or None, "more": bool(told.more)}


def _show(told: Explanation) -> None:
    page = Page()
    page.title(told.path, told.task)
    for line in told.lines:
        page.line(line.state, line.subject, line.found, line.remedy)
    _show_progress(page, told)
    page.heading("Health")
    if not told.findings:
        page.line("ok", "readings", "no rule of docs/health.md finds anything")
    for finding in told.findings:
        evidence = f"{finding.evidence} (first in update {finding.update:,})"
        cause = f"{finding.cause} ({finding.link})"
        page.line("warning", finding.rule, evidence, finding.remedy, cause)
    if told.warnings:
        page.heading("Warnings of the run")
    for text in told.warnings:
        page.line("warning", "", text)
    page.heading("Time")
    shares = sorted(told.phases.items(), key=lambda pair: -pair[1])
    page.bars((name, share, PHASES[name]) for name, share in shares)
    if not shares:
        page.text("where it went was not measured: train with --run.profile", "dim")
    page.heading("To train further" if told.more else "To go on")
    if command := _line(told):
        page.command(shlex.split(command))
    else:
        page.text("nothing is there to go on from: begin a new run")


def _show_progress(page: Page, told: Explanation) -> None:
    page.heading("Progress")
    progress = told.progress
    done, total = progress["done"], progress["total"]
    words = f"{done:,.0f} of {total:,.0f} {told.unit}"
    for name in ("updates", "episodes"):
        if name in progress and name != told.unit:
            words += f", {progress[name]:,.0f} {name}"
    page.pair("trained", words)
    if "per_second" in progress:
        speed = progress["per_second"]
        pace = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        page.pair("time", f"{duration(progress['seconds'])}, {pace} {told.unit}/s")
    if told.scores:
        rows = [(what, f"{first:.4g}", f"{last:.4g}") for what, first, last in told.scores]
        page.table(("score", "first", "last"), rows, numbers=2)
    if len(told.curve) > 2:
        room = min(len(told.curve), max(page.width - 22, 10))
        page.pair("curve", "".join(curve_of(told.curve, room, page.levels())))
    if not told.scores:
        page.text("no episode has ended, or metrics.jsonl holds none", "dim")
