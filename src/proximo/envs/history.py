"""Evidence that an observation hides part of the state: what earlier ones tell beyond it.

Where observation and action leave open what the reward or the next observation is, and an earlier
observation settles it, a policy with a recurrent layer can know more than one without.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST = 5_000
"""Transitions that are kept."""
LEAST = 300
"""Transitions from which there is something to say."""
WIDEST = 24
"""Numbers of an observation up to which the next one is predicted from them and their products."""
LAGS = 8
"""Steps back that are looked at one by one, besides the first step of the episode."""
SETTLED = 0.25
"""Share of what was open that may stay open, for an earlier observation to count as evidence."""
OPEN = 0.3
"""Share of the variance that must be open without it."""


@dataclass
class Transitions:
    """Steps of one env in their order: what was shown, done, paid and shown next."""

    obs: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    next_obs: list[np.ndarray] = field(default_factory=list)
    step: list[int] = field(default_factory=list)  # of its episode

    def add(
        self, obs: np.ndarray, action: Any, reward: float, next_obs: np.ndarray, *, begins: bool
    ) -> None:
        """Take in a step, as long as there is room. begins: it is the first of its episode."""
        if len(self.obs) < MOST:
            self.obs.append(obs.copy())
            self.action.append(np.atleast_1d(action).reshape(-1).astype(np.float64))
            self.reward.append(reward)
            self.next_obs.append(next_obs.copy())
            self.step.append(0 if begins or not self.step else self.step[-1] + 1)


def hidden_state(seen: Transitions) -> str:
    """What an earlier observation settles that the current one leaves open; empty: nothing."""
    if len(seen.obs) < LEAST:
        return ""
    return _of_rewards(seen) or _of_observations(seen)


def _of_rewards(seen: Transitions) -> str:
    """Repeated situations whose reward depends on what was shown before."""
    now = [(o.tobytes(), a.tobytes()) for o, a in zip(seen.obs, seen.action, strict=True)]
    reward, step = np.array(seen.reward), np.array(seen.step)
    for lag in (*range(1, LAGS + 1), 0):  # 0: the first observation of the episode
        which = np.flatnonzero(step >= max(lag, 1))
        if len(which) < LEAST:
            continue
        back = which - (lag or step[which])
        keys: list[Hashable] = [now[t] for t in which]
        both: list[Hashable] = [
            (now[t], seen.obs[b].tobytes()) for t, b in zip(which, back, strict=True)
        ]
        open_now, open_then = _open(keys, reward[which]), _open(both, reward[which])
        if open_now is None or open_then is None or open_now < OPEN * reward[which].var():
            continue
        if open_then < SETTLED * open_now:
            when = f"{lag} steps before" if lag > 1 else "the step before" if lag else "first"
            return (
                f"the same observation and action pay different rewards (variance "
                f"{open_now:.3g}), which what was shown {when} settles (to {open_then:.3g})"
            )
    return ""


def _open(keys: list[Hashable], values: np.ndarray) -> float | None:
    """Variance of values whose key is the same, unbiased; None where keys hardly repeat."""
    groups = dict[Hashable, list[float]]()
    for key, value in zip(keys, values.tolist(), strict=True):
        groups.setdefault(key, []).append(value)
    freedom = len(keys) - len(groups)
    if freedom < len(keys) / 2:
        return None
    return sum(len(group) * float(np.var(group)) for group in groups.values()) / freedom


def _of_observations(seen: Transitions) -> str:
    """Changes of the observation that its numbers do not tell, but the last change does."""
    obs, following = np.array(seen.obs, np.float64), np.array(seen.next_obs, np.float64)
    which = np.flatnonzero(np.array(seen.step) >= 1)
    if not 0 < obs.shape[1] <= WIDEST or len(which) < LEAST:
        return ""
    moving = (following[which] - obs[which]).std(0) > 1e-9
    if not moving.any():
        return ""
    action, last = np.array(seen.action)[which], (obs[which] - obs[which - 1])[:, moving]
    change = (following - obs)[which][:, moving]
    known = _products(np.concatenate([_scaled(obs[which]), _scaled(action)], 1))
    more = np.concatenate([known, _scaled(last)], 1)
    if known.shape[1] * 4 > len(which):
        return ""
    without, beside = _unexplained(known, change), _unexplained(more, change)
    if without > OPEN and beside < SETTLED * without:
        return (
            f"observation and action leave {without:.0%} of the next change of the observation "
            f"open, and {beside:.0%} with the change before it: velocities may be hidden"
        )
    return ""


def _scaled(x: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    return scaled


def _products(x: np.ndarray) -> np.ndarray:
    """Columns, and the products of any two of them."""
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, first] * x[:, second]], 1)


def _unexplained(features: np.ndarray, change: np.ndarray) -> float:
    """Share of the variance that a ridge regression leaves, on every other step, mean of columns.

    Fitted on the first of two halves and measured on the second.
    """
    middle = len(change) // 2
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    y = _scaled(change)
    left = x[:middle].T @ x[:middle] + 1e-3 * middle * np.eye(x.shape[1])
    weights = np.linalg.solve(left, x[:middle].T @ y[:middle])
    error = np.square(y[middle:] - x[middle:] @ weights).mean(0)
    return float((error / np.maximum(y[middle:].var(0), 1e-9)).clip(0, 1).mean())
