"""Steps per second of a checkout of CleanRL's ppo.py, run as it is at its default settings.

It is not on the package index. With Gymnasium 1 it does not see the ends of episodes and so logs
none of them, which saves it time: with the 0.29 that it asks for it is slower. It prints a line at
the end of every update; the time between those lines is what is measured, so that start-up and the
first tenth are left out as for all.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from settings import WORKS, Marks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=["cartpole"])
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    work = WORKS[chosen.work]
    script = chosen.checkout.resolve() / "cleanrl" / "ppo.py"
    command = [sys.executable, "-u", str(script), "--no-cuda"]
    command += ["--total-timesteps", str(work.whole_updates(chosen.steps))]
    threads = {"OMP_NUM_THREADS": str(chosen.threads)}
    marks = Marks()
    with (
        tempfile.TemporaryDirectory() as folder,  # it writes runs/ where it stands
        subprocess.Popen(
            command, cwd=folder, env=os.environ | threads, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        for line in child.stdout:
            if line.startswith("SPS:"):
                marks.add((len(marks.marks) + 1) * work.samples)
    if child.returncode:
        raise SystemExit(child.returncode)
    marks.report()


if __name__ == "__main__":
    main()
