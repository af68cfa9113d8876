"""Draw the figures of docs/lineage.md into this folder, and print the numbers that it quotes.

    python docs/figures.py

It takes well under a minute. Every figure is made of Proximo's own functions; bound.png is a real
update on Hopper-v5, so it needs the extras `pictures` and `mujoco`. The same seeds give the same
numbers on the same processor and versions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from proximo import PPO, EnvConfig, RolloutConfig, RunConfig
from proximo.collect import collect
from proximo.commands.pictures import COLORS
from proximo.functional.kl import kl_divergence
from proximo.functional.losses import clipped_surrogate, surrogate
from proximo.loop import learn
from proximo.run.config import Config
from proximo.run.control import make_session

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, PURPLE, GREY, _ = COLORS
WHOLE: dict[str, Any] = {"color": ORANGE, "linestyle": "--", "linewidth": 1.8}
PART: dict[str, Any] = {"color": GREEN, "linestyle": ":", "linewidth": 2.2}
LEAST: dict[str, Any] = {"color": BLUE, "linewidth": 4.5, "alpha": 0.75, "zorder": 1.9}
"""How r A, clip(r) A and their minimum are drawn."""
CLIP = 0.2
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def panels(height: float, **options: Any) -> tuple[Any, Any]:
    """A figure of a page's width with two axes side by side."""
    return plt.subplots(1, 2, figsize=(9, height), layout="constrained", **options)


def save(figure: Any, name: str) -> None:
    figure.savefig(HERE / name)
    plt.close(figure)


def draw_clip() -> None:
    """The objective of one sample over its ratio, and where its gradient is zero."""
    figure, both = panels(4.4)
    for axes, sign in zip(both, (1.0, -1.0), strict=True):
        log_ratio = torch.linspace(0.4, 1.6, 1201).log().requires_grad_()
        ratio = log_ratio.detach().exp()
        old, advantage = torch.zeros_like(ratio), torch.full_like(ratio, sign)
        whole = surrogate(log_ratio.detach(), old, advantage)
        least = clipped_surrogate(log_ratio, old, advantage, CLIP)
        (slope,) = torch.autograd.grad(least.sum(), log_ratio)
        axes.plot(ratio, whole, **WHOLE, label="r A")
        part = ratio.clamp(1 - CLIP, 1 + CLIP) * sign
        axes.plot(ratio, part, **PART, label="clip(r, 0.8, 1.2) A")
        axes.plot(ratio, least.detach(), **LEAST, label="their minimum")
        flat = ratio[slope == 0]
        axes.axvspan(flat.min(), flat.max(), color=GREY, alpha=0.13, linewidth=0)
        axes.text(
            float(flat.min() + flat.max()) / 2,
            0.97,
            "gradient\nis zero",
            color=GREY,
            horizontalalignment="center",
            verticalalignment="top",
            transform=axes.get_xaxis_transform(),
        )
        for edge in (1 - CLIP, 1 + CLIP):
            axes.axvline(edge, color=GREY, linewidth=0.9)
        axes.plot(1, sign, "o", color=GREY, zorder=5)
        axes.set_xticks([0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6])
        axes.set_xlim(0.4, 1.6)
        axes.set_ylim(*((0.3, 1.9) if sign > 0 else (-1.7, -0.1)))
        axes.set_xlabel("ratio r = π(a|s) / π_old(a|s)")
        axes.set_title("A = 1: the action was better" if sign > 0 else "A = −1: it was worse")
    both[0].set_ylabel("objective of the sample")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, "clip.png")


