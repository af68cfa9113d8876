"""Settings to begin with in an env, from what was measured there: each with its reason.

Where a preset was made for the env, the preset is the proposal. Else PPO's defaults are, with the
changes that a measurement speaks for, or that a source names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from proximo.envs.base import Envs
from proximo.envs.config import EnvConfig
from proximo.envs.survey import GAMMA, STEPS, Survey
from proximo.evaluation import EPISODE_STEPS
from proximo.run.config import Config
from proximo.run.presets import Preset

SCALES = 0.1, 10.0
"""Range of standard deviations in which a network learns from a number as it is."""
END = 10.0
"""Times the usual reward from which the last one counts as what the episode is about."""
FURTHEST = 0.999
"""Largest discount that is proposed, that of the preset lunarlander."""
HALF_RANGES = 0.5, 4.0
"""Half the width of a Box of actions, within which a Gaussian of that scale explores it."""
BUDGET = 1_000_000
"""Steps of most published results in continuous control, and of half of our presets."""
FASTER = 1.3
"""Times the speed from which another backend is worth naming."""
PATIENCE = 3600.0
"""Seconds that the proposed run may take, for that budget to be proposed."""
IMAGES: dict[str, Any] = {
    "net.trunk": "shared",
    "net.hidden": (512,),
    "net.activation": "relu",
    "algorithm.learning_rate": "linear:2.5e-4:0",
    "algorithm.clip": 0.1,
    "algorithm.epochs": 4,
    "algorithm.minibatch_size": 256,
    "rollout.steps": 128,
}
"""Of the preset atari, for images."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that is proposed, and why."""

    name: str
    """As in net.normalize_obs."""
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A line to paste."""

    env: EnvConfig
    """The envs as the user has named them."""
    preset: Preset | None
    settings: tuple[Setting, ...]
    advice: tuple[str, ...]
    """What is left to the user's judgement."""

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of the line by their names: those that the user gave, then those proposed."""
        plain = EnvConfig()
        given = {f"env.{f.name}": getattr(self.env, f.name) for f in fields(EnvConfig)}
        same = {f"env.{f.name}": getattr(plain, f.name) for f in fields(EnvConfig)}
        kept = {n: x for n, x in given.items() if x != same[n] and n not in ("env.id", "env.check")}
        return kept | {setting.name: setting.value for setting in self.settings}

    def config(self) -> Config:
        """What the line trains with."""
        tables = self.preset.tables if self.preset else {}
        values = {name: value for name, value in self.changes.items() if name != "preset"}
        return Config.of(tables, {"env.id": self.env.id, **values})


def propose(
    env: EnvConfig,
    envs: Envs,
    survey: Survey,
    preset: Preset | None,
    *,
    refused: bool = False,
    limit: int | None = None,
) -> Proposal:
    """The line for these envs. refused: the user wants no preset. limit: the env's time limit."""
    settings = list[Setting]()
    if not preset:
        if refused:
            settings.append(Setting(name="preset", value="none", reason="as you asked"))
        settings += _settings(env, envs, survey, limit)
    elif env.num_envs != EnvConfig().num_envs:
        settings.append(
            Setting(
                name="env.num_envs",
                value=env.num_envs,
                reason="as you asked; the preset fits "
                f"its own number, {preset.tables.get('env', {}).get('num_envs', 4)}",
            )
        )
    if place := _masks(env, envs):
        settings.append(place)
    return Proposal(
        env=env, preset=preset, settings=tuple(settings), advice=tuple(_advice(survey, envs))
    )


def _masks(env: EnvConfig, envs: Envs) -> Setting | None:
    place = envs.masks_beside() if env.action_masks == "observation" else ""
    if not place:
        return None
    where = "a method action_masks()" if place == "method" else "action_mask in its info"
    return Setting(name="env.action_masks", value=place, reason=f"the env has {where}")


