"""CPU time that each tracker takes of a CartPole run on the native engine, for docs/trackers.md.

python benchmarks/speed/tracker_cost.py tensorboard wandb [--steps 1000000]
"""

import argparse
import json
import resource
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
            found["row_ms"] = 1000 * feed._spent / max(1, feed._written)
            found["rows"], found["writes"] = feed._written, feed._spent
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
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["children"] = children.ru_utime + children.ru_stime
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
    print("tracker     rows/updates  ms a row  writes+queue %  start+end s  process s  fault")
    for name in given.trackers:
        words = [sys.executable, __file__, "--one", name, "--steps", str(given.steps)]
        words += ["--num-envs", str(given.num_envs), "--rollout", str(given.rollout)]
        done = subprocess.run(words, capture_output=True, text=True)
        x = json.loads(done.stdout.splitlines()[-1])
        share = 100 * (x["writes"] + x["put"]) / x["process"]
        print(
            f"{name:12}{x['rows']:>6}/{x['updates']:<7}{x['row_ms']:>8.2f}{share:>15.2f}"
            f"{x['thread'] - x['writes']:>13.2f}{x['process']:>11.1f}  {x['fault']}"
            f"  put us {1e6 * x['put'] / x['updates']:.1f}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
