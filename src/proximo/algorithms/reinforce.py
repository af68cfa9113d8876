"""The policy gradient with the reward to go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from proximo.algorithms.base import Estimator, OnPolicy
from proximo.bounds import at_least


@dataclass(frozen=True, kw_only=True)
class Reinforce(OnPolicy):
    """REINFORCE: the policy gradient with the reward to go, less a baseline if there is a critic.

    L = E[log pi(a|s) A],  A = sum of the discounted rewards from here on - V(s)

    Williams 1992; Sutton & Barto 2018, section 13.4. It is A2C at lambda 1. Whole episodes
    (`rollout.episodes`) make the return the true one; in a rollout of T steps the critic stands in
    for what an unfinished episode would still earn, or nothing without a critic.
    """

    name: ClassVar[str] = "reinforce"
    unused_settings: ClassVar[tuple[str, ...]] = ("advantage", "value_target", "lam", "n")

    advantage: Estimator = "monte-carlo"
    """How advantages are estimated; monte-carlo is the return minus the value."""
    epochs: Annotated[int, at_least(1)] = 1
    """K, passes over each rollout."""
    minibatches: Literal["shuffled", "episodes", "whole"] = "whole"
    """Shuffled anew every epoch, one whole episode each, in order, or all samples in one."""
