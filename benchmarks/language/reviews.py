"""Reviews of three remarks: fine-tuning, a reward model, PPO, and the score against the KL.

    python benchmarks/language/reviews.py [--seeds 3] [--betas 0 0.02 0.05 0.1 0.5]
    python benchmarks/language/reviews.py --data FOLDER

Everything is made here: sentences whose hidden worth is known, pairs of them of which the worthier
is preferred, and a tiny GPT-2. The reward model sees the pairs only; the hidden worth is measured.
Writes benchmarks/results/language.jsonl and docs/language.png, and prints the table of
docs/language.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import time
from pathlib import Path

import torch

from proximo.language import (
    TOKENS,
    Fitting,
    KLConfig,
    ModelConfig,
    Sampling,
    ScoreConfig,
    TrainingConfig,
    fit_reward,
    ppo,
    sft,
)

RESULTS = Path(__file__).parents[1] / "results" / "language.jsonl"
WORTH = {"wonderful": 2, "good": 1, "kind": 1, "plain": 0, "long": 0, "dull": -1, "awful": -2}
THINGS = ("film", "room", "meal", "host", "music")
DAYS = ("monday", "tuesday", "friday", "sunday")
MODEL = ModelConfig(symbols="words", layers=2, width=64, heads=4, context=64)
SAMPLING = Sampling(max_tokens=40)


def review(draw: random.Random) -> str:
    """Three remarks."""
    remarks = [f"the {draw.choice(THINGS)} was {draw.choice(list(WORTH))}" for _ in range(3)]
    return f" {' , '.join(remarks)} ."


def worth(text: str) -> int:
    """The hidden score."""
    return sum(WORTH.get(word, 0) for word in text.split())


def examples(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]], list[str]]:
    """Texts, pairs and prompts."""
    draw = random.Random(seed)
    prompts = [f"on {day} :" for day in DAYS]
    texts = [{"prompt": draw.choice(prompts), "completion": review(draw)} for _ in range(3000)]
    pairs = []
    while len(pairs) < 2000:
        low, high = sorted((review(draw), review(draw)), key=worth)
        if worth(low) < worth(high):
            pairs.append({"prompt": draw.choice(prompts), "chosen": high, "rejected": low})
    return texts, pairs, prompts


def run(seed: int, betas: list[float]) -> list[dict[str, object]]:
    """One seed: both models, then PPO at each beta."""
    texts, pairs, prompts = examples(seed)
    begin = time.perf_counter()
    rate = Fitting(learning_rate=1e-3, held_out=0.1)
    base = sft(MODEL, texts, updates=400, seed=seed, algorithm=rate)
    judge = fit_reward(base, pairs, updates=200, seed=seed, algorithm=rate)
    fitted = time.perf_counter() - begin
    asked = prompts * 100
    before = base.generate(asked, SAMPLING, seed=seed)
    scores = [worth(text) for text in before]
    spread = statistics.stdev(scores)
    rows = []
    for beta in betas:
        begin = time.perf_counter()
        tuned = ppo(
            base,
            prompts,
            judge,
            updates=50,
            seed=seed,
            algorithm=dataclasses.replace(TOKENS, learning_rate=2e-4, minibatch_size=32),
            sampling=SAMPLING,
            kl=KLConfig(coef=beta),
            score=ScoreConfig(missing_eos_penalty=1.0),
            run=TrainingConfig(sequences=128, micro_batch=128),
        )
        after = tuned.generate(asked, seed=seed)
        rows.append(
            {
                "seed": seed,
                "beta": beta,
                "held_out_accuracy": judge.final["held_out_accuracy"],
                "before": statistics.mean(scores),
                "spread": spread,
                "after": statistics.mean(map(worth, after)),
                "kl": statistics.mean(row["kl"] for row in tuned.rows[-5:]),
                "reward": statistics.mean(row["score"] for row in tuned.rows[-5:]),
                "length": statistics.mean(row["length"] for row in tuned.rows[-5:]),
                "distinct": len(set(after)) / len(after),
                "seconds_fitting": round(fitted, 1),
                "seconds_ppo": round(time.perf_counter() - begin, 1),
                "samples": [before[0], after[0]],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def draw(rows: list[dict[str, object]]) -> None:
    """docs/language.png: hidden score against KL, a point per run."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    kls, scores = ([float(row[name]) for row in rows] for name in ("kl", "after"))  # type: ignore[arg-type]
    axes.plot(kls, scores, "o-", color="#3465a4")
    for row, kl, score in zip(rows, kls, scores, strict=True):
        axes.annotate(
            f"β {row['beta']:g}", (kl, score), (-7, 5), textcoords="offset points", ha="right"
        )
    begin = float(rows[0]["before"])  # type: ignore[arg-type]
    axes.axhline(begin, color="grey", linestyle="--", linewidth=1)
    axes.annotate("before PPO", (0.5, begin), (0, 4), textcoords="offset points", color="grey")
    axes.set(xscale="log", xlabel="KL to the reference, nats per review", ylabel="hidden score")
    axes.margins(0.1, 0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS.parents[2] / "docs" / "language.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1, 0.5])
    parser.add_argument("--data", type=Path, help="only write the data, to this folder")
    given = parser.parse_args()
    if given.data:
        given.data.mkdir(parents=True, exist_ok=True)
        texts, pairs, prompts = examples(1)
        asked = [{"prompt": prompt} for prompt in prompts]
        for name, lines in (("texts", texts), ("pairs", pairs), ("prompts", asked)):
            file = given.data / f"{name}.jsonl"
            file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return
    torch.set_num_threads(1)
    rows = [row for seed in range(1, given.seeds + 1) for row in run(seed, given.betas)]
    RESULTS.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    draw([row for row in rows if row["seed"] == 1])
    print("| beta | KL, nats per review | hidden score | in deviations | tokens | distinct |")
    print("|---|---|---|---|---|---|")
    for beta in given.betas:
        own = [row for row in rows if row["beta"] == beta]

        def mean(name: str, own: list[dict[str, object]] = own) -> float:
            return statistics.mean(float(row[name]) for row in own)  # type: ignore[arg-type]

        gain = (mean("after") - mean("before")) / mean("spread")
        print(
            f"| {beta:g} | {mean('kl'):.2f} | {mean('after'):.2f} | +{gain:.1f} "
            f"| {mean('length'):.0f} | {mean('distinct'):.2f} |"
        )


if __name__ == "__main__":
    main()
