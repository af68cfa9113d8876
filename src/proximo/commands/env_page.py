"""`proximo doctor ENV`: what is measured of an env, and how it is shown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from proximo.commands.arguments import flag_words, show
from proximo.commands.layout import Page
from proximo.envs.base import Envs
from proximo.envs.config import EnvConfig
from proximo.envs.make import return_threshold, time_limit
from proximo.envs.survey import GAMMA, Played, Survey, survey
from proximo.envs.watch import Checked
from proximo.errors import TrainingError, UsageError
from proximo.insight.proposal import FASTER, Proposal, propose, with_speed
from proximo.insight.trial import Speed, other_backends, try_training
from proximo.nets.config import NetConfig
from proximo.nets.heads import make_head
from proximo.run.presets import find_preset

SHARES = {"check": 0.25, "survey": 0.45, "backends": 0.1, "trial": 0.2}
"""Shares of the seconds."""
ROWS = 8
"""Numbers of an observation that are shown; of more, those that differ most from 1."""


def examine_env(
    env: EnvConfig, envs: Envs, *, seconds: float, steps: int, episodes: int, presets: bool
) -> EnvReport:
    """Check envs, measure them and propose settings. Raises `UsageError` for broken ones."""
    limits: dict[str, Any] = {"steps": steps, "episodes": episodes}
    try:
        checked = envs.examine(seconds=SHARES["check"] * seconds, **limits)
    except UsageError as error:
        place = envs.masks_beside() if env.action_masks == "observation" else ""
        if not place:
            raise
        hint = f"It has action masks beside its observation: --env.action-masks {place} uses them"
        raise UsageError(f"{error}. {hint}") from error
    check_head(envs)
    try:
        measured = survey(
            envs, seconds=SHARES["survey"] * seconds, repeat=not checked.replayable, **limits
        )
    except UsageError as error:
        raise UsageError(f"{env.id} cannot be trained in: {error}") from error
    limit = env.max_episode_steps or envs.time_limit or time_limit(env)
    preset = find_preset("ppo", env.id)
    return EnvReport(
        env=env,
        spaces={"observations": one_line(envs.obs_space), "actions": one_line(envs.action_space)},
        width=envs.observations.width,
        masked=envs.observations.masks is not None,
        agents=envs.agents,
        resets=envs.resets,
        limit=limit,
        checked=checked,
        survey=measured,
        proposal=propose(
            env, envs, measured, preset if presets else None, refused=bool(preset), limit=limit
        ),
    )


def check_head(envs: Envs) -> None:
    """Raises `UsageError` for actions that a policy cannot take."""
    make_head(envs.action_space, NetConfig(), features=1)


def one_line(space: object) -> str:
    """A space in words."""
    return " ".join(str(space).split())


@dataclass
class EnvReport:
    """What was found of an env."""

    env: EnvConfig
    spaces: dict[str, str]
    width: int
    masked: bool
    agents: int
    resets: str
    limit: int | None
    checked: Checked
    survey: Survey
    proposal: Proposal
    speed: Speed | None = None
    backends: dict[str, float] = field(default_factory=dict)
    fault: str = ""
    """What is wrong with training by the proposal."""

    @property
    def code(self) -> int:
        """Exit code: 1 where the env cannot be trained in by the proposal."""
        return 1 if self.fault else 0

    @property
    def words(self) -> list[str]:
        """The command to begin with."""
        changes = self.proposal.changes.items()
        words = [word for name, value in changes for word in flag_words(name, value)]
        return ["proximo", "train", "ppo", self.env.id, *words]

    def try_proposal(self, seconds: float) -> None:
        """Train for a moment by the proposal, and measure other backends."""
        config = self.proposal.config()
        here = self.survey.steps_per_second
        try:
            part = SHARES["trial"] * seconds
            self.speed = try_training(config, here, self.agents, part)
        except (UsageError, TrainingError) as error:
            self.fault = str(error)
            return
        part = SHARES["backends"] * seconds
        self.backends = other_backends(config.env, self.agents / here, min(part, 1.0))
        training = self.speed.steps_per_second if self.speed else None
        self.proposal = with_speed(self.proposal, training, here, self.backends)

    def show(self, *, as_json: bool) -> None:
        if as_json:
            show(json.dumps(_finite(self.record())))
            return
        page = Page()
        self._show_env(page)
        self._show_play(page)
        self._show_baselines(page)
        self._show_speed(page)
        self._show_proposal(page)

    def record(self) -> dict[str, Any]:
        """All of it as JSON."""
        rewards, random = self.survey.rewards, self.survey.random
        return {
            "env": self.env.id,
            **self.spaces,
            "numbers": self.width,
            "agents": self.agents,
            "action_masks": self.masked,
            "resets": self.resets,
            "time_limit": self.limit,
            "check": {
                "steps": self.checked.steps,
                "episodes": self.checked.episodes,
                "notes": self.checked.notes,
            },
            "repeats": self.repeats,
            "rewards": {
                "steps": len(rewards),
                **(_moments(rewards) if len(rewards) else {}),
                "zero_share": float(np.mean(rewards == 0)) if len(rewards) else None,
                "discounted_size": self._discounted(),
            },
            "episodes": {
                "number": len(random.episodes),
                "truncated": random.truncated,
                **(_moments(random.lengths) if random.episodes else {}),
            },
            "observation": [column._asdict() for column in self.survey.columns],
            "hidden_state": self.survey.hidden,
            "baselines": [_baseline(x) for x in (random, *self.survey.constants)],
            "solved_from": return_threshold(self.env),
            "speed": {
                "env_steps_per_second": self.survey.steps_per_second,
                **(self.speed._asdict() if self.speed else {}),
                "backends": self.backends,
            },
            "proposal": {
                "words": self.words,
                "preset": self.proposal.preset.name if self.proposal.preset else None,
                "settings": [asdict(setting) for setting in self.proposal.settings],
                "advice": self.proposal.advice,
            },
            "fault": self.fault,
        }

    @property
    def repeats(self) -> bool | None:
        """The same seed and actions gave the same again; None: not tried."""
        return True if self.checked.replayable else self.survey.repeats

    def _discounted(self) -> float:
        returns = self.survey.returns
        return math.sqrt(float((returns**2).mean())) if len(returns) else 0.0

    def _show_env(self, page: Page) -> None:
        page.title(self.env.id)
        page.pair(
            "observations", f"{self.spaces['observations']}, {self.width} numbers to the network"
        )
        page.pair("actions", self.spaces["actions"] + ", with masks" * self.masked)
        if self.agents > 1:
            page.pair("agents", f"{self.agents} in each env, acting by one policy")
        page.pair("resets", self.resets)
        page.pair("time limit", f"{self.limit:,} steps" if self.limit else "none that is known")
        page.heading("Check")
        found = self.checked
        if not found.notes:
            played = f"{found.steps:,} steps, {found.episodes:,} episodes to their end"
            page.line("ok", "env", f"nothing is wrong with it ({played})")
        for note in found.notes:
            page.line("warning", "env", note)
        if self.repeats is not None and found.steps:
            same = "the same seed and actions give the same steps"
            words = same if self.repeats else "the same seed and actions give other steps"
            page.line("ok" if self.repeats else "warning", "seeds", words)
        if self.fault:
            page.line("broken", "training", self.fault)

    def _show_play(self, page: Page) -> None:
        rewards, random = self.survey.rewards, self.survey.random
        page.heading("Random play")
        page.pair(
            "played", f"{random.steps:,} steps, {len(random.episodes):,} episodes to their end"
        )
        if len(rewards):
            page.pair("rewards", _rewards_in_words(rewards))
        page.pair("returns", f"discounted by {GAMMA}, of size {_short(self._discounted())}")
        if random.episodes:
            lengths = random.lengths
            cut = f"{random.truncated / len(random.episodes):.0%} cut by a time limit"
            page.pair(
                "episodes",
                f"{lengths.min():,} to {lengths.max():,} steps, {lengths.mean():,.0f} on average, "
                f"{cut if random.truncated else 'none cut by a time limit'}",
            )
        if self.survey.hidden:
            page.pair("hidden state", self.survey.hidden)
        columns = sorted(self.survey.columns, key=lambda c: -abs(math.log(max(c.std, 1e-9))))[:ROWS]
        if columns:
            kept = [column for column in self.survey.columns if column in columns]
            rows = [
                (
                    c.name.removeprefix("the observation"),
                    *map(_short, (c.low, c.high, c.std)),
                    " to ".join(map(_short, c.bounds)),
                )
                for c in kept
            ]
            if len(self.survey.columns) > len(kept):
                page.pair(
                    "observation",
                    f"{len(kept)} of {len(self.survey.columns)} numbers, those "
                    "whose std is farthest from 1",
                )
            header = ("observation", "low", "high", "std", "bounds")[: 4 if page.narrow else 5]
            page.table(header, [row[: len(header)] for row in rows], numbers=len(header) - 1)

    def _show_baselines(self, page: Page) -> None:
        page.heading("Baselines")
        played = [self.survey.random, *self.survey.constants]
        best = self.survey.best_constant
        shown = [p for p in played if p.episodes]
        if not shown:
            page.text(
                f"no episode ended; rewards of {_short(self.survey.random.reward)} per step by "
                "random play"
            )
            return
        rows, constants = [], [p for p in self.survey.constants if p.episodes]
        differ = len({float(p.returns.mean()) for p in constants}) > 1
        for one in shown:
            mark = " (best)" if one is best and differ else ""
            returns = one.returns
            rows.append(
                (
                    one.name + mark,
                    f"{_short(float(returns.mean()))} ± {float(returns.std()):.3g}",
                    f"{one.lengths.mean():,.0f}",
                    f"{len(returns):,}",
                )
            )
        page.table(("policy", "return", "length", "episodes"), rows, numbers=3)
        left_out = self.survey.tried + 1 - len(shown)
        if left_out:
            page.text(f"{left_out} more ended no episode in their time", "dim")
        if (threshold := return_threshold(self.env)) is not None:
            page.text(f"Gymnasium calls it solved from {threshold:g}", "dim")

    def _show_speed(self, page: Page) -> None:
        page.heading("Speed")
        here = self.survey.steps_per_second
        page.pair("the env", f"{here:,.0f} steps/s, {1e6 / here:,.0f} µs a step")
        if self.speed:
            page.pair(
                "training",
                f"{self.speed.steps_per_second:,.0f} steps/s by the line below, of whose time the "
                f"env takes {self.speed.env_share:.0%}",
            )
        elif not self.fault:
            page.pair("training", "not measured: one update takes longer than there was time for")
        for backend, speed in self.backends.items():
            gain = speed / here
            words = f"{speed:,.0f} steps/s in {self.proposal.config().env.num_envs} envs"
            if gain >= FASTER:
                words += f", {gain:.1f} times as fast: --env.backend {backend}" + (
                    "; a resumed run then begins new episodes" if backend != "workers" else ""
                )
            page.pair(backend, words)

    def _show_proposal(self, page: Page) -> None:
        page.heading("To begin with")
        page.command(self.words)
        page.gap()
        preset = self.proposal.preset
        if preset:
            measured = preset.result if preset.measured(self.env.id) else "not measured in this env"
            page.pair("preset", f"{preset.name}: {preset.source}")
            page.pair("its result", measured)
        reasons = [
            (" ".join(flag_words(s.name, s.value)), s.reason) for s in self.proposal.settings
        ]
        if reasons:
            page.pairs(reasons)
        if self.proposal.advice:
            page.heading("Worth knowing")
        for text in self.proposal.advice:
            page.item(text)


def _rewards_in_words(rewards: np.ndarray) -> str:
    low, high = float(rewards.min()), float(rewards.max())
    if low == high:
        return f"{_short(low)} in every step"
    zero = float(np.mean(rewards == 0))
    share = f"; 0 in {zero:.1%} of the steps" if zero >= 0.05 else ""
    return (
        f"{_short(low)} to {_short(high)}, mean {_short(float(rewards.mean()))}, "
        f"std {_short(float(rewards.std()))}{share}"
    )


def _baseline(played: Played) -> dict[str, Any]:
    return {
        "policy": played.name,
        "episodes": len(played.episodes),
        "truncated": played.truncated,
        "steps": played.steps,
        "reward_per_step": played.reward,
        **({"return": _moments(played.returns)} if played.episodes else {}),
    }


def _moments(values: np.ndarray) -> dict[str, float]:
    found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(x) for name, x in found.items()}


def _short(value: float) -> str:
    """A number for people: three digits, and what lies beyond single precision as unbounded."""
    if abs(value) > 1e30:
        return "-inf" if value < 0 else "inf"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _finite(value: Any) -> Any:
    """JSON knows no infinity: bounds that are none are null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