def along_an_update(updates: int, seed: int) -> dict[str, np.ndarray]:
    """Train for so many updates on Hopper-v5, then one more, and walk the line that it moved on.

    Returns, over x in [0, 2] with θ = θ_old + x (θ_new - θ_old), the means over the batch.
    """
    # Advantages are standardised once, so that the line shows what the update itself maximised.
    algorithm = PPO(clip=CLIP, normalize_advantage="batch")
    config = Config(
        algorithm=algorithm,
        rollout=RolloutConfig(steps=2048),
        env=EnvConfig(id="Hopper-v5", num_envs=1),
        run=RunConfig(seed=seed, total_steps=1_000_000),
    )
    with make_session(config) as session:
        state, policy = session.state, session.state.policy
        if updates:
            ends = [lambda state, rollout, metrics: state.updates == updates]
            learn(session.task, state, session.run, ends)
        rollout = collect(session.task.envs, state, config.env, steps=config.rollout.steps)
        batch = algorithm.prepare(state, rollout)
        theta = state.optimizer.flats[0].data
        before = theta.clone()
        algorithm.update(state, batch)
        step = theta - before
        old = policy.head.restore(batch.parameters)
        places = np.linspace(0, 2, 101)
        rows = []
        for x in places:
            theta.copy_(before + x * step)
            with torch.no_grad():
                new = policy.evaluate(batch.obs, batch.action, entropy=False)
            pair, advantage = (new.log_prob, batch.log_prob), batch.advantage
            ratio = (new.log_prob - batch.log_prob).exp()
            part = ratio.clamp(1 - CLIP, 1 + CLIP)
            readings = (
                surrogate(*pair, advantage).mean(),
                (part * advantage).mean(),
                clipped_surrogate(*pair, advantage, CLIP).mean(),
                kl_divergence(old, new.distribution).mean(),
                (part != ratio).double().mean(),
                ratio.max(),
            )
            rows.append([float(reading) for reading in readings])
    names = ("whole", "clipped", "bound", "kl", "outside", "largest")
    return {"x": places, **dict(zip(names, np.array(rows).T, strict=True))}


def draw_bound(seed: int = 1) -> None:
    """The paper's figure 2 from updates of our own: the first one, and one after 100,000 steps."""
    curves = (
        ("whole", "mean of r A", WHOLE),
        ("clipped", "mean of clip(r, 0.8, 1.2) A", PART),
        ("bound", "mean of their minimum", LEAST),
        ("kl", "mean KL(old, new) in nats", {"color": PURPLE, "linewidth": 2}),
    )
    figure, both = panels(4.7, sharey=True)
    titles = ("the first update", "the update after 100,352 steps")
    for axes, updates, title in zip(both, (0, 49), titles, strict=True):
        line = along_an_update(updates, seed)
        for key, label, style in curves:
            axes.plot(line["x"], line[key], **style, label=label)
        top, end = int(line["bound"].argmax()), int(np.abs(line["x"] - 1).argmin())
        print(f"bound.png, {title}, seed {seed}:")
        for name, i in (("new policy", end), ("peak of the bound", top), ("twice as far", -1)):
            values = ", ".join(f"{key} {line[key][i]:.4f}" for key in line if key != "x")
            print(f"  {name}: x {line['x'][i]:.3f}, {values}")
        axes.axvline(1, color=GREY, linewidth=0.9)
        axes.plot(1, line["kl"][end], "o", color=PURPLE)
        axes.plot(line["x"][top], line["bound"][top], "v", color=BLUE, markersize=9)
        axes.text(1.05, 0.002, f"KL {line['kl'][end]:.4f} at x = 1", color=PURPLE)
        axes.annotate(
            f"highest at x = {line['x'][top]:.2f},\nKL {line['kl'][top]:.4f} there",
            (line["x"][top], line["bound"][top]),
            xytext=(0.93, 0.052),
            horizontalalignment="right",
            color=BLUE,
            arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.9, "shrinkB": 5},
        )
        axes.set_title(f"Hopper-v5, {title}")
        axes.set_xlabel("x: 0 the old policy, 1 the new one")
        axes.set_xlim(0, 2)
        axes.set_xticks([0, 0.5, 1, 1.5, 2])
    both[0].set_ylabel("mean over the 2,048 samples")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, "bound.png")
    others = [along_an_update(0, other) for other in range(1, 11)]
    print("  the first update, seeds 1 to 10:")
    for key in ("x", "kl"):
        at_peak = np.array([line[key][line["bound"].argmax()] for line in others])
        print(f"  {key} at the peak of the bound: {spread(at_peak)}")
    print(f"  kl at x = 1: {spread(np.array([line['kl'][50] for line in others]))}")