def _settings(env: EnvConfig, envs: Envs, survey: Survey, limit: int | None) -> Iterator[Setting]:
    """Changes of PPO's defaults, without a preset."""
    images = any(leaf.image for leaf in envs.observations.leaves)
    if env.num_envs == EnvConfig().num_envs:
        whole = "8 x 128" if images else "8 x 256 = 2,048 samples an update, as in the PPO paper"
        yield Setting(name="env.num_envs", value=8, reason=whole)
    if images:
        for number, (name, value) in enumerate(IMAGES.items()):
            reason = "likewise" if number else "for images, as in the preset atari"
            yield Setting(name=name, value=value, reason=reason)
    else:
        yield Setting(
            name="algorithm.learning_rate",
            value="linear:3e-4:0",
            reason="the default, falling to 0: as in every measured preset (Huang et al. 2022)",
        )
    if (gamma := _gamma(survey, limit)) is not None:
        yield gamma
    yield from _scales(survey)
    yield from _exploration(envs, survey)
    if survey.hidden:
        yield Setting(name="net.recurrent", value="lstm", reason=survey.hidden)
    if limit is None and not survey.random.episodes and survey.random.steps >= STEPS:
        reason = f"no episode ended in {survey.random.steps:,} steps; an evaluation cuts off there"
        yield Setting(name="env.max_episode_steps", value=EPISODE_STEPS, reason=reason)


def _gamma(survey: Survey, limit: int | None) -> Setting | None:
    """A discount that reaches from the first step to the end, where the end is what pays."""
    paid, ends = survey.rewards, survey.end_rewards
    if not len(ends) or not len(paid):
        return None
    usual = math.sqrt(
        max(float((paid**2).sum() - (ends**2).sum()), 0.0) / max(len(paid) - len(ends), 1)
    )
    last = math.sqrt(float((ends**2).mean()))
    longest = limit or int(survey.random.lengths.max())
    gamma = min(1 - 1 / longest, FURTHEST) if longest > 1 else 0.0
    if last < END * usual or last == 0 or gamma <= GAMMA + 1e-9:
        return None
    digits = 1 - math.floor(math.log10(1 - gamma))
    return Setting(
        name="algorithm.gamma",
        value=round(gamma, digits),
        reason=f"the last reward of an episode is of size {last:.3g}, the others {usual:.3g}; over "
        f"the {longest:,} steps of an episode 0.99 leaves {GAMMA**longest:.1g} of it",
    )


def _scales(survey: Survey) -> Iterator[Setting]:
    """Observations and rewards that are far from 1."""
    moving = [column for column in survey.columns if column.std > 0 and not column.bit]
    if moving:
        least, most = (f(moving, key=lambda column: column.std) for f in (min, max))
        far = max(moving, key=lambda column: abs(column.mean) / max(column.std, 1e-12))
        if least.std < SCALES[0] or most.std > SCALES[1]:
            yield Setting(
                name="net.normalize_obs",
                value=True,
                reason=f"std of {least.name} {least.std:.2g}, of {most.name} {most.std:.2g}: "
                "far from 1, where a network learns well",
            )
        elif abs(far.mean) > SCALES[1] * max(far.std, 1.0):
            reason = f"{far.name} lies around {far.mean:.3g}, with std {far.std:.2g}"
            yield Setting(name="net.normalize_obs", value=True, reason=reason)
    size = math.sqrt(float((survey.returns**2).mean())) if len(survey.returns) else 0.0
    if size and not SCALES[0] <= size <= SCALES[1]:
        yield Setting(
            name="algorithm.normalize_reward",
            value=True,
            reason=f"discounted returns of random play are of size {size:.3g}, and the critic "
            "learns slowly what lies far from 1",
        )


def _exploration(envs: Envs, survey: Survey) -> Iterator[Setting]:
    """Entropy for choices; a width of the Gaussian that fits the bounds."""
    boxes = [leaf.space for leaf in envs.actions.leaves if isinstance(leaf.space, spaces.Box)]
    if len(boxes) < len(envs.actions.leaves):
        reason = "for choices, as in the PPO paper (Table 5): they stay open longer"
        yield Setting(name="algorithm.entropy_coef", value=0.01, reason=reason)
    if not boxes:
        return
    bounded = all((box.bounded_below & box.bounded_above).all() for box in boxes)
    if not bounded:
        return
    half = np.concatenate([(box.high / 2 - box.low / 2).reshape(-1) for box in boxes])
    if half.min() < HALF_RANGES[0] or half.max() > HALF_RANGES[1]:
        least, most = (f"{x:.3g}" for x in (half.min(), half.max()))
        span = least if least == most else f"{least} to {most}"
        reason = (
            f"half the range of the actions is {span}, but a clipped "
            "Gaussian begins with std 1: a tanh scales it to the bounds"
        )
        yield Setting(name="net.action", value="squash", reason=reason)
    else:
        scale = float(np.exp(np.log(half).mean()))
        yield Setting(
            name="net.log_std",
            value=round(math.log(scale) - 0.5, 2),
            reason=f"the first std is 0.6 of half the range, {scale:.3g}, as in the preset mujoco "
            "(Andrychowicz et al. 2021)",
        )


