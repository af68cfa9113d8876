"""Whether a timed setting of ours also learns: train with it, score 100 deterministic episodes."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ours import learn
from settings import WORKS, report


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    work = WORKS[chosen.work]
    total = work.whole_updates(chosen.steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        learn(work, total, run, threads=chosen.threads, seed=chosen.seed)
        command = [sys.executable, "-m", "proximo", "eval", str(run), "--json"]
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    report(score=json.loads(done.stdout)["return_mean"], steps=total, seed=chosen.seed)


if __name__ == "__main__":
    main()