def spread(values: np.ndarray) -> str:
    return f"{values.min():.4f} to {values.max():.4f}, mean {values.mean():.4f}"


def draw_sampling(samples: int = 100, repeats: int = 20_000) -> None:
    """E_p[f] estimated from q: p = N(-1, 1), f = -1 left of 0 and +1 right of it, q = N(-1 + m, 1).

    Var_q[f p/q] = E_p[f² p/q] - E_p[f]² = exp(m²) - E_p[f]², with m² = 2 KL(p, q).
    """
    rng = np.random.default_rng(1)
    truth = -math.erf(1 / math.sqrt(2))
    shifts = np.linspace(0, 3, 31)
    rows = []
    print(f"sampling.png: E_p[f] = {truth:.4f}, {repeats:,} estimates from {samples} samples each")
    for m in shifts:
        x = rng.normal(m - 1, 1, (repeats, samples))
        weight = np.exp(m * m / 2 - m * (x + 1))  # p(x) / q(x)
        estimates = (np.sign(x) * weight).mean(1)
        mean, wrong = estimates.mean(), (estimates > 0).mean()
        rows.append((mean, *np.quantile(estimates, [0.05, 0.5, 0.95])))
        if len(rows) % 5 == 1:
            by_law = math.sqrt((math.exp(m * m) - truth**2) / samples)
            print(
                f"  m {m:.1f}: KL {m * m / 2:.3f}, mean {mean:.3f}, deviation "
                f"{estimates.std():.3f} (by the formula {by_law:.3f}), median {rows[-1][2]:.3f}, "
                f"wrong sign {100 * wrong:.1f}%"
            )
    figure, (left, right) = panels(4)
    x = np.linspace(-4.5, 4.5, 901)
    for centre, name, color in ((-1, "p = N(−1, 1)", BLUE), (1, "q = N(1, 1), m = 2", ORANGE)):
        density = np.exp(-((x - centre) ** 2) / 2) / math.sqrt(2 * math.pi)
        left.plot(x, density, color=color, linewidth=2, label=name)
        left.fill_between(x, density, color=color, alpha=0.12, linewidth=0)
    left.axvline(0, color=GREY, linewidth=0.9)
    for place, text in ((-2.9, "f = −1"), (2.9, "f = +1")):
        left.text(place, 0.43, text, horizontalalignment="center", color=GREY, fontsize=11)
    left.set(ylim=(0, 0.56), xlim=(-4.5, 4.5), xlabel="x", ylabel="density")
    left.set_title("asked about p, sampled from q")
    left.legend(loc="upper center", ncols=2)
    mean, low, middle, high = np.array(rows).T
    right.fill_between(shifts, low, high, color=ORANGE, alpha=0.2, linewidth=0)
    right.plot(shifts, mean, color=BLUE, linewidth=1.6, label="mean of all estimates")
    right.plot(shifts, middle, color=ORANGE, linewidth=2.4, label="median")
    right.plot([], [], color=ORANGE, alpha=0.3, linewidth=8, label="nine of ten")
    right.axhline(truth, color="black", linestyle="--", linewidth=1, label="truth")
    right.set(xlim=(0, 3), ylim=(-3.2, 1.3), xlabel="m: how far q has moved from p")
    right.set_ylabel(f"estimate of E_p[f], {samples} samples")
    right.set_title("unbiased, and ever more scattered")
    right.legend(loc="lower left", fontsize=9)
    save(figure, "sampling.png")


def main() -> None:
    plt.switch_backend("Agg")
    with plt.rc_context(STYLE):
        draw_clip()
        draw_sampling()
        draw_bound()


if __name__ == "__main__":
    main()
