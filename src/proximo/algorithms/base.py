"""The base class of algorithms: its contract, and the settings that all of them share.

An algorithm is a frozen dataclass with a `name` that overrides `objective` (what the policy
maximises, per sample), `loss_of` (the whole loss), `estimate` (advantages and value targets) or
`update`; `coefficients` holds what is scheduled. docs/extensions.md has examples.

The command line lists these settings without loading PyTorch, so methods import what they need.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from proximo import functional as F
from proximo.bounds import above, at_least, between
from proximo.errors import UsageError, check_values, refuse_unused
from proximo.functional.schedules import Coefficient, as_schedule
from proximo.types import Batch, Layout, LossSpec, Metrics, Rollout

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from proximo.engines.base import OldEvaluation, UpdateEngine
    from proximo.nets.actor_critic import ActorCritic, Evaluation
    from proximo.nets.optimizer import FlatOptimizer
    from proximo.state import TrainState

Estimator = Literal["gae", "n-step", "td0", "monte-carlo"]


@dataclass(frozen=True, kw_only=True)
class OnPolicy(ABC):
    """Settings of every algorithm that learns from the policy's own fresh experience."""

    name: ClassVar[str]
    q_critic: ClassVar[bool] = False
    """The critic estimates Q(s,a) instead of V(s)."""
    separate_optimizers: ClassVar[bool] = False
    """Actor and critic are updated in turn, and so cannot share layers."""
    exact_kl: ClassVar[bool] = False
    """The exact KL(old, new) is reported too, besides its estimate."""
    rollout_steps: ClassVar[int] = 256
    """Default T: steps in each env per update."""
    unused_settings: ClassVar[tuple[str, ...]] = ()
    """Settings below that have no effect in this algorithm, and so are refused."""

    gamma: Annotated[float, between(0, 1)] = 0.99
    """Discount per step (gamma)."""
    discount_horizon: Annotated[int | None, at_least(0)] = None
    """Steps N that the discount reaches over, gamma = 1 - 1/N; 0: the env's time limit; none: gamma
    as it is set."""
    lam: Annotated[float, between(0, 1)] = 0.95
    """Decay of the advantage estimate (lambda of GAE): 0 trusts the critic, 1 the returns."""
    advantage: Estimator = "gae"
    """How advantages are estimated; monte-carlo is the return minus the value."""
    n: Annotated[int, at_least(1)] = 5
    """Steps before the bootstrap, for n-step."""
    value_target: Literal["same", "gae", "n-step", "td0", "monte-carlo"] = "same"
    """Target of the critic: value plus advantage by this estimator (same: the one above)."""
    critic: bool = True
    """Learn values as a baseline; false: values count as 0, so that an advantage is the return
    itself (monte-carlo)."""
    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "minibatch"
    """Over which samples advantages are standardised (mean 0, standard deviation 1). An episode of
    one step takes part with the mean and standard deviation of the batch."""
    normalize_reward: bool = False
    """Scale rewards: divide by the running standard deviation of their discounted sum, then clip at
    10. A constant factor is env.reward_scale."""
    learning_rate: Annotated[Coefficient, between(0, 10)] = 3e-4
    """Step size of the optimizer; a number or a schedule such as linear:3e-4:0."""
    critic_learning_rate: Annotated[Coefficient | None, between(0, 10)] = None
    """A step size for the critic alone (separate trunks only)."""
    desired_kl: Annotated[float | None, above(0)] = None
    """Let the learning rate follow the KL: it falls by 1.5 after an update that moved the policy by
    more than twice this many nats, and rises by 1.5 after one under half; none: it keeps its
    schedule."""
    optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
    """Rule of the gradient step."""
    adam_betas: Annotated[tuple[float, float], at_least(0, below=1)] = (0.9, 0.999)
    """Decay of Adam's running mean and square of the gradient."""
    optimizer_eps: Annotated[float, above(0)] = 1e-5
    """Added to the denominator of Adam and RMSprop."""
    adam_reset: Literal["none", "step", "moments"] = "none"
    """Reset at every update: Adam's step count, so that each update begins with small steps
    (Adam-Rel, Ellis et al. 2024), or its running moments too."""
    outer_learning_rate: Annotated[float, above(0, at_most=10)] = 1.0
    """Outer step size sigma: an update from theta to theta' ends at theta + sigma (theta' - theta)
    (outer-PPO, Tan et al. 2024)."""
    outer_momentum: Annotated[float, at_least(0, below=1)] = 0.0
    """Nesterov momentum of these outer steps, over updates."""
    epochs: Annotated[int, at_least(1)] = 10
    """K, passes over each rollout."""
    minibatch_size: Annotated[int, at_least(1)] = 64
    """M, samples per gradient step; at most envs x steps. The last may be smaller, but one of a
    single sample joins the one before it where advantages are standardised in each."""
    minibatches: Literal["shuffled", "episodes", "whole"] = "shuffled"
    """Shuffled anew every epoch, one whole episode each, in order, or all samples in one."""
    max_grad_norm: Annotated[float | None, above(0)] = 0.5
    """The gradient is scaled down to this norm; none turns it off."""
    entropy_coef: Annotated[Coefficient, between(0, 1e6)] = 0.0
    """Weight of the entropy bonus (c2 of eq. 9), per nat; a number or a schedule."""
    value_coef: Annotated[float, between(0, 1e6)] = 0.5
    """Weight of the value loss (c1 of eq. 9)."""
    value_loss: Literal["mse", "huber", "clipped"] = "mse"
    """Squared error, Huber's, or the larger of the error and its clipped version."""
    value_clip: Annotated[Coefficient, above(0)] = 0.2
    """Range of the clipped value loss, in units of the critic's output."""
    huber_delta: Annotated[float, above(0)] = 1.0
    """Error at which Huber's loss becomes linear, in units of the critic's output."""
    skip_budget: Annotated[int, at_least(0)] = 10
    """Gradient steps that a run may skip because their loss or gradient was not finite; one more
    ends it."""

    def __post_init__(self) -> None:
        if not hasattr(self, "name"):
            raise UsageError(f"the algorithm {type(self).__name__} has no name: give its class one")
        check_values("algorithm", self)
        self._refuse(self.unused_settings, f"the algorithm is {self.name}")
        self._reach(self.discount_horizon)
        if not self.critic:
            of_critic = ("critic_learning_rate", "value_coef", "value_loss", "value_target")
            self._refuse(of_critic, "algorithm.critic is off")
        if self.minibatches != "shuffled":
            self._refuse(("minibatch_size",), f"algorithm.minibatches is {self.minibatches}")
        if self.optimizer != "adam":
            self._refuse(("adam_betas", "adam_reset"), f"algorithm.optimizer is {self.optimizer}")

    def _reach(self, horizon: int | None) -> None:
        """Let gamma follow from the horizon, if there is one; 0: once the env is known."""
        gamma = 1 - 1 / horizon if horizon else None
        if horizon is None or self.gamma == gamma:
            return
        self._refuse(("gamma",), f"algorithm.discount_horizon is {horizon}")
        if gamma is not None:
            object.__setattr__(self, "gamma", gamma)

    def check_used(self) -> None:
        """Refuse further settings that would do nothing in a new run. Raises `UsageError`."""
        if self.value_loss != "clipped":
            self._refuse(("value_clip",), f"algorithm.value_loss is {self.value_loss}")
        if self.value_loss != "huber":
            self._refuse(("huber_delta",), f"algorithm.value_loss is {self.value_loss}")
        if "n-step" not in (self.advantage, self.value_target):
            self._refuse(("n",), "neither algorithm.advantage nor algorithm.value_target is n-step")
        if self.optimizer == "sgd":
            self._refuse(("optimizer_eps",), "algorithm.optimizer is sgd")

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        refuse_unused("algorithm", self, names, why)

    def coefficients(self, progress: float, beta: float | None = None) -> dict[str, float]:
        """Scheduled settings at this progress, in [0, 1].

        beta: the weight of a KL penalty, once it has moved (`TrainState.beta`).
        """
        names = ("entropy_coef", "value_clip")
        return {name: as_schedule(getattr(self, name))(progress) for name in names}

    def rates(self, progress: float, scale: float) -> dict[str, float]:
        """Learning rates of the policy, or of all, and of the critic where it has its own.

        scale: the factor by which they follow the KL (`TrainState.rate_scale`).
        """
        rates = {"learning_rate": scale * as_schedule(self.learning_rate)(progress)}
        if self.critic_learning_rate is not None:
            rates["critic_learning_rate"] = as_schedule(self.critic_learning_rate)(progress)
        return rates

    def make_optimizer(self, policy: ActorCritic) -> FlatOptimizer:
        """One vector of parameters, or two where actor and critic are updated separately."""
        from proximo.nets.optimizer import FlatOptimizer

        actor, critic = policy.actor_parameters(), policy.critic_parameters()
        kind = (self.optimizer, self.optimizer_eps, self.adam_betas)
        if self.critic_learning_rate is None and not self.separate_optimizers:
            return FlatOptimizer([actor + critic], *kind)
        if policy.critic is None:
            if self.separate_optimizers:
                raise UsageError(
                    f"net.trunk is shared, but {self.name} moves its actor and its critic in "
                    "turn: use --net.trunk separate"
                )
            raise UsageError(
                "algorithm.critic_learning_rate is set, but net.trunk is shared: "
                "a shared trunk has one rate; use --net.trunk separate or drop the critic's"
            )
        return FlatOptimizer([actor, critic], *kind)

    def prepare(self, state: TrainState, rollout: Rollout) -> Batch:
        """Old log-probabilities, values, advantages and value targets, once per rollout."""
        reward = self.reward(state, rollout)
        old = state.evaluate_old(rollout)
        value, next_value = old.value, state.engine.next_value(rollout, old)
        if not self.critic:
            value = next_value = value.new_zeros(value.shape)
        advantage, target = self.estimate(
            reward, value, next_value, rollout.terminated, rollout.boundary
        )
        batch = self.make_batch(state.policy, rollout, old, value, advantage, target)
        state.observe_returns(batch.target)
        return batch

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        """K epochs of minibatches, then the running moments of the observations.

        A minibatch whose loss or gradient is not finite is skipped. Raises `TrainingError` after
        too many of those, and `TrainState.fault` if the new policy is not finite.
        """
        coefficients = self.coefficients(state.progress, state.beta)
        rates = self.set_rates(state)
        layout = self.layout(batch, state.shuffling)

        def skip(what: str, epoch: int, number: int, samples: Batch) -> None:
            where = f", epoch {epoch}, minibatch {number}"
            state.skip_step(what, where, samples, coefficients, self.skip_budget)

        before = self.outer_start(state)
        taken = state.engine.descend(self, batch, layout, coefficients, skip)
        self.outer_step(state, before)
        terms = {name: total / taken.steps for name, total in taken.terms.items()}
        return {
            **self.conclude(state, batch, coefficients, terms),
            **rates,
            **coefficients,
            "epochs": taken.epochs,
            "gradient_steps": taken.steps,
            "gradient_steps_skipped_by_kl": layout.steps - taken.steps - taken.skipped,
            **self.lone_advantages(batch, layout.joined),
        }

    def reward(self, state: TrainState, rollout: Rollout) -> Tensor:
        """The rewards that the policy learns from: scaled, if they are. [T, N]."""
        return state.scaled_reward(rollout, self.gamma) if self.normalize_reward else rollout.reward

    def estimate(
        self,
        reward: Tensor,
        value: Tensor,
        next_value: Tensor,
        terminated: Tensor,
        boundary: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Advantages and value targets from the TD errors δ. All [T, N]."""
        delta = F.returns.td_error(reward, value, next_value, terminated, self.gamma)
        advantage = self.advantages(self.advantage, delta, boundary)
        if self.value_target in ("same", self.advantage):
            return advantage, value + advantage
        return advantage, value + self.advantages(self.value_target, delta, boundary)

    def advantages(self, estimator: str, delta: Tensor, boundary: Tensor) -> Tensor:
        """Advantages by this estimator. All [T, N]."""
        if estimator == "n-step":
            return F.returns.n_step(delta, boundary, self.gamma, self.n)
        lam = {"gae": self.lam, "td0": 0.0, "monte-carlo": 1.0}[estimator]
        return F.returns.gae(delta, boundary, self.gamma, lam)

    def normalized(self, advantage: Tensor, episode: Tensor) -> Tensor:
        """Advantages at mean 0 and standard deviation 1, unless minibatches do it. All [B]."""
        if self.normalize_advantage == "batch":
            return F.masked.standardize(advantage)
        if self.normalize_advantage == "episode":
            return F.masked.standardize_groups(advantage, episode, len(episode))
        return advantage

    def make_batch(
        self,
        policy: ActorCritic,
        rollout: Rollout,
        old: OldEvaluation,
        value: Tensor,
        advantage: Tensor,
        target: Tensor,
    ) -> Batch:
        """The valid steps of [T, N, ...] side by side, env after env in order of time."""
        # Behind a masked row begins another episode, so that none begins with one that is left out.
        flat, boundary = rollout.flat, rollout.boundary
        episode = segment = F.batches.segments(flat(F.batches.begins(boundary)))
        if policy.state_size:
            first = F.batches.ages(boundary) % policy.bptt_steps == 0
            segment = F.batches.segments(flat(first))
        return Batch(
            obs=flat(rollout.obs),
            action=flat(rollout.action),
            log_prob=flat(old.log_prob),
            parameters=flat(old.parameters),
            value=flat(value),
            advantage=self.normalized(flat(advantage), episode),
            target=flat(target),
            episode=episode,
            segment_id=segment,
            initial_state=flat(old.initial_state),
        )

    def layout(self, batch: Batch, generator: Generator) -> Layout:
        """The order of the minibatches."""
        return F.batches.minibatches(
            self.minibatches,
            self.minibatch_size,
            self.epochs,
            generator,
            episode=batch.episode,
            segment=batch.segment_id if batch.segments else None,
            join_single=self.standardizes_minibatches,
        )

    def outer_start(self, state: TrainState) -> Tensor | None:
        """The weights before an update, if an outer step follows it. [P]."""
        outer = (self.outer_learning_rate, self.outer_momentum) != (1.0, 0.0)
        return state.optimizer.weights() if outer else None

    def outer_step(self, state: TrainState, before: Tensor | None) -> None:
        """Go on from the weights before an update by the outer step size and momentum."""
        if before is None:
            return
        weights, velocity = F.outer.outer_step(
            before,
            state.optimizer.weights(),
            self.outer_learning_rate,
            self.outer_momentum,
            state.outer_velocity,
        )
        state.optimizer.set_weights(weights)
        state.outer_velocity = velocity if self.outer_momentum else None

    def set_rates(self, state: TrainState) -> dict[str, float]:
        """Set the optimizer's step sizes to where their schedules stand; returns them.

        Adam's records begin anew where `adam_reset` says so.
        """
        if self.adam_reset != "none":
            state.optimizer.reset(moments=self.adam_reset == "moments")
        rates = self.rates(state.progress, state.rate_scale)
        names = ("learning_rate", "critic_learning_rate")[: len(state.optimizer.flats)]
        state.optimizer.rates = [rates.get(name, 0.0) for name in names]
        return rates

    def conclude(
        self,
        state: TrainState,
        batch: Batch,
        coefficients: dict[str, float],
        terms: dict[str, Tensor],
    ) -> Metrics:
        """Move what follows the new policy: the moments of the observations, the rate's scale.

        Returns the terms of the loss and the readings of the policy.
        """
        new = state.engine.evaluate_batch(batch, entropy=True)
        readings = {**terms, **self.read(state.policy, new, batch, coefficients)}
        readings.pop("loss", None)
        if self.critic:
            explained = F.masked.explained_variance(batch.value, batch.target)
            readings["explained_variance"] = explained
            if state.policy.value_scale.bins:
                outside = state.policy.value_scale.outside(batch.target)
                readings["value_outside"] = F.masked.masked_mean(outside.to(batch.target.dtype))
        else:
            readings.pop("value_loss", None)
        if self.normalize_advantage == "episode":
            readings["lone_advantages"] = F.masked.alone(batch.episode, len(batch)).sum()
        state.observe(batch.obs)
        metrics = state.numbers(readings)
        if not metrics.get("lone_advantages", 1):
            del metrics["lone_advantages"]
        if self.desired_kl is not None:
            scale = state.rate_scale
            state.rate_scale = F.kl.adapted_rate(scale, metrics["kl"], self.desired_kl)
        return metrics

    def lone_advantages(self, batch: Batch, joined: int) -> Metrics:
        """The number of advantages that stand alone where they are standardised, if any do.

        In episodes they are counted by `conclude`.
        """
        count = joined
        if self.normalize_advantage in ("minibatch", "batch"):
            count += len(batch) == 1
        return {"lone_advantages": count} if count else {}

    def objective(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        advantage: Tensor,
        coefficients: Mapping[str, float | Tensor],
    ) -> Tensor:
        """The objective of the policy per sample: log π(a|s) A, the policy gradient. All [B]."""
        return F.losses.policy_gradient(new.log_prob, advantage)

    def standardized(self, advantage: Tensor) -> Tensor:
        """The advantages of a minibatch, standardised if the setting says so. One alone stays."""
        per_minibatch = self.normalize_advantage == "minibatch"
        return F.masked.standardize(advantage) if per_minibatch else advantage

    def loss(
        self, policy: ActorCritic, batch: Batch, coefficients: Mapping[str, float | Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that a gradient step minimises, and the terms to report, among them `loss`.

        coefficients: numbers, or tensors where the loss is compiled, so that it need not be
        compiled anew when they change: do not branch on their values.
        """
        new = policy.evaluate(
            batch.obs, batch.action, entropy=self.values_entropy, segments=batch.segments
        )
        return self.loss_of(policy, new, batch, coefficients)

    def loss_of(
        self,
        policy: ActorCritic,
        new: Evaluation,
        batch: Batch,
        coefficients: Mapping[str, float | Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a policy that gives these log-probabilities and values: see `loss`.

        -E[objective] + c1 E[value loss] - c2 E[entropy]: Schulman et al. 2017, eq. 9.
        """
        advantage = self.standardized(batch.advantage)
        policy_loss = -F.masked.masked_mean(
            self.objective(policy, new, batch, advantage, coefficients)
        )
        value_loss = F.masked.masked_mean(
            self.critic_error(
                policy, new.value, new.value_logits, batch, coefficients["value_clip"]
            )
        )
        loss = policy_loss + self.value_weight * value_loss
        if new.entropy is not None:
            loss = loss - coefficients["entropy_coef"] * F.masked.masked_mean(new.entropy)
        terms = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss}
        return loss, {name: term.detach() for name, term in terms.items()}

    def stops(self, engine: UpdateEngine, batch: Batch) -> bool:
        """True skips the remaining epochs of this update."""
        return False

    def native_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        """The loss in numbers for the native engine; None: only PyTorch can compute it.

        A subclass of the user's own may have another loss than the class that it derives from.
        """
        ours = type(self).__module__.startswith("proximo.algorithms.")
        return self.loss_spec(coefficients) if ours else None

    def loss_spec(self, coefficients: dict[str, float]) -> LossSpec | None:
        """The loss in numbers, if the native engine knows it: that of the policy gradient."""
        return self.spec(coefficients, "log")

    def spec(self, coefficients: dict[str, float], policy: str, **changes: Any) -> LossSpec:
        """A `LossSpec` of what all algorithms share, with this objective of the policy."""
        return LossSpec(
            policy=policy,
            entropy_coef=coefficients["entropy_coef"],
            value_coef=self.value_weight,
            value_loss=self.value_loss,
            value_clip=coefficients["value_clip"],
            huber_delta=self.huber_delta,
            standardize=self.normalize_advantage == "minibatch",
            max_grad_norm=self.max_grad_norm,
            **changes,
        )

    def read(
        self, policy: ActorCritic, new: Evaluation, batch: Batch, coefficients: dict[str, float]
    ) -> dict[str, Tensor]:
        """Readings of the policy after the update, over the whole batch: KL, entropy."""
        readings = {"approx_kl": F.masked.masked_mean(F.kl.k3(new.log_prob, batch.log_prob))}
        if new.entropy is not None:
            readings["entropy"] = F.masked.masked_mean(new.entropy)
        if self.exact_kl or self.desired_kl is not None:
            old = policy.head.restore(batch.parameters)
            readings["kl"] = F.masked.masked_mean(F.kl.kl_divergence(old, new.distribution))
        return readings

    @property
    def notes(self) -> list[str]:
        """Doubts about these settings, which the user may intend."""
        return []

    @property
    def standardizes_minibatches(self) -> bool:
        """Advantages are standardised within each minibatch, and the policy learns from those."""
        return self.normalize_advantage == "minibatch" and not self.separate_optimizers

    @property
    def value_weight(self) -> float:
        """C1, and 0 where there is no critic."""
        return self.value_coef if self.critic else 0.0

    @property
    def values_entropy(self) -> bool:
        """The entropy has a weight at some time, and so must be computed."""
        return as_schedule(self.entropy_coef).highest > 0

    def critic_error(
        self,
        policy: ActorCritic,
        value: Tensor,
        logits: Tensor | None,
        batch: Batch,
        clip: float | Tensor,
    ) -> Tensor:
        """The error of values, or of the logits of their histograms, [B, K], if there are any."""
        if logits is None:
            return self.value_error(policy, value, batch, clip)
        return policy.value_scale.error(logits, batch.target)

    def value_error(
        self, policy: ActorCritic, value: Tensor, batch: Batch, clip: float | Tensor
    ) -> Tensor:
        """The chosen value loss, elementwise, in units of the critic's output. All [B]."""
        target, old, scale = batch.target, batch.value, policy.value_scale
        if scale.symlog:
            value, target, old = map(scale.learned, (value, target, old))
        if policy.normalize_returns:
            value, target, old = (x / policy.return_scale for x in (value, target, old))
        if self.value_loss == "clipped":
            return F.losses.clipped_squared_error(value, target, old, clip)
        if self.value_loss == "huber":
            return F.losses.huber_error(value, target, self.huber_delta)
        return F.losses.squared_error(value, target)
