"""Advantage actor-critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from proximo.algorithms.base import OnPolicy
from proximo.bounds import at_least, between
from proximo.functional.schedules import Coefficient


@dataclass(frozen=True, kw_only=True)
class A2C(OnPolicy):
    """Advantage actor-critic: one step along the policy gradient, then new experience.

    L = E[log pi(a|s) A] - c1 E[(V - V_targ)^2] + c2 E[entropy]

    Mnih et al. 2016 (arXiv 1602.01783), the synchronous form of its A3C. The defaults are those of
    the field: the return up to the end of a short rollout, all of it in one step of RMSprop.
    """

    name: ClassVar[str] = "a2c"
    rollout_steps: ClassVar[int] = 8

    lam: Annotated[float, between(0, 1)] = 1.0
    """Decay of the advantage estimate (lambda of GAE): 0 trusts the critic, 1 the returns."""
    normalize_advantage: Literal["minibatch", "batch", "episode", "none"] = "none"
    """Over which samples advantages are standardised."""
    learning_rate: Annotated[Coefficient, between(0, 10)] = 7e-4
    """Step size of the optimizer; a number or a schedule such as linear:3e-4:0."""
    optimizer: Literal["adam", "rmsprop", "sgd"] = "rmsprop"
    """Rule of the gradient step."""
    epochs: Annotated[int, at_least(1)] = 1
    """K, passes over each rollout."""
    minibatches: Literal["shuffled", "episodes", "whole"] = "whole"
    """Shuffled anew every epoch, one whole episode each, in order, or all samples in one."""
