"""Names of readings in trackers: Proximo's, and those that other libraries log them under."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from proximo.types import Row


class Reading(NamedTuple):
    """A key of metrics.jsonl: the group in which trackers show it, and its name elsewhere.

    A name that begins with a minus is logged there with the other sign.
    """

    group: str
    sb3: str = ""
    cleanrl: str = ""
    trl: str = ""


READINGS = {
    # How far the run is.
    "update": Reading("time", "time/iterations"),
    "steps": Reading("time", "time/total_timesteps"),
    "tokens": Reading("time"),
    "episodes": Reading("time", "time/episodes", trl="episode"),
    "epoch": Reading("time", trl="epoch"),
    "seconds": Reading("time", "time/time_elapsed"),
    "steps_per_second": Reading("time", "time/fps", "charts/SPS"),
    "tokens_per_second": Reading("time"),
    # What the policy reaches.
    "return_latest": Reading("rollout", cleanrl="charts/episodic_return"),
    "return_mean": Reading("rollout", "rollout/ep_rew_mean"),
    "length_mean": Reading("rollout", "rollout/ep_len_mean", "charts/episodic_length"),
    "success_rate": Reading("rollout", "rollout/success_rate"),
    "return_smoothed": Reading("rollout"),
    "best": Reading("rollout"),
    "action_clip_fraction": Reading("rollout"),
    "evaluation": Reading("eval", "eval/mean_reward", "eval/episodic_return"),
    "evaluation_episodes_cut": Reading("eval"),
    # What completions are like.
    "score": Reading("rollout", trl="objective/scores"),
    "score_std": Reading("rollout"),
    "reward": Reading("rollout", trl="objective/rlhf_reward"),
    "length": Reading("rollout"),
    "stopped": Reading("rollout"),
    "repeated": Reading("rollout"),
    "turns": Reading("rollout"),
    "truncated": Reading("rollout"),
    "held_out_score": Reading("eval"),
    "held_out_kl": Reading("eval"),
    # How the update went.
    "loss": Reading("train", "train/loss", trl="loss"),
    "accuracy": Reading("train", trl="accuracy"),
    "policy_loss": Reading(
        "train", "train/policy_gradient_loss", "losses/policy_loss", "loss/policy_avg"
    ),
    "value_loss": Reading("train", "train/value_loss", "losses/value_loss", "loss/value_avg"),
    "callback_loss": Reading("train"),
    "kl_loss": Reading("train"),
    "ptx_loss": Reading("train"),
    "approx_kl": Reading("train", "train/approx_kl", "losses/approx_kl", "policy/approxkl_avg"),
    "kl": Reading("train", trl="objective/kl"),
    "beta": Reading("train"),
    "clip_fraction": Reading(
        "train", "train/clip_fraction", "losses/clipfrac", "policy/clipfrac_avg"
    ),
    "entropy": Reading("train", "-train/entropy_loss", "losses/entropy", "policy/entropy_avg"),
    "explained_variance": Reading("train", "train/explained_variance", "losses/explained_variance"),
    "value_outside": Reading("train"),
    "grad_norm": Reading("train", trl="grad_norm"),
    "policy_grad_norm": Reading("train"),
    "critic_grad_norm": Reading("train"),
    "line_search_fraction": Reading("train"),
    "sampling_gap": Reading("train"),
    "epochs": Reading("train"),
    "gradient_steps": Reading("train"),
    "gradient_steps_skipped_by_kl": Reading("train"),
    "lone_advantages": Reading("train"),
    "skipped_steps": Reading("train"),
    # What the rules of health read.
    **dict.fromkeys(
        (
            *("truncated_fraction", "reward_max", "reward_std", "reward_nonzero"),
            *("value_target_rms", "value_target_std", "advantage_std", "acting_entropy"),
            *("obs_scale_min", "obs_scale_max", "action_saturation", "length_max"),
            *("longest_fraction", "longest_terminated_fraction", "almost_longest_fraction"),
            *("grad_clip_fraction", "env_time_fraction", "env_step_seconds"),
            *("zero_variance_groups", "repetition", "health"),
        ),
        Reading("health"),
    ),
    # What the schedules say.
    "learning_rate": Reading("train", "train/learning_rate", "charts/learning_rate", "lr"),
    "critic_learning_rate": Reading("train"),
    "clip": Reading("train", "train/clip_range"),
    "clip_high": Reading("train"),
    "value_clip": Reading("train", "train/clip_range_vf"),
    "entropy_coef": Reading("train"),
}
"""Every key of metrics.jsonl; docs/metrics.md explains them."""

DERIVED: dict[str, dict[str, tuple[tuple[str, ...], Callable[..., float]]]] = {
    "sb3": {"train/n_updates": (("update", "epochs"), lambda update, epochs: update * epochs)},
    "trl": {
        "objective/entropy": (("entropy", "length"), lambda entropy, length: entropy * length),
        "objective/non_score_reward": (("beta", "kl"), lambda beta, kl: -beta * kl),
    },
}
"""Readings of other libraries that follow from several of ours: name -> ours, and how."""


@functools.cache
def tag(name: str, style: str) -> tuple[str, float]:
    """Name of a reading in a tracker, and the sign with which it is logged there."""
    reading = READINGS.get(name)
    if reading is None:  # of a callback
        return name, 1.0
    other = "" if style == "proximo" else getattr(reading, style)
    return other.removeprefix("-") or f"{reading.group}/{name}", -1.0 if other[:1] == "-" else 1.0


def tagged(row: Row, style: str) -> dict[str, float]:
    """The numbers of a row by their names in trackers; what has no value is left out."""
    numbers = {
        name: float(x)
        for name, x in row.items()
        if (type(x) is float or isinstance(x, int | float)) and math.isfinite(x)
    }
    named = {}
    for name, value in numbers.items():
        label, sign = tag(name, style)
        named[label] = sign * value
    for label, (names, function) in DERIVED.get(style, {}).items():
        if numbers.keys() >= set(names):
            named[label] = function(*(numbers[name] for name in names))
    return named
