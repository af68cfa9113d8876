"""The rules of health for PPO on a language model. A run's score is what the others call return."""

from __future__ import annotations

import numpy as np

from proximo.run import rules
from proximo.run.history import History, Sign, middle

GROUPED = ("rloo", "grpo", "dr-grpo")
"""Advantages within a group of completions of one prompt."""
FEW = 6
"""Updates before a rule of this page applies."""


def scores_all_equal(h: History) -> Sign | None:
    spread = h.known("score_std")
    if len(spread) < FEW or h.setting("algorithm.advantage") in GROUPED or h.improved:
        return None
    if not (spread < 1e-9).mean() >= 0.9:
        return None
    return Sign(
        f"score_std 0 in {100 * (spread < 1e-9).mean():.0f}% of the updates, score "
        f"{h.recent('score'):.3g}",
        "the reward gives every completion the same score",
        "a reward that tells completions apart, or easier prompts",
        int(h.updates[0]),
    )


def zero_variance_groups(h: History) -> Sign | None:
    share = h.known("zero_variance_groups")
    if len(share) < FEW or not h.recent("zero_variance_groups") >= 0.8 or h.improved:
        return None
    return Sign(
        f"in {100 * h.recent('zero_variance_groups'):.0f}% of the groups all completions of a "
        f"prompt have the same score ({h.span})",
        "such a group has advantage 0 and teaches nothing: the prompts are too hard, too easy, or "
        "the reward is too coarse",
        "prompts of other difficulty, more --run.completions-per-prompt, or a finer reward",
        h.since(lambda h: h["zero_variance_groups"] >= 0.8),
    )


def reward_hacking(h: History) -> Sign | None:
    held = h.known("held_out_score")
    if len(held) < 4:
        return None
    now, best = middle(held[-max(2, len(held) // 4) :]), held.max()
    size = max(h.gain, float(np.ptp(held)))
    if not (h.improved and best - now > 0.3 * size and now < held[: len(held) // 2].max()):
        return None
    return Sign(
        f"score {h.early('score'):.3g} → {h.recent('score'):.3g} in training, held_out_score "
        f"{best:.3g} → {now:.3g}",
        "the policy has found what pays on the prompts of training alone: reward hacking",
        "the model in RUN/best; --kl.coef 0.1, more prompts, or another reward",
        int(h.updates[h.peak("held_out_score")]),
    )


def kl_running_away(h: History) -> Sign | None:
    target, kl = h.number("kl.target"), h.recent("kl")
    each, cost = kl / h.recent("length"), h.recent("beta") * kl
    weak = each > 0.5 and cost < 0.1 * abs(h.gain)
    beyond = kl > (5 * target if target else np.inf)
    if len(h.known("kl")) < FEW or not (weak or beyond) or kl < 2 * h.early("kl"):
        return None
    return Sign(
        f"kl {kl:.3g} nats per completion, {each:.2g} per token ({h.span}), which cost {cost:.2g} "
        f"of a score that rose by {h.gain:.2g}" + (f"; the target is {target:g}" if target else ""),
        "the policy leaves the reference: the penalty is too weak for this reward",
        f"--kl.coef {max(0.05, 4 * h.number('kl.coef')):.2g}, or a smaller "
        "--algorithm.learning-rate",
        h.since(lambda h: h["kl"] / h["length"] > 0.5),
    )


def repeats(h: History) -> np.ndarray:
    """Updates whose completions repeat themselves clearly more than at the beginning."""
    return np.asarray(h["repetition"] >= h.early("repetition") + 0.2)


def eos_lost(h: History) -> Sign | None:
    before, now = h.early("stopped"), h.recent("stopped")
    if len(h.known("stopped")) < FEW or not (before >= 0.2 and now <= 0.1 * before):
        return None
    lost = h.since(lambda h: h["stopped"] <= 0.1 * before)
    if h.since(repeats) < lost:  # a loop has no end: then the repetition is the cause
        return None
    return Sign(
        f"stopped {before:.2f} → {now:.2f}: completions are cut off at "
        f"{h.setting('sampling.max_tokens')} tokens",
        "the policy has unlearned the end of sequence: the reward pays for more text, or nothing "
        "pays for an end",
        "--score.missing-eos-penalty 1",
        lost,
    )


def length_explosion(h: History) -> Sign | None:
    before, now, most = h.early("length"), h.recent("length"), h.number("sampling.max_tokens")
    if len(h.known("length")) < FEW:
        return None
    if not (now >= 2.5 * before or (now >= 0.95 * most and before <= 0.5 * most)):
        return None
    return Sign(
        f"length {before:.3g} → {now:.3g} tokens",
        "longer completions earn more",
        "a reward per token, or --algorithm.loss-mean sequences",
        h.since(lambda h: h["length"] >= 2 * before),
    )


def length_collapse(h: History) -> Sign | None:
    before, now = h.early("length"), h.recent("length")
    if len(h.known("length")) < FEW or not (now <= 0.25 * before and before >= 4):
        return None
    return Sign(
        f"length {before:.3g} → {now:.3g} tokens",
        "shorter completions earn more, or a KL penalty per token makes every token cost",
        "--sampling.min-tokens, a reward for what is missing, or a smaller --kl.coef",
        h.since(lambda h: h["length"] <= 0.5 * before),
    )


def repetition(h: History) -> Sign | None:
    before, now = h.early("repetition"), h.recent("repetition")
    if len(h.known("repetition")) < FEW or not (now >= 0.5 and now >= before + 0.3):
        return None
    return Sign(
        f"{100 * now:.0f}% of the pairs of neighbouring tokens stood in the same completion "
        f"before, {100 * before:.0f}% at the beginning",
        "the policy repeats itself: the reward does not see it",
        "a reward that subtracts for repetition, or --kl.coef 0.1",
        h.since(lambda h: h["repetition"] >= 0.5),
    )


def sampling_differs(h: History) -> Sign | None:
    gap = h.recent("sampling_gap")
    if not gap > 0.01:
        return None
    return Sign(
        f"sampling_gap {gap:.2g} nats",
        "the probabilities with which tokens are drawn are not those of the update",
        "--run.dtype float32",
        h.since(lambda h: h["sampling_gap"] > 0.01),
    )


LANGUAGE: tuple[rules.Rule, ...] = (
    scores_all_equal,
    zero_variance_groups,
    reward_hacking,
    eos_lost,
    repetition,
    length_explosion,
    length_collapse,
    rules.kl_over_target,
    rules.learning_rate_spent,
    kl_running_away,
    rules.gradient_always_clipped,
    rules.clip_saturated,
    rules.value_loss_exploding,
    rules.kl_under_target,
    sampling_differs,
)
"""The rules of PPO with language. A rule stands before those whose signs its cause brings about."""
