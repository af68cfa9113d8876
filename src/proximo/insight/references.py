"""Reference scores, by which the scores of several envs get one scale."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proximo.envs.config import EnvConfig
from proximo.errors import UsageError
from proximo.run.config import EVALUATION_SEED

RANDOM_EPISODES = 20
"""Episodes of a random policy."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Scores of an env that become 0 and 1 where several envs have to share a scale."""

    low: float
    high: float
    source: str


def choose(
    scores: Mapping[str, Sequence[float]],
    given: Mapping[str, tuple[float, float]],
    at_random: Mapping[str, float],
    thresholds: Mapping[str, float | None],
) -> dict[str, Reference]:
    """Reference scores of each env: given ones, else those of a random policy and the threshold.

    An env without a threshold, or where a random policy reaches it, has the highest run instead,
    and where nothing tells how a random policy scores, the lowest run: what depends on the runs
    changes with what is compared. scores: env -> those of all runs.
    """
    references = {}
    for env, reached in scores.items():
        if not reached:
            continue
        start, threshold = at_random.get(env, math.inf), thresholds.get(env)
        low, high, source = min(reached), max(reached), "lowest run, highest run"
        if env in given:
            (low, high), source = given[env], "given"
        elif threshold is not None and start < threshold:
            low, high, source = start, threshold, "random policy, threshold"
        elif start < high:
            low, source = start, "random policy, highest run"
        references[env] = Reference(low=low, high=high, source=source)
    return references


def read_references(file: Path) -> dict[str, tuple[float, float]]:
    """Env -> the scores that become 0 and 1, from a TOML file. Raises `UsageError`."""
    form = 'lines such as "CartPole-v1" = [22.0, 500.0]'
    try:
        found = tomllib.loads(file.read_text("utf-8"))
        ends = {env: (float(low), float(high)) for env, (low, high) in found.items()}
    except OSError as error:
        raise UsageError(f"--references is {file}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--references is {file}: {error}; it needs {form}") from error
    for env, (low, high) in ends.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(
                f"--references is {file}: [{low:g}, {high:g}] of {env} must be two finite numbers, "
                "the lower one first"
            )
    return ends


def random_scores(envs: Collection[str]) -> dict[str, float]:
    """Mean returns of a random policy. Raises `UsageError` for an env that fails."""
    from proximo.envs.layers import close_all
    from proximo.envs.make import make_env
    from proximo.evaluation import evaluate_random, step_limit

    scores = {}
    for name in envs:
        config = EnvConfig(id=name)
        env, limit = make_env(config), step_limit(config, None)
        how = {"episodes": RANDOM_EPISODES, "seed": EVALUATION_SEED, "limit": limit}
        scores[name] = evaluate_random(env, **how).mean
        close_all([env])
    return scores
