"""Readings of a run in words: the title of each, what it means, and how they are grouped."""

from __future__ import annotations

from typing import NamedTuple


class Reading(NamedTuple):
    """A key of metrics.jsonl for the reader of a page."""

    title: str
    meaning: str
    unit: str = ""
    healthy: tuple[float, float] | None = None
    """Range in which it usually stays in a run that learns."""


R = Reading
SECTIONS: dict[str, dict[str, Reading]] = {
    "Returns and episodes": {
        "return_mean": R("Return", "Mean return of the last 100 training episodes."),
        "return_smoothed": R("Smoothed return", "Moving average of the returns of episodes."),
        "return_latest": R("Return, this update", "Mean return of episodes that ended in it."),
        "evaluation": R("Evaluation", "Mean return of deterministic episodes."),
        "evaluation_episodes_cut": R("Evaluation episodes cut", "Episodes cut off at their limit."),
        "success_rate": R("Success rate", "Share of episodes at or above the success threshold."),
        "best": R("Best", "Highest score so far, by which the best policy is chosen."),
        "length_mean": R("Episode length", "Mean length of the last 100 episodes.", "steps"),
        "episodes": R("Episodes", "Complete episodes since training began."),
    },
    "Completions": {
        "score": R("Score", "Mean over completions, in the reward's own units."),
        "held_out_score": R("Held-out score", "Mean score on prompts that are not trained on."),
        "kl": R("KL to the reference", "log π - log π_ref, summed over a completion.", "nats"),
        "held_out_kl": R("Held-out KL", "KL to the reference on held-out prompts.", "nats"),
        "reward": R("Reward", "What PPO maximises: the processed score minus the KL penalty."),
        "score_std": R("Score, standard deviation", "Over the completions of an update."),
        "length": R("Length", "Tokens per completion.", "tokens"),
        "stopped": R("Stopped", "Share of completions that end with an end token."),
        "repeated": R("Repeated", "Share that equals another completion of the same prompt."),
        "turns": R("Turns", "Replies per episode of a text environment."),
        "truncated": R("Truncated", "Share of episodes that a limit ended."),
        "sampling_gap": R("Sampling gap", "Largest difference of log π, sampled and evaluated."),
        "loss": R("Loss", "Mean loss over the examples of an update."),
        "accuracy": R("Accuracy", "Share of pairs whose chosen answer scores higher."),
        "epoch": R("Epoch", "Passes over the data."),
    },
    "Policy": {
        "approx_kl": R("KL(old, new)", "After the update, k3 estimator.", "nats", (0.005, 0.02)),
        "clip_fraction": R(
            "Clip fraction", "Share of ratios outside the clip range.", "", (0.05, 0.2)
        ),
        "entropy": R("Entropy", "Of the policy after the update.", "nats"),
        "policy_loss": R("Policy loss", "Minus the policy's objective, mean of the update."),
        "action_clip_fraction": R("Actions clipped", "Share of actions outside their bounds."),
        "beta": R("Beta", "Weight of the KL penalty."),
        "line_search_fraction": R("Line search", "Accepted fraction of the full step."),
        "policy_grad_norm": R("Policy gradient norm", "Before clipping."),
        "gradient_steps_skipped_by_kl": R("Steps skipped by KL", "Not taken: KL over its target."),
        "kl_loss": R("KL loss", "Term of the KL to the reference in the loss."),
        "ptx_loss": R("Text loss", "Language modelling loss on the texts of ptx.data."),
        "callback_loss": R("Callback loss", "Sum of the loss terms of callbacks."),
    },
    "Value function": {
        "explained_variance": R("Explained variance", "Of the targets by the values: 1 perfect."),
        "value_loss": R("Value loss", "Mean over the gradient steps of the update."),
        "critic_grad_norm": R("Critic gradient norm", "Before clipping."),
    },
    "Optimisation": {
        "learning_rate": R("Learning rate", "Current value of the schedule."),
        "critic_learning_rate": R("Critic learning rate", "Current value of the schedule."),
        "grad_norm": R("Gradient norm", "Of the whole gradient before clipping."),
        "clip": R("Clip range", "Current value of the schedule."),
        "clip_high": R("Upper clip range", "Current value of the schedule."),
        "entropy_coef": R("Entropy coefficient", "Current value of the schedule."),
        "value_clip": R("Value clip range", "Current value of the schedule."),
        "epochs": R("Epochs", "Done in this update."),
        "gradient_steps": R("Gradient steps", "Taken in this update."),
        "skipped_steps": R("Skipped steps", "Gradient steps that were not finite, so far."),
        "lone_advantages": R("Lone advantages", "Minibatches and episodes of one sample."),
    },
    "Signals of health": {
        "reward_max": R("Largest reward", "Size of the largest reward, before normalisation."),
        "reward_std": R("Reward, standard deviation", "Before normalisation."),
        "reward_nonzero": R("Rewards not 0", "Share of the steps with a reward other than 0."),
        "value_target_rms": R("Value targets, RMS", "Root mean square of the value targets."),
        "value_target_std": R("Value targets, standard deviation", "Over a rollout."),
        "advantage_std": R("Advantages, standard deviation", "Before they are standardised."),
        "acting_entropy": R(
            "Entropy while acting", "An estimate, of the policy that acted.", "nats"
        ),
        "obs_scale_min": R("Smallest observations", "Size of the smallest column that is not 0."),
        "obs_scale_max": R("Largest observations", "Size of the largest column."),
        "action_saturation": R("Actions saturated", "Share of numbers at or beyond a bound."),
        "truncated_fraction": R("Truncated episodes", "Share that a time limit ended."),
        "length_max": R("Longest episode", "Of the last 100.", "steps"),
        "longest_fraction": R("Episodes as long as the longest", "Share of the last 100."),
        "longest_terminated_fraction": R("Longest episodes, terminated", "Share of the last 100."),
        "almost_longest_fraction": R("Episodes almost as long", "Shorter by a tenth at most."),
        "grad_clip_fraction": R("Gradients clipped", "Share of the gradient steps."),
        "zero_variance_groups": R("Groups without variance", "Prompts with equal scores."),
        "repetition": R("Repetition", "Share of token pairs seen before in the completion."),
    },
    "Speed": {
        "steps_per_second": R("Steps per second", "Environment steps of this update.", "1/s"),
        "tokens_per_second": R("Tokens per second", "Tokens that the update learned from.", "1/s"),
        "env_time_fraction": R("Time of the envs", "Share of the update that they took."),
        "env_step_seconds": R("Time of one step", "Of all envs together.", "s"),
    },
}
"""Section -> key of a row -> what a reader needs to know of it."""
OWN = "Other readings"
"""Section of the readings that callbacks have added."""
EXACT_KL = R("Exact KL(old, new)", "Over the whole batch after the update.", "nats")
"""Of control: in language `kl` is the distance to the reference."""
AXES = {
    "steps": "environment steps",
    "tokens": "tokens",
    "seconds": "time",
    "update": "updates",
}
"""Keys that count, and their names on an axis."""


def describe(key: str, counter: str) -> tuple[str, Reading]:
    """Section and words of a reading. counter: steps in control, tokens in language."""
    if key == "kl" and counter == "steps":
        return "Policy", EXACT_KL
    for section, known in SECTIONS.items():
        if key in known:
            return section, known[key]
    return OWN, Reading(key.replace("_", " "), "")
