"""Steps per second beside Stable-Baselines3, with the same settings, alternating in one run.

    python benchmarks/speed.py [--rounds 5] [--steps 102400]

CartPole-v1, 4 worlds x 128 steps, 4 epochs x 4 minibatches of 128, separate 64-64 tanh networks.
Each measurement is a process of its own; the first tenth of its steps is not timed. Each library
runs with one and with two threads, and its better median counts. Ours keeps its run folder, metrics
and checkpoints as always. The peer gets an environment of its own, .venv-peers.

Writes benchmarks/results/speed.json and speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import venv
from pathlib import Path

from scores import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PEERS = ROOT / ".venv-peers"

OURS = """
import sys, time, tempfile, torch
from pathlib import Path
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, train
steps, threads, engine = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
marks = []
def mark(state, rollout, metrics):
    marks.append((state.steps, time.perf_counter()))
with tempfile.TemporaryDirectory() as folder:
    agent = train(
        EnvConfig(id="CartPole-v1", worlds=4),
        PPO(epochs=4, minibatch_size=128),
        rollout=RolloutConfig(steps=128),
        run_config=RunConfig(total_steps=steps, threads=threads, engine=engine, seed=1),
        run_dir=Path(folder) / "run",
        callbacks=[mark],
    )
first = marks[len(marks) // 10]
print((marks[-1][0] - first[0]) / (marks[-1][1] - first[1]))
"""

PEER = """
import sys, time, torch
steps, threads = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
env = make_vec_env("CartPole-v1", n_envs=4, seed=1)
model = PPO("MlpPolicy", env, n_steps=128, batch_size=128, n_epochs=4, device="cpu", seed=1)
model.learn(steps // 10)
begin = time.perf_counter()
model.learn(steps - steps // 10, reset_num_timesteps=False)
print(model.num_timesteps * 0.9 / (time.perf_counter() - begin))
"""


def peer_python():
    python = PEERS / "bin" / "python"
    if not python.exists():
        print("installing stable-baselines3 into .venv-peers", flush=True)
        venv.create(PEERS, with_pip=True)
        lock = (ROOT / "requirements.lock").read_text().splitlines()
        pinned = [line for line in lock if line.startswith(("torch==", "numpy==", "gymnasium=="))]
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *pinned, "stable-baselines3"], check=True
        )
    return str(python)


def measure(python, code, *words):
    done = subprocess.run(
        [python, "-c", code, *map(str, words)], check=True, text=True, stdout=subprocess.PIPE
    )
    return float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=102_400)
    chosen = parser.parse_args()
    peer = peer_python()
    commands = {
        ("proximo", threads): (sys.executable, OURS, chosen.steps, threads, "auto")
        for threads in (1, 2)
    }
    commands |= {
        ("stable-baselines3", threads): (peer, PEER, chosen.steps, threads) for threads in (1, 2)
    }
    commands["proximo, engine torch", 1] = (sys.executable, OURS, chosen.steps, 1, "torch")
    found = {key: [] for key in commands}
    for number in range(chosen.rounds):
        for key, command in commands.items():
            found[key].append(measure(*command))
            print(
                f"round {number + 1}: {key[0]}, {key[1]} threads: {found[key][-1]:,.0f}", flush=True
            )
    best = {}
    for (name, threads), values in found.items():
        median = statistics.median(values)
        if name not in best or median > best[name][0]:
            best[name] = (median, threads, values)
    base = best["stable-baselines3"][0]
    lines = [
        "| CartPole-v1, 4 x 128 steps, 4 epochs x 4 minibatches | steps/s, median "
        f"of {chosen.rounds} | lowest to highest | threads | ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {median:,.0f} | {min(values):,.0f} to {max(values):,.0f} | {threads} "
            f"| {median / base:.2f} |"
            for name, (median, threads, values) in best.items()
        ),
        "",
        f"{machine()}; the runs alternate; each library at the better of one and two threads.",
    ]
    RESULTS.mkdir(exist_ok=True)
    versions = subprocess.run(
        [peer, "-m", "pip", "list", "--format", "json"],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    peers = {p["name"]: p["version"] for p in json.loads(versions.stdout)}
    from proximo.run.folder import versions as own_versions

    record = {
        "steps_per_second": {f"{name}, {t} threads": v for (name, t), v in found.items()},
        "peer": {name: peers.get(name) for name in ("stable_baselines3", "torch", "gymnasium")},
        "ours": own_versions(),
        "cpu": machine(),
    }
    (RESULTS / "speed.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / "speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
