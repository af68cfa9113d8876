"""Seconds from nothing to a saved CartPole-v1 policy of 475 or more, in a process of its own.

Times the whole training process, imports and compilation counted, until it has ended. The policy it
saved is then scored over 100 deterministic episodes, which is not timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from settings import pin, report

HERE = Path(__file__).parent


def commands(library: str, folder: str, seed: int) -> tuple[list[str], list[str]]:
    """How a library trains and saves, and how it scores what it saved."""
    if library == "ours":
        words = ["train", "ppo", "CartPole-v1", "--stop-at", "475", "--seed"]
        return (
            ["-m", "proximo", *words, str(seed), "--run-dir", f"{folder}/run"],
            ["-m", "proximo", "eval", f"{folder}/run", "--json"],
        )
    script = str(HERE / f"cold_{library}.py")
    return [script, "train", folder, str(seed)], [script, "score", folder, str(seed)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=["ours", "sb3", "rejax"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as the library chooses")
    chosen = parser.parse_args()
    threads = {}
    if chosen.threads:
        pin(chosen.threads)  # inherited by what is started
        threads = {"OMP_NUM_THREADS": str(chosen.threads)}
    with tempfile.TemporaryDirectory() as folder:
        training, scoring = commands(chosen.library, folder, chosen.seed)
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, *training],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | threads,
        )
        seconds = time.perf_counter() - begin
        done = subprocess.run(
            [sys.executable, *scoring], check=True, text=True, stdout=subprocess.PIPE
        )
        scores = json.loads(done.stdout.splitlines()[-1])
    report(seconds=seconds, score=scores["return_mean"], seed=chosen.seed)


if __name__ == "__main__":
    main()
