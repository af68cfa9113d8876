"""Actor-critic with a critic of actions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from proximo import functional as F
from proximo.algorithms.base import OnPolicy
from proximo.bounds import at_least
from proximo.engines.nonfinite import not_finite
from proximo.types import Batch, Metrics, Rollout, Segments, Transitions

if TYPE_CHECKING:
    from torch import Tensor

    from proximo.nets.actor_critic import ActorCritic
    from proximo.state import TrainState


@dataclass(frozen=True, kw_only=True)
class QActorCritic(OnPolicy):
    """Actor-critic: Q(s,a) says how good an action was, in place of what came of it.

    L_actor = -log pi(A|S) Q(S,A);  L_critic = (R + gamma Q(S',A') - Q(S,A))^2

    Sutton et al. 2000; Konda & Tsitsiklis 2000. First the actor moves, then the moved actor draws
    A', which is what is done next, then the critic moves. No bootstrap where S' is terminal; where
    a time limit cut the episode, A' is drawn in its true last state. An update learns from all of
    its rollout in one step each: with one env and one step it is the textbook's. The critic has
    an output per discrete action, or takes a continuous one beside the observation.
    """

    name: ClassVar[str] = "qac"
    q_critic: ClassVar[bool] = True
    separate_optimizers: ClassVar[bool] = True
    rollout_steps: ClassVar[int] = 1
    unused_settings: ClassVar[tuple[str, ...]] = (
        *("lam", "advantage", "n", "value_target", "critic", "epochs", "minibatch_size"),
        *("minibatches", "value_coef", "outer_learning_rate", "outer_momentum"),
    )

    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "none"
    """Over which samples Q(S,A) is standardised for the actor."""
    epochs: Annotated[int, at_least(1)] = 1
    """K, passes over each rollout."""
    minibatches: Literal["shuffled", "episodes", "whole"] = "whole"
    """Shuffled anew every epoch, one whole episode each, in order, or all samples in one."""

    def rates(self, progress: float, scale: float) -> dict[str, float]:
        rates = super().rates(progress, scale)
        rates.setdefault("critic_learning_rate", rates["learning_rate"])
        return rates

    def prepare(self, state: TrainState, rollout: Rollout) -> Transitions:
        """S, A, R, S' and, where it is known, A'; `advantage` and `value` are Q(S,A).

        A' is what was done in the next row. After the last row and where an episode ended it is
        still to be drawn: after the last row from the noise with which the next rollout begins, so
        that it is what will be done there (except for the running moments of the observations,
        which move in between), and in the last state of an episode from noise of its own.
        """
        import torch

        policy, flat = state.policy, rollout.flat
        reward = self.reward(state, rollout)
        old = state.evaluate_old(rollout)
        next_obs = torch.cat([rollout.obs[1:], rollout.last_obs[None]])
        undecided = rollout.boundary.clone()
        undecided[-1] = True
        noise = policy.head.noise(state.shuffling, tuple(undecided.shape)).to(policy.device)
        state.ahead = policy.head.noise(state.collecting, (1, undecided.shape[1]))
        ended = torch.zeros_like(undecided).view(-1)
        if len(rollout.final_obs):
            next_obs.flatten(0, 1)[rollout.final_index] = rollout.final_obs
            ended[rollout.final_index] = True
        continues = ~ended.view_as(undecided)[-1]
        noise[-1, continues] = state.ahead.to(noise)[0, continues]
        value = old.value  # the target too, until the actor has moved
        return Transitions(
            **vars(self.make_batch(policy, rollout, old, value, value, value)),
            reward=flat(reward),
            terminated=flat(rollout.terminated),
            next_obs=flat(next_obs),
            next_action=flat(torch.cat([rollout.action[1:], rollout.action[-1:]])),
            undecided=flat(undecided),
            noise=flat(noise),
        )

    def update(self, state: TrainState, batch: Batch) -> Metrics:
        """A step of the actor along Q(S,A); A' from the moved actor; a step of the critic.

        A step that is not finite is skipped, as in `OnPolicy.update`.
        """
        import torch

        assert isinstance(batch, Transitions)
        policy, coefficients = state.policy, self.coefficients(state.progress)
        rates = self.set_rates(state)
        new = policy.evaluate(
            batch.obs, batch.action, entropy=self.values_entropy, segments=batch.segments
        )
        advantage = self.standardized(batch.advantage)
        policy_loss = -F.masked.masked_mean(
            self.objective(policy, new, batch, advantage, coefficients)
        )
        loss = policy_loss
        if new.entropy is not None:
            loss = loss - coefficients["entropy_coef"] * F.masked.masked_mean(new.entropy)
        norm = self._step(state, 0, batch, loss, coefficients)
        with torch.no_grad():
            next_value = next_action_value(policy, batch)
            zero = torch.zeros_like(next_value)
            target = F.returns.td_error(
                batch.reward, zero, next_value, batch.terminated, self.gamma
            )
            state.observe_returns(target)
        batch = replace(batch, target=target)
        value = policy.action_value(batch.obs, batch.action, batch.segments)
        error = self.value_error(policy, value, batch, coefficients["value_clip"])
        value_loss = F.masked.masked_mean(error)
        critic_norm = self._step(state, 1, batch, value_loss, coefficients)
        terms: dict[str, Tensor] = {}
        if norm is not None:
            terms |= {"policy_loss": policy_loss.detach(), "grad_norm": norm}
        if critic_norm is not None:
            terms |= {"value_loss": value_loss.detach(), "critic_grad_norm": critic_norm}
        return {
            **self.conclude(state, batch, coefficients, terms),
            **rates,
            **coefficients,
            **self.lone_advantages(batch, joined=0),
        }

    def loss_spec(self, coefficients: dict[str, float]) -> None:
        """There is no one loss."""

    def _step(
        self,
        state: TrainState,
        which: int,
        samples: Batch,
        loss: Tensor,
        coefficients: dict[str, float],
    ) -> Tensor | None:
        """A gradient step of the actor (0) or the critic (1). Returns |g|; None: it was skipped."""
        import torch

        from proximo.nets.optimizer import clip_gradient

        state.optimizer.zero_grad(which)
        torch.autograd.backward(loss)
        norm = clip_gradient([state.optimizer.gradients[which]], self.max_grad_norm)
        if what := not_finite(loss=loss.detach(), gradient_norm=norm):
            where = f", step of the {('actor', 'critic')[which]}"
            state.skip_step(what, where, samples, coefficients, self.skip_budget)
            return None
        state.optimizer.step(which)
        return norm


def next_action_value(policy: ActorCritic, batch: Transitions) -> Tensor:
    """Q(S',A'), A' being what was done there or, where nothing was yet, drawn now. [B]."""
    import torch

    obs, noise, action, segments = batch.next_obs, batch.noise, batch.next_action, batch.segments
    undecided = batch.undecided
    following: Tensor | slice = slice(None)
    if segments:  # the recurrent state in S' comes of S: every segment with the state behind it
        places = torch.arange(len(batch), device=obs.device) + batch.segment_id
        following = places + 1

        def extended(behind: Tensor, here: Tensor) -> Tensor:
            rows = behind.new_zeros(int(following[-1]) + 1, *behind.shape[1:])
            rows[following] = behind
            rows[places] = here
            return rows

        segments = Segments(
            extended(batch.segment_id, batch.segment_id),
            extended(0 * batch.initial_state, batch.initial_state),
        )
        obs, action = extended(obs, batch.obs), extended(action, batch.action)
        noise, undecided = extended(noise, 0 * noise), extended(undecided, undecided & False)
    drawn = policy.draw(obs, noise, segments)
    action = torch.where(undecided.view(-1, *[1] * (drawn.dim() - 1)), drawn, action)
    return policy.action_value(obs, action, segments)[following]
