"""Runs that begin with what earlier ones left: with their policy, or where they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proximo.errors import UsageError
from proximo.run.checkpoint import Checkpoint
from proximo.run.code import sayable
from proximo.run.config import Config, RunConfig, success_threshold
from proximo.run.folder import RunFolder


def start_from(
    config: Config, run: str | Path | None, net: str
) -> tuple[Config, Checkpoint | None]:
    """Configuration and checkpoint to begin with the last policy of a run. net: for errors."""
    if run is None:
        return config, None
    source = RunFolder.open(run)
    policy = Checkpoint(source.checkpoint("last"))
    # A policy is its weights and how they are used: activation, normalisation, bounds.
    settings = source.read_config().net
    if settings.module and not config.net.module:
        raise UsageError(
            f"the network of {run}, {settings.module}, is code: importing it needs your word. If "
            f"you trust it, add: {net}{sayable(settings.module)}"
        )
    if settings.module:
        settings = dataclasses.replace(settings, module=config.net.module)
    return dataclasses.replace(config, net=settings), policy


def continued(
    config: Config, saved: Checkpoint, result: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[Config, str]:
    """The configuration of a resumed run, and the setting that has ended it, or "".

    changes: settings that are given anew; total_steps lets it continue whatever ended it.
    """
    changed = {name: value for name, value in changes.items() if value is not None}
    if "total_steps" in changed:
        changed = {"total_episodes": None, **changed}
        if _ended(config.run, saved, result) == "stop_at":
            changed = {"stop_at": None, "success_at": success_threshold(config), **changed}
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changed))
    return config, _ended(config.run, saved, result)


def _ended(run: RunConfig, saved: Checkpoint, result: Mapping[str, Any]) -> str:
    """The setting that has ended a run with this checkpoint, or "" if it continues."""
    if saved.steps and (ended := run.ended_by(saved.record)):
        return ended
    # The first checkpoints do not hold what the goal was compared with: their result tells.
    reached = (result.get("stopped_by"), result.get("updates")) == ("stop_at", saved.updates)
    old = "last_trial_return" not in saved.record
    return "stop_at" if old and reached and run.stop_at is not None else ""
