"""Proximo's PPO beside that of TRL 0.11.4: the same fine-tuned model, task, settings and updates.

    python benchmarks/language/beside_trl.py [--seeds 5] [--models FOLDER]

The task is randomwalks (see randomwalks.py). For every seed one model is fine-tuned, and both
libraries go on from its weights: 20 updates of 140 completions, 4 epochs of 2 minibatches, with the
same learning rate, clipping and KL penalty. Neither limits the gradient's norm: what TRL 0.11.4 has
for it works in the first step only. Neither clips values, which would tie the critic to the value
that it begins with, 0 here and random there. The score of an update is that of the completions that
it draws to train on. Each run is a process of its own, the two in turn, with one thread and with
two; the time is that of the updates, without start-up. Nothing else should run meanwhile.

Writes results/trl.jsonl (every run) and trl.md. TRL has an environment of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
sys.path += [str(HERE.parent), str(HERE.parent / "speed")]
from bench import ROOT, commit, install, python  # noqa: E402 beside the folder of this script

from scores import machine  # noqa: E402

SETTINGS = {
    "updates": 20,
    "sequences": 140,
    "minibatch": 70,
    "epochs": 4,
    "learning_rate": 3e-4,
    "value_coef": 0.1,
    "beta": 0.01,
}
LIBRARIES = ("proximo", "trl")
LAST = 5
"""Updates at the end whose scores are averaged."""


def fine_tune(seed: int, models: str) -> None:
    import torch
    from randomwalks import fine_tuned

    torch.set_num_threads(1)
    fine_tuned(seed, Path(models))


def ours(folder: str, settings: str) -> None:
    """One run of Proximo: a JSON line an update."""
    import torch
    from graph import STARTS, Graph
    from randomwalks import SAMPLING

    from proximo import Schedule
    from proximo.language import TOKEN_PPO, KLConfig, TrainingConfig, ppo

    s = json.loads(settings)
    torch.set_num_threads(s["threads"])
    algorithm = dataclasses.replace(
        TOKEN_PPO,
        learning_rate=Schedule("linear", s["learning_rate"], 0.0),
        minibatch_size=s["minibatch"],
        epochs=s["epochs"],
        value_loss="mse",
        value_coef=s["value_coef"] / 2,  # TRL's value loss is half the squared error
        adam_betas=(0.9, 0.95),
        optimizer_eps=1e-8,
        max_grad_norm=None,
    )
    run = TrainingConfig(sequences=s["sequences"], micro_batch=s["sequences"], log_every=1)
    kl = KLConfig(coef=s["beta"])
    result = ppo(
        folder,
        STARTS,
        Graph().optimality,
        updates=s["updates"],
        seed=s["seed"],
        algorithm=algorithm,
        sampling=SAMPLING,
        kl=kl,
        run=run,
    )
    for row in result.rows:
        print(json.dumps({name: row[name] for name in ("update", "score", "kl", "seconds")}))


def measure(library: str, folder: Path, settings: dict[str, float]) -> dict[str, object]:
    words = json.dumps(settings)
    if library == "trl":
        command = [str(python("trl")), str(HERE / "trl_peer.py"), str(folder), words]
    else:
        code = f"from beside_trl import ours; ours({str(folder)!r}, {words!r})"
        command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=HERE, stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        "library": library,
        **settings,
        "scores": [round(row["score"], 4) for row in rows],
        "kl": rows[-1]["kl"],
        "seconds": rows[-1]["seconds"],
    }


def summary(rows: list[dict[str, object]]) -> list[str]:
    """The table: scores over the seeds, and each library's time at its better number of threads."""
    marks = (1, 5, 10, 15, 20)
    lines = [
        f"| | {' | '.join(f'update {mark}' for mark in marks)} | last {LAST} | all | seconds |",
        "|---|" + "---|" * (len(marks) + 3),
    ]
    seconds = {}
    for library in LIBRARIES:
        own = [row for row in rows if row["library"] == library]
        runs = [row["scores"] for row in own]
        means = [statistics.fmean(scores[mark - 1] for scores in runs) for mark in marks]
        found = [
            *(f"{mean:.3f}" for mean in means),
            _mean([statistics.fmean(scores[-LAST:]) for scores in runs]),
            _mean([statistics.fmean(scores) for scores in runs]),
        ]
        by_threads = {
            threads: statistics.median(row["seconds"] for row in own if row["threads"] == threads)
            for threads in (1, 2)
        }
        seconds[library] = min(by_threads.values())
        best = min(by_threads, key=by_threads.__getitem__)
        name = {"proximo": "Proximo", "trl": "TRL 0.11.4"}[library]
        lines.append(f"| {name} | {' | '.join(found)} | {seconds[library]:.1f} ({best} threads) |")
    seeds = len({row["seed"] for row in rows})
    lines += [
        "",
        f"randomwalks, mean score of the completions of an update, {seeds} seeds with one thread "
        "and with two, standard errors behind; seconds of 20 updates, median: TRL "
        f"takes {seconds['trl'] / seconds['proximo']:.2f} times as long.",
        f"Commit {commit(ROOT)}; {machine()}.",
    ]
    return lines


def _mean(numbers: list[float]) -> str:
    error = statistics.stdev(numbers) / len(numbers) ** 0.5
    return f"{statistics.fmean(numbers):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="fine-tuned models that are there already")
    given = parser.parse_args()
    install("trl")
    rows = []
    with tempfile.TemporaryDirectory(prefix="proximo-trl-") as home:
        models = (given.models or Path(home)).resolve()
        for seed in range(1, given.seeds + 1):
            folder = models / str(seed)
            code = f"from beside_trl import fine_tune; fine_tune({seed}, {str(models)!r})"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)
            for threads in (1, 2):
                for library in LIBRARIES:
                    settings = {**SETTINGS, "seed": seed, "threads": threads}
                    rows.append(measure(library, folder, settings))
                    print(json.dumps(rows[-1]), flush=True)
    RESULTS.joinpath("trl.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = summary(rows)
    RESULTS.joinpath("trl.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
