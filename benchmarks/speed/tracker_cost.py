"""CPU time that each tracker takes of a CartPole run on the native engine, for docs/trackers.md.

A row is one update's readings as the tracker's thread writes them; an update costs the training
thread some microseconds besides. Share: of the process's CPU time, without start and end.

python benchmarks/speed/tracker_cost.py tensorboard wandb [--steps 1000000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(name, steps, num_envs, rollout):
    """Train once, in this process; prints what was measured, as JSON."""
    import proximo
    from proximo.run import tracker

    found, work, put = {}, tracker.Feed._work, tracker.Feed.put

    def timed_work(feed):
        begin = time.thread_time()
        try:
            work(feed)
        finally:
            found["thread"] = time.thread_time() - begin
            found["row_ms"] = 1000 * (feed._spent - feed._tracker.price) / max(1, feed._written - 1)
            found["rows"], found["writes"] = feed._written - 1, feed._spent - feed._tracker.price
            found["fault"] = feed._fault

    def timed_put(feed, row):
        begin = time.thread_time()
        put(feed, row)
        found["put"] = found.get("put", 0.0) + time.thread_time() - begin

    tracker.Feed._work, tracker.Feed.put = timed_work, timed_put
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        agent = proximo.train(
            "CartPole-v1",
            proximo.PPO(),
            total_steps=steps,
            num_envs=num_envs,
            seed=1,
            rollout=proximo.RolloutConfig(steps=rollout),
            run_config=proximo.RunConfig(log=(name,) if name else ()),
            run_dir=Path(folder) / "run",
        )
        found["process"] = time.process_time() - begin
    found["updates"] = agent.result["updates"]
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trackers", nargs="*")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--rollout", type=int, default=128)
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.one:
        return measure(*given.trackers, given.steps, given.num_envs, given.rollout)
    print("tracker     rows of updates  ms a row  us an update  share %  start and end s")
    for name in given.trackers:
        words = [sys.executable, __file__, "--one", name, "--steps", str(given.steps)]
        words += ["--num-envs", str(given.num_envs), "--rollout", str(given.rollout)]
        done = subprocess.run(words, capture_output=True, text=True)
        x = json.loads(done.stdout.splitlines()[-1])
        if x["fault"]:
            sys.exit(f"{name}: {x['fault']}")
        share = 100 * (x["writes"] + x["put"]) / x["process"]
        edges = x["thread"] - x["writes"]
        print(
            f"{name:12}{x['rows']:>7} of {x['updates']:<6}{x['row_ms']:>8.3f}"
            f"{1e6 * x['put'] / x['updates']:>14.1f}{share:>9.2f}{edges:>17.2f}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