def with_speed(
    proposal: Proposal, training: float | None, envs: float, backends: Mapping[str, float]
) -> Proposal:
    """The proposal with a number of steps and a backend, by their speeds in steps per second.

    training: None where it was not measured. envs: of the envs alone. backends: of others.
    """
    settings, advice = list(proposal.settings), list(proposal.advice)
    gain = backends.get("workers", 0.0) / envs
    if gain >= FASTER and proposal.env.backend == "auto":
        reason = f"{gain:.1f} times as fast as in one process, and the same bits"
        settings.append(Setting(name="env.backend", value="workers", reason=reason))
    speed = training or envs * max(gain, 1.0)
    seconds = BUDGET / speed
    if not proposal.preset and seconds > PATIENCE:
        advice.append(
            f"{BUDGET:,} steps, the usual budget, would take {duration(seconds)} here: the line "
            f"trains for the default of 100,000 ({duration(seconds / 10)}); --total-steps sets "
            "another number"
        )
    elif not proposal.preset:
        reason = f"the usual budget; {duration(seconds)} here, at {speed:,.0f} steps/s"
        settings.append(Setting(name="run.total_steps", value=BUDGET, reason=reason))
    return replace(proposal, settings=tuple(settings), advice=tuple(advice))


def duration(seconds: float) -> str:
    """A time in words."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


def _advice(survey: Survey, envs: Envs) -> Iterator[str]:
    """What the measurements say beyond settings."""
    random, best = survey.random, survey.best_constant
    enough = random.steps >= STEPS / 2
    if enough and not survey.rewards.any():
        yield (
            f"random play earned nothing in {random.steps:,} steps: PPO can only learn from "
            "rewards that it meets. Reward progress too, begin nearer to the goal, or give an "
            "intrinsic reward (examples/rnd.py)"
        )
    elif enough and (share := float(np.mean(survey.rewards != 0))) < 0.01:
        yield f"only {share:.2%} of the steps of random play are rewarded: learning may begin late"
    if best and random.episodes and _exceeds(best.returns, random.returns):
        yield (
            f"{best.name} earns {best.returns.mean():.4g}, more than random play: a policy that "
            "earns no more has not learned to look"
        )
    if random.episodes and not random.truncated and envs.time_limit is None:
        lengths = set(random.lengths.tolist())
        if len(lengths) == 1 and len(random.episodes) > 4 and (length := lengths.pop()) > 1:
            yield (
                f"every episode terminated after exactly {length:,} steps: if that is a time "
                "limit, return truncated=True there instead, so that the value of the last state "
                "still counts"
            )
    boxes = [leaf.space for leaf in envs.actions.leaves if isinstance(leaf.space, spaces.Box)]
    cut = 0 < len(random.episodes) == random.truncated
    if cut and survey.rewards.any() and survey.rewards.max() <= 0:
        longer = ". --net.std gsde explores by motions that last longer" if boxes else ""
        yield (
            "every episode was cut by the time limit, and no reward was above 0: if there is a "
            f"goal, random play does not reach it{longer}"
        )
    if not all((box.bounded_below & box.bounded_above).all() for box in boxes):
        yield (
            "some actions have no bounds, so that whatever a Gaussian draws reaches the env: give "
            "the action space the bounds that make sense there"
        )
    unbounded = [c.name for c in survey.columns if not all(map(math.isfinite, c.bounds))]
    still = [column.name for column in survey.columns if column.low == column.high]
    if still:
        more = f" and {len(still) - 4} more" if len(still) > 4 else ""
        yield f"never changed in random play: {', '.join(still[:4])}{more}"
    if unbounded and any(abs(c.low) > 1e4 or abs(c.high) > 1e4 for c in survey.columns):
        yield "the observation reaches beyond 10,000 and has no bounds: scale it in the env"


def _exceeds(returns: np.ndarray, others: np.ndarray) -> bool:
    """Their mean is higher by more than two standard errors."""
    spread = sum(float(x.var()) / len(x) for x in (returns, others))
    return bool(returns.mean() - others.mean() > 2 * math.sqrt(spread))
