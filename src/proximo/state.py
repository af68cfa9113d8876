"""Everything that changes while training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from proximo import functional as F
from proximo.engines.base import Engine, OldEvaluation
from proximo.engines.nonfinite import REMEDIES
from proximo.errors import TrainingError, UsageError
from proximo.functional.moments import no_moments
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.optimizer import FlatOptimizer
from proximo.spaces import torch_dtype
from proximo.types import Batch, EnvState, Episode, Metrics, Moments, Rollout, Row, SkipSink, Watch

REWARD_CLIP = 10.0
"""Scaled rewards are cut off at this many standard deviations of the return."""


NOT_SAVED = ("engine", "smoothing", "success_at", "averages", "skip_sink", "watch")
"""Fields that a run sets anew; every other one is in its checkpoints."""
NUMBERS = ("int", "int | None", "float", "float | None")
"""Types of the fields that are saved in the record."""
ACTION_LOGS = "envs.actions."
"""Beginning of the names of the replay logs."""
SIMULATION = "envs.simulation."
"""Beginning of the names of the arrays of a simulator."""
_NOT_NEGATIVE = {"number", "var", "step", "exp_avg_sq", "square_avg", "episode", "length"}
"""Tensors, by the last part of their names."""
_ENV_ARRAYS = ("obs", "episode", "resetting", "ret", "length")


class Saved:
    """Tensors and record of a checkpoint, as a model takes them back."""

    path: Path
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def load_policy(self, policy: nn.Module) -> None:
        """Put the saved weights into this policy; `UsageError` names the first misfit."""
        saved = self.check_policy(policy)
        policy.load_state_dict({name.removeprefix("policy."): x for name, x in saved.items()})

    def check_policy(self, policy: nn.Module) -> dict[str, Tensor]:
        """The saved weights, if they are of such a policy; it may be on the meta device."""
        own = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
        self._refuse_others({x for x in self.tensors if x.startswith("policy.")} - own.keys())
        return self.take(own)

    def moments(self, name: str, shape: tuple[int, ...] = ()) -> Moments:
        """Those of this name. Raises `UsageError`."""
        return Moments(*self.take(named(name, no_moments(shape)._asdict())).values())

    def load_optimizer(self, optimizer: FlatOptimizer) -> None:
        """What it keeps of earlier gradients. Raises `UsageError`."""
        own = optimizer.tensors()
        for name, saved in self.take(own).items():
            own[name].copy_(saved)

    def load_generator(self, name: str, generator: torch.Generator) -> None:
        """Go on with the random numbers where they stood. Raises `UsageError`."""
        (saved,) = self.take({name: generator.get_state()}).values()
        try:
            generator.set_state(saved)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise UsageError(
                f"{name} of the checkpoint {self.path} is no state of a generator: {why:.200}"
            ) from error

    def take(self, own: Mapping[str, Tensor], *, all_of_it: bool = False) -> dict[str, Tensor]:
        """The tensors of these names, if they fit. all_of_it: there may be no others."""
        if all_of_it:
            others = self.tensors.keys() - own.keys()
            self._refuse_others({name for name in others if not name.startswith("callbacks.")})
        for name, here in own.items():
            there = self.tensors.get(name)
            fits = there is not None and _free(name, there) == _free(name, here)
            if there is None or not fits or there.dtype != here.dtype:
                found = "nothing" if there is None else f"{tuple(there.shape)} of {there.dtype}"
                raise UsageError(
                    f"the checkpoint {self.path} has {found} where {name} {tuple(here.shape)} of "
                    f"{here.dtype} belongs: its network, its kind of critic, its optimizer or its "
                    "envs differ from the ones here"
                )
            wrong = ~there.isfinite()
            if there.shape == here.shape and not here.is_meta:
                wrong &= there != here.to(there.device)  # a net of one's own may hold infinity
            if name.rpartition(".")[2] in _NOT_NEGATIVE and not name.startswith("policy."):
                wrong |= there < 0
            if wrong.any():
                raise UsageError(f"{name} of the checkpoint {self.path} holds {there[wrong][0]}")
        return {name: self.tensors[name] for name in own}

    def _refuse_others(self, names: Collection[str]) -> None:
        if names:
            raise UsageError(
                f"the checkpoint {self.path} has {min(names)!r:.80}, for which there is no place: "
                "its network, its kind of critic or its envs differ from the ones here"
            )


class Ending(Protocol):
    """Settings of a run that tell when it is over."""

    def ended_by(self, counters: Mapping[str, Any]) -> str:
        """The setting that ends a run with these counters, or "" if it continues."""


@dataclass(kw_only=True)
class State:
    """What changes while any model trains, in control and with language."""

    policy: nn.Module
    optimizer: FlatOptimizer
    horizon: int  # counts of `progress` over which schedules run from 0 to 1
    updates: int = 0
    best: float | None = None  # the best score so far, by whichever measure the run keeps
    last_trial_steps: int | None = None  # when `stop_at` last asked for an evaluation
    last_trial_return: float | None = None  # and what it came to
    beta: float | None = None  # weight of the KL penalty, once it has moved
    rate_scale: float = 1.0  # factor on the learning rate, where it follows the KL
    skipped: int = 0  # gradient steps that were left out, for what was not finite
    skip_sink: SkipSink | None = None  # of the run, not of its state: stores the first of those

    @property
    def fault(self) -> type[Exception]:
        """Error to raise when something fails: before the first update there is no run to keep."""
        return TrainingError if self.updates else UsageError

    def finished(self, run: Ending) -> str:
        """The setting that has ended the run, or "" if it continues."""
        return run.ended_by(vars(self))

    def skip_step(
        self, what: str, where: str, samples: Batch, coefficients: dict[str, float], budget: int
    ) -> None:
        """Count a gradient step that is skipped. Raises `TrainingError` past the budget.

        The weights must be those before the step: they are stored with its samples. where: in the
        update, as ", epoch 1, minibatch 2".
        """
        self.skipped += 1
        update = self.updates + 1
        where = f"update {update}{where}"
        text, place = f"{what} in {where}", ""
        if self.skip_sink:
            tensors = named("policy", self.policy.state_dict()) | samples.tensors()
            record: dict[str, Any] = {"update": update, "coefficients": coefficients}
            record |= {} if self.beta is None else {"beta": self.beta}
            place = self.skip_sink(text, tensors, record | {"what": what, "where": where})
        if self.skipped > budget:
            kept = f" The first stands in {place}, with the weights before it" if place else ""
            raise TrainingError(
                f"{text}. Gradient steps that this run has left out for that: {self.skipped}, but "
                f"algorithm.skip_budget is {budget}: {REMEDIES}.{kept}"
            )


@dataclass(kw_only=True)
class TrainState(State):
    """All that changes while training, and what of it is saved: all fields but `NOT_SAVED`.

    A new field of one of these types is saved too; a checkpoint from before it still loads, if the
    field has a default.
    """

    policy: ActorCritic
    envs: EnvState
    collecting: torch.Generator  # noise of the actions
    shuffling: torch.Generator  # order of the minibatches
    engine: Engine  # acts, evaluates and takes the gradient steps
    steps: int = 0  # environment steps taken
    episodes: int = 0
    recent: deque[Episode] = field(default_factory=lambda: deque(maxlen=100))
    smoothed: float | None = None  # moving average of the episodes' returns
    obs_moments: Moments | None = None  # of all observations, for the policy to standardise by
    return_moments: Moments | None = None  # of all value targets, for the critic
    reward_moments: Moments | None = None  # of the running discounted return, for scaling rewards
    reward_return: Tensor | None = None  # [N] the running discounted return itself
    recurrent_state: Tensor | None = None  # [N, C] what the policy remembers in each env
    ahead: Tensor | None = None  # [1, N, ...] noise of the next action, where it is drawn already
    outer_velocity: Tensor | None = None  # [P] momentum of the outer steps, where they have one
    smoothing: float = 0.1  # of the run, not of its state: weight of an episode in `smoothed`
    success_at: float | None = None  # of the run: the return from which an episode is a success
    averages: Row = field(default_factory=dict)  # of `recent`, until another episode ends
    watch: Watch | None = None  # of the run as well: shows its progress

    @property
    def progress(self) -> float:
        """Share of the horizon that is done, in [0, 1]: the argument of every schedule.

        It moves when an update has ended, so the first one runs at 0 and none at 1.
        """
        return min(1.0, self.steps / self.horizon)

    def evaluate_old(self, rollout: Rollout) -> OldEvaluation:
        """The old policy on its rollout; keeps its recurrent state, 0 where an episode ended."""
        old = self.engine.evaluate_old(rollout)
        if rollout.initial_state.shape[-1]:
            ended = rollout.boundary[-1].unsqueeze(-1)
            self.recurrent_state = torch.where(ended, 0.0, old.final_state[-1])
        return old

    def scaled_reward(self, rollout: Rollout, gamma: float) -> Tensor:
        """Rewards over the standard deviation of R_t = r_t + γ R_{t-1} in all steps so far. [T, N].

        From OpenAI's baselines (VecNormalize); not in the paper. It keeps returns near unit size
        without moving their zero.
        """
        # In double precision, which not every device has.
        far = rollout.reward.is_mps
        reward, boundary, mask = (
            x.cpu() if far else x for x in (rollout.reward, rollout.boundary, rollout.mask)
        )
        reward = reward.double().flip(0)
        if self.reward_return is None:
            self.reward_return = torch.zeros_like(reward[0])
        # Backwards in time it is the recursion of the advantages; a boundary cuts it from behind.
        starts = torch.cat([torch.zeros_like(boundary[:1]), boundary[:-1]])
        decay = gamma * (~starts).double().flip(0)
        carried = torch.cat([reward, self.reward_return[None].to(reward)])
        decay = torch.cat([decay, torch.zeros_like(decay[:1])])
        running = F.returns.discounted_sum(carried, decay)[:-1].flip(0)
        self.reward_return = torch.where(boundary[-1], 0, running[-1])
        seen = running.flatten()
        if rollout.steps < len(seen):
            seen = seen[mask.flatten().nonzero_static(size=rollout.steps).squeeze(-1)]
        self.reward_moments = F.moments.merged(self.reward_moments, seen)
        scale = torch.rsqrt(self.reward_moments.var + 1e-8).to(rollout.reward)
        return (rollout.reward * scale).clamp(-REWARD_CLIP, REWARD_CLIP)

    def observe(self, obs: Tensor) -> None:
        """Merge observations [B, *obs] into the moments by which the policy standardises them."""
        if self.policy.normalize_obs:
            self.obs_moments = F.moments.merged(self.obs_moments, obs)
            self.policy.set_obs_moments(self.obs_moments)

    def observe_returns(self, target: Tensor) -> None:
        """Merge value targets [B] into the moments by which the critic standardises them."""
        if self.policy.normalize_returns:
            self.return_moments = F.moments.merged(self.return_moments, target)
            self.policy.set_return_moments(self.return_moments)

    def numbers(self, readings: dict[str, Tensor]) -> Metrics:
        """Readings of the new policy as numbers, in one transfer. Raises `fault` if not finite."""
        moments = (self.obs_moments, self.return_moments, self.reward_moments)
        variances = [known.var for known in moments if known]
        engine = self.engine
        checks = engine.checks(*variances) if engine.waits else {}
        finite = bool(checks) or engine.finite(*engine.weights, *variances)
        # In double precision only here, as not every device has it.
        values = [x.to(self.policy.dtype) for x in (*readings.values(), *checks.values())]
        numbers = torch.stack(values).cpu().double().tolist()
        metrics = dict(zip((*readings, *checks), numbers, strict=True))
        if checks:
            finite = engine.passed({name: metrics.pop(name) for name in checks})
        if not finite:
            what = "weights or running moments became infinite"
            raise self.fault(f"{what} in update {self.updates + 1}: {REMEDIES}")
        # The readings after the update are computed with its weights: they show what the losses,
        # computed before each step, cannot.
        for name in ("approx_kl", "kl", "entropy"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise self.fault(
                    f"{name} became {metrics[name]} in update {self.updates + 1}: {REMEDIES}"
                )
        return metrics

    @classmethod
    def fields_of(cls, *kinds: str) -> list[str]:
        """Names of the saved fields whose type is one of these."""
        return [f.name for f in fields(cls) if f.type in kinds and f.name not in NOT_SAVED]

    def record(self, *, policy_only: bool = False) -> dict[str, Any]:
        """The saved numbers and the episodes, as JSON."""
        recent = [] if policy_only else [list(episode) for episode in self.recent]
        counters = {name: getattr(self, name) for name in self.fields_of(*NUMBERS)}
        return {**counters, "policy_only": policy_only, "recent": recent}

    def tensors(self, *, policy_only: bool = False) -> dict[str, Tensor]:
        """The saved tensors, by their names in a checkpoint."""
        tensors = named("policy", self.policy.state_dict())
        for name in self.fields_of("Moments | None"):
            if (moments := getattr(self, name)) is not None:
                tensors |= named(name, moments._asdict())
        if policy_only:
            return tensors
        tensors |= self.optimizer.tensors()
        tensors |= {x: getattr(self, x).get_state() for x in self.fields_of("torch.Generator")}
        optional = {name: getattr(self, name) for name in self.fields_of("Tensor | None")}
        tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        tensors |= {f"envs.{x}": torch.as_tensor(getattr(self.envs, x)) for x in _ENV_ARRAYS}
        whole = enumerate(self.envs.simulation)  # as bytes: of any type and any number
        tensors |= {f"{SIMULATION}{i}": torch.from_numpy(_bytes(x)) for i, x in whole}
        logs = {f"{ACTION_LOGS}{i}": log for i, log in enumerate(self.envs.actions) if log}
        return tensors | {x: torch.from_numpy(np.concatenate(log)) for x, log in logs.items()}

    def _later(self) -> dict[str, Tensor]:
        """Tensors that exist only after the first updates, as zeros of their types and shapes."""
        policy, count = self.policy, len(self.envs.episode)
        acts = policy.actions
        log = torch.empty(0, *(acts.shape or ()), dtype=torch_dtype(acts.dtype))
        tensors = {
            "reward_return": torch.zeros(count, dtype=torch.float64),
            "recurrent_state": torch.zeros(count, policy.state_size, dtype=policy.dtype),
            "outer_velocity": torch.zeros_like(self.optimizer.weights()),
            "ahead": policy.head.noise(torch.Generator(), (1, count)),
            **{f"{ACTION_LOGS}{i}": log for i in range(count)},
        }
        for name in self.fields_of("Moments | None"):
            tensors |= named(name, no_moments(self._shape_of(name))._asdict())
        return tensors

    def _shape_of(self, moments: str) -> tuple[int, ...]:
        return self.policy.obs_shape if moments == "obs_moments" else ()

    def restore(self, saved: Saved) -> None:
        """Continue from a checkpoint of the same configuration. Raises `UsageError`."""
        later = {name: x for name, x in self._later().items() if name in saved.tensors}
        own = self.tensors() | later
        # A rollout leaves all observations but bytes as the policy sees them.
        obs, seen = own["envs.obs"], saved.tensors.get("envs.obs")
        if seen is not None and seen.dtype is self.policy.dtype and obs.dtype is not torch.uint8:
            own["envs.obs"] = obs.to(self.policy.dtype)
        for name in later:  # choices were int64 once, whatever the space said
            if name.startswith(ACTION_LOGS) and saved.tensors[name].dtype is torch.int64:
                own[name] = own[name].long()
        tensors = saved.take(own, all_of_it=True)
        saved.load_policy(self.policy)
        self.restore_moments(saved)
        for name in set(self.fields_of(*NUMBERS)) & saved.record.keys():
            setattr(self, name, saved.record[name])
        self.recent = deque((Episode(*e) for e in saved.record["recent"]), maxlen=100)
        for name in self.fields_of("torch.Generator"):
            saved.load_generator(name, getattr(self, name))
        for name in self.fields_of("Tensor | None"):
            setattr(self, name, tensors.get(name))
        saved.load_optimizer(self.optimizer)
        for name in _ENV_ARRAYS:
            setattr(self.envs, name, tensors[f"envs.{name}"].numpy().copy())
        self.envs.simulation = tuple(
            tensors[f"{SIMULATION}{i}"].numpy().view(x.dtype).reshape(x.shape).copy()
            for i, x in enumerate(self.envs.simulation)
        )
        kind = self.policy.actions.dtype
        logs = (tensors.get(f"{ACTION_LOGS}{i}") for i in range(len(self.envs.episode)))
        self.envs.actions = [[] if x is None else [x.numpy().astype(kind)] for x in logs]

    def restore_moments(self, saved: Saved) -> None:
        """The running moments that belong to the policy's normalisation."""
        for name in self.fields_of("Moments | None"):
            if f"{name}.number" in saved.tensors:
                setattr(self, name, saved.moments(name, self._shape_of(name)))

    def advance(self, rollout: Rollout, metrics: Metrics) -> Row:
        """Count an update that is done; returns its row: everything that is logged of it."""
        self.updates += 1
        self.steps += rollout.steps
        self.episodes += len(rollout.episodes)
        self.recent.extend(rollout.episodes)
        for episode in rollout.episodes:
            before = episode.ret if self.smoothed is None else self.smoothed
            self.smoothed = before + self.smoothing * (episode.ret - before)
        latest = [episode.ret for episode in rollout.episodes]
        if latest or not self.averages:
            self.averages = self.recent_returns()
        row = {
            "update": self.updates,
            "steps": self.steps,
            "episodes": self.episodes,
            "return_latest": _mean(latest) if latest else None,
            **self.averages,
            "return_smoothed": self.smoothed,
            "best": self.best,
            **metrics,
        }
        clipped = self.policy.head.cut_off(rollout.action)
        if clipped is not None:
            share = F.masked.masked_mean(clipped.float(), rollout.mask)
            row["action_clip_fraction"] = float(share)
        if self.skipped:
            row["skipped_steps"] = self.skipped
        return row

    def recent_returns(self) -> Row:
        """Return, length, share of successes over the last 100 episodes; None before the first."""
        if not self.recent:
            return {"return_mean": None, "length_mean": None}
        # Every update pays for this: a few calls over the whole window, none of them per episode.
        returns, lengths, _ = zip(*self.recent, strict=True)
        count = len(returns)
        row = {"return_mean": _mean(returns), "length_mean": sum(lengths) / count}
        if self.success_at is not None:
            row["success_rate"] = sum(map(float(self.success_at).__le__, returns)) / count
        return row


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.array(array, copy=True).reshape(-1).view(np.uint8)


def _mean(values: Sequence[float]) -> float:
    """Never beyond all of them, as rounding alone would have it."""
    return min(max(sum(values) / len(values), min(values)), max(values))


def named(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in a checkpoint."""
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _free(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Its shape; a log of actions is as long as it is."""
    return tuple(tensor.shape[1:] if name.startswith(ACTION_LOGS) else tensor.shape)
