"""The rules of health, each a function of a run's history: does it apply, why, and what to do.

Thresholds were chosen on recorded runs, others than those of benchmarks/results/health.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from proximo.run.history import History, Sign, middle
from proximo.run.presets import Preset, presets_about

Rule = Callable[[History], Sign | None]
"""None: it does not apply."""


def env_never_pays(h: History) -> Sign | None:
    rewards, pays = h.known("reward_max"), h["best"][-1]
    if h["episodes"][-1] < 20 or h.progress < 0.1 or len(rewards) < 2 or rewards.any():
        return None
    if np.any(h.known("return_mean")):
        return Sign(
            f"every reward that the policy learns from is 0, but the return is {pays:g}",
            "the env pays, and the settings of the rewards make nothing of it",
            "--env.reward-scale 1 --env.reward-shift 0 --env.reward-clip none",
            int(h.last),
        )
    return Sign(
        f"every reward so far is 0, in {h['episodes'][-1]:g} episodes and {h['steps'][-1]:g} steps",
        "the env has paid nothing yet: random actions do not reach what it pays for, or its reward "
        "is broken",
        "--algorithm.entropy-coef 0.01, a reward for parts of the way, or `proximo check ENV`",
        int(h.last),
    )


def reward_scale(h: History) -> Sign | None:
    own = ("algorithm.normalize_reward", "net.normalize_returns", "net.value_symlog")
    scaled = any(map(h.setting, own))
    largest = h.median("reward_max")
    if scaled or not (largest >= 1000 or 0 < largest <= 1e-3):
        return None
    size = "far above 1" if largest >= 1000 else "far below 1"
    return Sign(
        f"rewards reach {largest:g} in size (target of the critic: {h.recent('value_target_rms'):g}"
        " root mean square)",
        f"the critic learns slowly what lies {size}, where its outputs begin",
        "--algorithm.normalize-reward (or --env.reward-scale with a number of yours)",
        h.since(lambda h: h["reward_max"] > 0),
    )


def observations_unscaled(h: History) -> Sign | None:
    small, large = h.first("obs_scale_min"), h.first("obs_scale_max")
    if h.setting("net.normalize_obs") or not (large >= 100 or (small <= 0.1 and h.stalled)):
        return None
    return Sign(
        f"columns of the observation differ in size, from {small:.3g} to {large:.3g}",
        "the network sees hardly any of the small ones, and large ones saturate its units",
        "--net.normalize-obs",
        h.since(lambda h: h["obs_scale_max"] > 0),
    )


def time_limit_as_termination(h: History) -> Sign | None:
    share, longest = h["longest_terminated_fraction"], h["length_max"]
    most = h.highest("length_max")
    # Of ends that the task brings about, about as many stand at each of the lengths before it.
    usual = h["almost_longest_fraction"] / np.maximum(1, 0.1 * longest)
    piled = (share >= 0.5) | ((share >= 0.1) & (share >= 10 * usual))
    ends = piled & (longest >= most) & (longest >= 20)
    looked = int((h.updates >= 0.75 * h.last)[np.isfinite(share)].sum())
    recent = ends & (h.updates >= 0.75 * h.last)
    cut = h.known("truncated_fraction")
    if cut.any() or not looked or recent.sum() < 0.6 * looked:
        return None
    return Sign(
        f"{100 * middle(share[recent]):.0f}% of the last 100 episodes were terminated after "
        f"exactly {most:g} steps, and none was truncated",
        "the env seems to report its time limit as a termination, so that values behind it count 0 "
        "although the task continues",
        f"return truncated=True at the limit, or --env.max-episode-steps {most:g} in place of it",
        h.since(lambda h: ends),
    )


def all_end_by_time_limit(h: History) -> Sign | None:
    cut, returns = h.known("truncated_fraction"), h.known("return_latest")
    if len(cut) < 2 or (cut < 1).any() or not (h.long_enough and h.progress >= 0.25):
        return None
    if not len(returns):
        return None
    if np.ptp(returns) > 1e-6 * np.abs(returns).max():
        return None
    return Sign(
        f"all {h['episodes'][-1]:g} episodes ended by the time limit, after "
        f"{h.recent('length_mean'):g} steps, with the same return {returns[-1]:g}",
        "no episode gets anywhere before the limit, so no action looks better than another",
        f"--env.max-episode-steps {5 * h.recent('length_mean'):.0f}, or more exploration: "
        "--algorithm.entropy-coef 0.01",
        h.since(lambda h: h["truncated_fraction"] >= 1),
    )


def discount_too_short(h: History) -> Sign | None:
    gamma, length = h.number("algorithm.gamma", 1.0), h.recent("length_mean")
    if gamma >= 1 or not h["episodes"][-1] >= 20:
        return None
    ahead = 1 / (1 - gamma)
    gap = min(1 / max(h.median("reward_nonzero"), 1e-9), length)
    sparse = h.stalled and 0 < h.median("reward_nonzero") <= 0.05 and ahead < gap / 5
    if not ((ahead < 8 and length > 5 * ahead) or sparse):
        return None
    wanted = 1 - 1 / max(50, min(length, 1000))
    why = f"rewards come every {gap:.0f} steps" if sparse else f"episodes last {length:.0f} steps"
    return Sign(
        f"gamma {gamma:g} looks about {ahead:.0f} steps ahead, but {why}",
        "what an action brings later hardly counts",
        f"--algorithm.gamma {wanted:.3g}",
        int(h.updates[0]),
    )


def entropy_low_from_start(h: History) -> Sign | None:
    first = h.first("acting_entropy")
    if np.isfinite(h.median("action_saturation")) or not 0 <= first < 0.1 or h.solved:
        return None
    return Sign(
        f"acting_entropy {first:.2g} nats in the first rollout",
        "the first policy is almost deterministic, so it tries nothing else",
        "--net.policy-gain 0.01, or weights of --from that still explore",
        int(h.updates[0]),
    )


def kl_over_target(h: History) -> Sign | None:
    target = h.number("algorithm.target_kl") or h.number("algorithm.desired_kl")
    limit = max(0.15, 5 * target)
    over = h["approx_kl"] > limit
    large = h["approx_kl"] > 2 * limit
    fell = large.any() and h.stalled and h.recent("approx_kl") < 1e-3
    # Only the clip promises small updates; the others are judged by what is usual for them.
    share = 0.1 if h.number("algorithm.clip") else 0.5
    if h.last < 4 or h.solved or not (over.sum() >= max(4, share * len(over)) or fell):
        return None
    rate = h.known("learning_rate")
    return Sign(
        f"approx_kl above {limit:g} in {100 * over.mean():.0f}% of the updates, at most "
        f"{h.highest('approx_kl'):.3g}; "
        + (f"the target is {target:g}" if target else "0.005 to 0.02 is usual"),
        "the learning rate is too large (or there are too many epochs): an update moves the policy "
        "far from the data that it learns from",
        f"--algorithm.learning-rate {min(rate.max(initial=0) / 10 or 3e-4, 3e-4):.1g} "
        "(or --algorithm.target-kl 0.02)",
        h.since(lambda h: over),
    )


def learning_rate_spent(h: History) -> Sign | None:
    rates = h["learning_rate"]
    known = h.known("learning_rate")
    if not (h.long_enough and len(known)) or h.progress > 0.9 or h.solved:
        return None
    if not rates[-1] <= 0.01 * known.max():
        return None
    follows = h.setting("algorithm.desired_kl")
    return Sign(
        f"learning_rate {rates[-1]:.2g}, from {known.max():.2g}, with "
        f"{100 * (1 - h.progress):.0f}% of the run to come",
        "it has followed the KL down (desired_kl)" if follows else "its schedule has ended early",
        "--algorithm.desired-kl none" if follows else "--algorithm.learning-rate linear:3e-4:0",
        h.since(lambda h: rates <= 0.01 * known.max()),
    )


def gradient_always_clipped(h: History) -> Sign | None:
    limit, norm = h.number("algorithm.max_grad_norm", np.inf), h.median("grad_norm")
    scaled = h.setting("algorithm.normalize_reward") or h.setting("net.normalize_returns")
    if not (h.median("grad_clip_fraction") > 0.99 and norm > 1000 * limit):
        return None
    remedy = "--algorithm.max-grad-norm 0.5"
    if limit >= 0.1:
        remedy = "--algorithm.max-grad-norm none" if scaled else "--algorithm.normalize-reward"
    return Sign(
        f"every gradient step was scaled down: grad_norm {norm:.3g} (median), limit {limit:g}",
        "so little is left of the gradient that the optimizer's eps decides on the step",
        remedy,
        h.since(lambda h: h["grad_norm"] > 1000 * limit),
    )


def actions_saturated(h: History) -> Sign | None:
    name = "action_saturation"
    if not (h.first(name) > 0.5 or (h.recent(name) > 0.8 and h.stalled)):
        return None
    if h.recent(name) < 0.3:
        return None
    squashed = h.setting("net.action") == "squash"
    early = h.first(name) > 0.5
    return Sign(
        f"{100 * h.recent(name):.0f}% of the numbers of the actions lie "
        f"{'within 1% of a bound' if squashed else 'beyond a bound, and are clipped'} ({h.span})",
        "the first standard deviation is too wide for the bounds"
        if early
        else "the policy has gone to the bounds, where the gradient tells nothing",
        "--net.log-std -0.5" if early else "--net.mean tanh, and a smaller learning rate",
        h.since(lambda h: h[name] > 0.5),
    )


def entropy_not_falling(h: History) -> Sign | None:
    entropy, weight = h.recent("entropy"), h.median("entropy_coef")
    first = h.first("entropy")
    enough = h.long_enough and h.progress >= 0.25
    if not (enough and weight >= 0.03 and entropy >= first - 0.1 * abs(first)):
        return None
    return Sign(
        f"entropy {entropy:.3g} nats now, {first:.3g} after the first update, with weight "
        f"{weight:g}",
        "the entropy bonus outweighs the rewards: the policy stays random",
        "--algorithm.entropy-coef 0.01 (or 0)",
        int(h.updates[0]),
    )


def clip_saturated(h: History) -> Sign | None:
    fraction, clip = h.median("clip_fraction"), h.first("clip")
    narrow = clip <= 0.05 and fraction >= 0.1 and h.median("approx_kl") < 5e-4
    if not (h.long_enough and (fraction >= 0.6 or narrow)):
        return None
    return Sign(
        f"clip_fraction {fraction:.2f} with clip {clip:g}, approx_kl {h.median('approx_kl'):.2g} "
        "(medians)",
        "the clip range is so narrow that samples stop teaching after the first steps"
        if narrow
        else "the steps are too large or too many for one rollout",
        "--algorithm.clip 0.2"
        if narrow
        else f"--algorithm.learning-rate {h.highest('learning_rate') / 3:.1g}, or fewer "
        "--algorithm.epochs",
        h.since(lambda h: h["clip_fraction"] >= fraction),
    )


def critic_steps_too_large(h: History) -> Sign | None:
    explained, rate = h.known("explained_variance"), h.known("critic_learning_rate").max(initial=0)
    # Steps of Adam and RMSprop are as long as their rate. At 0.1, the size of a weight, units
    # saturate, and what is left takes few values: it explains something at times, never most.
    if len(explained) < 12 or h.progress < 0.25 or h.setting("algorithm.optimizer") == "sgd":
        return None
    best = np.sort(explained)[int(0.8 * len(explained))]
    spread = h.recent("value_target_std") / max(h.recent("value_target_rms"), 1e-30)
    if not (rate >= 0.1 and best <= 0.7 and spread > 0.02):
        return None
    return Sign(
        f"explained_variance at most {best:.2f} in 80% of the updates, with critic_learning_rate "
        f"{rate:g}",
        "each step moves the weights of the critic by as much as they are, so that it fits nothing",
        "--algorithm.critic-learning-rate 1e-3",
        int(h.updates[0]),
    )


def value_loss_exploding(h: History) -> Sign | None:
    size = h["value_target_rms"]
    error = np.sqrt(1 - np.minimum(h["explained_variance"], 1)) * h["value_target_std"]
    own = ("net.normalize_returns", "net.value_symlog", "net.value_bins")
    if not any(map(h.setting, own)) and h.setting("algorithm.value_loss") != "huber":
        error = np.fmax(error, np.sqrt(h["value_loss"]))  # which is in units of the reward
    off = error / np.where(size > 0, size, np.nan)
    known = off[np.isfinite(off)]
    late = middle(known[len(known) // 2 :])
    gamma = h.number("algorithm.gamma", 1.0)
    most = h.known("reward_max").max(initial=0) / (1 - gamma) if gamma < 1 else np.inf
    beyond = (
        not h.setting("algorithm.normalize_reward") and h.recent("value_target_rms") > 1.5 * most
    )
    if most == 0 or len(known) < 4 or not (late > 2.5 or beyond):
        return None
    apart = len(h.known("critic_learning_rate"))
    return Sign(
        f"the critic is off by {late:.3g} times the size of its targets, "
        f"{h.recent('value_target_rms'):.3g}"
        + (f", where no value can be above {most:.3g}" if beyond else "")
        + f"; value_loss {h.recent('value_loss'):.3g}",
        f"the learning rate{' of the critic' if apart else ''} is too large for these values",
        "--algorithm.critic-learning-rate 1e-3" if apart else "--algorithm.normalize-reward",
        h.since(lambda h: off > 2.5),
    )


def kl_under_target(h: History) -> Sign | None:
    kl, rates = h.median("approx_kl"), h.known("learning_rate")
    target = h.number("algorithm.target_kl") or h.number("algorithm.desired_kl")
    moving = len(rates) > 0 and rates[-1] > 0.2 * rates.max()
    random = h.recent("entropy") > 0.5 * h.first("entropy")
    if h.solved or not (h.long_enough and kl < 1e-6 and moving and random):
        return None
    return Sign(
        f"approx_kl {kl:.2g} (median); "
        + (f"the target is {target:g}" if target else "0.005 to 0.02 is usual"),
        "the learning rate is too small: the policy does not move",
        f"--algorithm.learning-rate {max(3e-4, 10 * rates.max()):.1g}",
        int(h.updates[0]),
    )


def no_rise_lasts(h: History) -> bool:
    """Stalled, but for what chance does: the best of many means is above the first, and passes."""
    scores = h.known(h.score)
    if h.stalled or not (h.long_enough and h.progress >= 0.25 and len(scores)) or h.solved:
        return h.stalled
    return bool(scores.max() - scores[0] <= 3 * h.least_gain and h.gain <= h.least_gain)


def clip_nil(h: History) -> Sign | None:
    fractions = h.known("clip_fraction")
    if not (no_rise_lasts(h) and len(fractions) >= 16) or fractions[1:].any():
        return None
    clip = h.first("clip")
    wide = clip >= 1
    return Sign(
        f"clip_fraction 0 in all updates, clip range {clip:g}",
        "the range is so wide that it holds nothing back" if wide else "the steps are very small",
        "--algorithm.clip 0.2" if wide else "a larger --algorithm.learning-rate",
        int(h.updates[0]),
    )


def critic_useless(h: History) -> Sign | None:
    explained = h.known("explained_variance")
    spread = h.recent("value_target_std") / max(h.recent("value_target_rms"), 1e-30)
    if len(explained) < 20 or h.progress < 0.25 or not h["episodes"][-1] >= 100:
        return None
    if h.recent("length_mean") < 10 or not spread > 0.02 or h.median("reward_max") == 0:
        return None
    best = np.sort(explained)[int(0.8 * len(explained))]
    constant = np.abs(explained[-len(explained) // 4 :]).max() < 1e-5
    weight, rate = h.number("algorithm.value_coef", 1.0), h.known("critic_learning_rate")
    # Where the state does not tell what is to come, no critic can know it: then the score may rise.
    if best <= 0.05 and weight < 0.01 and not len(rate):
        cause, remedy = f"value_coef {weight:g}: it hardly learns", "--algorithm.value-coef 0.5"
    elif (best <= 0.05 or constant) and len(rate) and not 1e-5 < rate.max() < 0.02:
        cause = f"critic_learning_rate {rate.max():g}: it does not learn"
        remedy = "--algorithm.critic-learning-rate 1e-3"
    elif constant or (best <= 0.05 and h.stalled):
        cause = "the critic says the same in all states, so advantages are noisy"
        remedy = "--algorithm.critic-learning-rate 1e-3, or --net.normalize-returns"
    else:
        return None
    return Sign(
        f"explained_variance at most {best:.2f} in 80% of the updates, {explained[-1]:.2g} at last",
        cause,
        remedy,
        int(h.updates[0]),
    )


def entropy_collapsed(h: History) -> Sign | None:
    first, now = h.first("entropy"), h.recent("entropy")
    if not h.stalled or np.isnan(first):
        return None
    gaussian = np.isfinite(h.median("action_saturation")) or first < 0
    per_number = 1.42 + h.number("net.log_std")
    numbers = max(1, round(first / per_number)) if per_number > 0.1 else 1
    fell = now < first - 3 * numbers if gaussian else 0 <= now < 0.03 * first
    if not fell:
        return None
    return Sign(
        f"entropy {now:.2g} nats ({h.span}), {first:.2g} after the first update",
        "the policy has settled on one action before it knew a good one",
        "--algorithm.entropy-coef 0.01 (or a smaller learning rate)",
        h.since(lambda h: h["entropy"] <= now),
    )


def advantages_flat(h: History) -> Sign | None:
    spread, rewards = h.recent("reward_std"), h.recent("reward_max")
    cut = h.known("truncated_fraction")
    endless = len(cut) >= 2 and (cut == 1).all()
    flat = h.known("advantage_std").max(initial=-1) <= 1e-6 * h.median("value_target_rms")
    flat = flat and len(h.known("advantage_std")) > 2
    same = endless and rewards > 0 and spread <= 1e-3 * rewards
    if not (flat or same) or not (h.long_enough and h.progress >= 0.1):
        return None
    clip = h.number("env.reward_clip", np.inf)
    clipped = rewards >= 0.99 * clip
    return Sign(
        f"advantage_std {h.recent('advantage_std'):.2g}, rewards of size {rewards:g} with standard "
        f"deviation {spread:.2g}",
        "every step pays the same"
        + (f", as all rewards are cut off at env.reward_clip {clip:g}" if clipped else "")
        + ": no action is better than another, and what is standardised is noise",
        "--env.reward-clip none --algorithm.normalize-reward"
        if clipped
        else "a reward that depends on what the policy does: `proximo check ENV`",
        h.since(lambda h: h["reward_max"] > 0),
    )


def evaluation_differs(h: History) -> Sign | None:
    if len(h.known("evaluation")) < 4 or not h.long_enough:
        return None
    sampled, greedy = h.recent("return_mean"), h.recent("evaluation")
    size = max(h.gain, 0.5 * abs(sampled), np.nan_to_num(2 * h.noise))
    if not greedy < sampled - 0.5 * size:
        return None
    return Sign(
        f"evaluation {greedy:.3g} with the most likely actions, return {sampled:.3g} with sampled "
        f"ones ({h.span})",
        "the policy relies on its noise: the distribution that acts is not the one evaluated",
        "`proximo eval RUN --stochastic`, a lower --algorithm.entropy-coef, or a recurrent policy "
        "where the state is hidden: --net.recurrent lstm",
        h.since(lambda h: np.isfinite(h["evaluation"])),
    )


def env_bottleneck(h: History) -> Sign | None:
    shares, times = np.sort(h.known("env_time_fraction")), np.sort(h.known("env_step_seconds"))
    count = h.number("env.num_envs", 1.0)
    if h.setting("env.backend") != "sync" or len(times) < 2 or count < 2:
        return None
    # The lower quarter: other work on the machine makes single readings long.
    share, each = shares[len(shares) // 4], times[len(times) // 4] / count
    if not (share > 0.8 and each > 1e-3):
        return None
    return Sign(
        f"{100 * share:.0f}% of the time is spent in the envs, {1000 * each:.2g} ms a step of one",
        "the envs are slow, and step one after the other",
        "--env.backend workers",
        h.since(lambda h: h["env_time_fraction"] > 0.8),
    )


def return_fell(h: History) -> Sign | None:
    returns = h.known(h.score)
    if len(returns) < 12 or h["episodes"][-1] < 50 or h.solved:
        return None
    top = returns.max()
    if not top - returns[-1] > 0.4 * (top - h.early(h.score)):  # spares what follows, mostly
        return None
    width = max(3, len(returns) // 10)
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(returns, width), axis=1)
    best, now = smooth.max(), smooth[-1]
    won = best - h.early(h.score)
    share = h["steps"] / h["steps"][-1] * h.progress  # of the whole run
    if share[-1] - share[h.peak(h.score)] < 0.15:  # it may come back
        return None
    if not (won > max(0.3 * abs(h.early(h.score)), 2 * h.noise) and best - now > 0.6 * won):
        return None
    return Sign(
        f"return {now:.4g}, best {best:.4g} (medians of tenths of the updates)",
        "the policy has lost what it had learned: steps that are too large late in the run, or an "
        "env that changed",
        f"--algorithm.learning-rate linear:{h.highest('learning_rate'):.1g}:0 (falling to 0), "
        "and go back to checkpoints/best",
        int(h.updates[h.peak(h.score)]),
    )


def published_budget(h: History) -> tuple[Preset, float] | None:
    """The preset of this env, and its result there."""
    env = str(h.setting("env.id", ""))
    for preset in presets_about(env) if env else ():
        found = re.search(rf"{re.escape(env)} (-?[\d.]+)", preset.result)
        if found and preset.algorithm == h.setting("algorithm.name") and not preset.by_name:
            return preset, float(found[1])
    return None


def too_few_steps(h: History) -> Sign | None:
    if h.progress < 0.95 or h.last < 2 or h.solved or not h["steps"][-1] >= 4096:
        return None
    found = published_budget(h)
    if not found:
        return None
    preset, result = found
    budget, total = preset.tables["run"]["total_steps"], h["steps"][-1]
    score = h.recent("return_mean")
    if total > 0.25 * budget or score > result - 0.2 * abs(result):
        return None
    told = "no episode has ended" if np.isnan(score) else f"return {score:.4g}"
    return Sign(
        f"{total:,.0f} steps, {told}; the preset needs {budget:,} for {result:g}",
        "the run is too short for this env",
        f"--total-steps {budget}",
        int(h.last),
    )


def return_stalled(h: History) -> Sign | None:
    if not no_rise_lasts(h) or h.progress < 0.5 or h["episodes"][-1] < 50 or h.last < 16:
        return None
    if np.ptp(h.known("return_mean")) == 0 and not np.any(h.known("truncated_fraction")):
        return None
    return Sign(
        f"return {h.recent('return_mean'):.4g} ({h.span}), {h.early('return_mean'):.4g} in the "
        "first tenth",
        "nothing is learned: see the findings before this one, if there are any",
        "`proximo check ENV`, then the preset of the env, or --algorithm.entropy-coef 0.01",
        int(h.updates[0]),
    )


CONTROL: tuple[Rule, ...] = (
    env_never_pays,
    reward_scale,
    observations_unscaled,
    time_limit_as_termination,
    all_end_by_time_limit,
    discount_too_short,
    entropy_low_from_start,
    kl_over_target,
    actions_saturated,
    learning_rate_spent,
    gradient_always_clipped,
    entropy_not_falling,
    clip_saturated,
    critic_steps_too_large,
    value_loss_exploding,
    kl_under_target,
    advantages_flat,
    evaluation_differs,
    critic_useless,
    clip_nil,
    env_bottleneck,
    entropy_collapsed,
    return_fell,
    too_few_steps,
    return_stalled,
)
"""The rules of control. A rule stands before those whose signs its cause brings about as well."""
EARLY = {
    reward_scale,
    discount_too_short,
    entropy_low_from_start,
    kl_over_target,
    advantages_flat,
    evaluation_differs,
    env_bottleneck,
    return_fell,
    too_few_steps,
}
"""Those that need no long run: the others wait until there is enough of it."""
