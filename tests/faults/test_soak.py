"""Trouble of every kind, one after the other, while CartPole is learned through the command line.

The envs raise, hang, answer nonsense, leave and crash; their processes are killed and stopped;
the trainer is told to save, to end, and killed, and its last checkpoint is cut off.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands.command_line import proximo, result, rows, succeeded
from proximo import PPO, RolloutConfig, RunConfig, train

ENV = '''
import ctypes
import os
import time

import gymnasium as gym


class CartPole(gym.Wrapper):
    """CartPole-v1, but whoever finds the file `order` first does once what it says.

    While the file `slowly` is there a step takes a millisecond: so the run lasts long enough.
    """

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))

    def step(self, action):
        if os.path.exists("slowly"):
            time.sleep(0.001)
        how = ""
        if os.path.exists("order"):
            taken = f"order {os.getpid()}"
            try:
                os.rename("order", taken)
            except FileNotFoundError:  # another was first
                return super().step(action)
            with open(taken) as file:
                how = file.read()
            os.remove(taken)
        if how == "raise":
            raise RuntimeError("the motor is stuck")
        if how == "hang":
            time.sleep(1000)
        if how == "exit":
            os._exit(7)
        if how == "crash":
            ctypes.string_at(0)
        obs, reward, *ends = super().step(action)
        if how == "nan":
            reward = float("nan")
        if how == "inf":
            obs[1] = float("inf")
        return obs, reward, *ends
'''
PACE = 2000
"""Steps in a second, at most: two processes that sleep a millisecond in each."""
TIMEOUT = 1.0
"""Of a step, in seconds."""
GONE = 2.0
"""Seconds in which no process may be left of a trainer that has died."""
GROWTH = 20
"""MiB, of a trainer that has warmed up, and between one and the next."""
RESULT = Path(__file__).parents[2] / "benchmarks/results/soak.json"
IN_ENVS = {
    "raise": "the motor is stuck",
    "hang": "no answer in 1 s",
    "exit": "exit code 7",
    "crash": "signal 11",
    "nan": "the reward nan",
    "inf": "the observation[1] = inf",
}
OF_PROCESSES = {"kill": "signal 9", "stop": "no answer in 1 s"}
OF_TRAINERS = ["save", "terminate", "kill the trainer", "cut the checkpoint off"]
SOME = ["raise", "hang", "crash", "nan", "kill", "save", "terminate", "cut the checkpoint off"]


class Soak:
    """One run in the current folder, its trainers one after the other, and what they had."""

    def __init__(self, total, warm):
        """warm: the seconds after which the memory of a trainer is to stay as it is."""
        self.total, self.warm = total, warm
        self.mark = f"PROXIMO_SOAK={os.getpid()}-{time.monotonic()}"
        self.lives = []
        self.counts = {}
        Path("chaos.py").write_text(ENV)
        Path("slowly").touch()

    def start(self):
        words = ["train", "ppo", "chaos:CartPole", "--preset", "cartpole", "--run-dir", "r"]
        words += ["--env.backend", "workers", "--env.processes", "2", "--run.grace", "5"]
        words += ["--env.timeout", str(TIMEOUT), "--env.restarts", "1000"]
        words += ["--total-steps", str(self.total), "--seed", "1"]
        if self.lives:
            words = ["resume", "r", "--env", "chaos:CartPole"]
        name, value = self.mark.split("=")
        before = said("run folder") + said("going on in")
        with Path("output").open("ab") as output:
            self.trainer = subprocess.Popen(
                [sys.executable, "-m", "proximo", *words],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {name: value, "OMP_NUM_THREADS": "1"},
            )
        self.wait(lambda: said("run folder") + said("going on in") > before)
        self.goes_on()
        self.lives.append([])
        threading.Thread(target=self.watch, args=(self.trainer, self.lives[-1])).start()

    def watch(self, trainer, seen):
        """Note the memory of a trainer, from when it has warmed up."""
        until = time.monotonic() + self.warm
        while trainer.poll() is None:
            if time.monotonic() > until and (found := memory(trainer.pid)):
                seen.append(found)
            time.sleep(0.25)

    def processes(self):
        """All that were started by a trainer, whoever their parent is by now."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdecimal():
                try:
                    if self.mark.encode() in (place / "environ").read_bytes().split(b"\0"):
                        found.append(int(place.name))
                except OSError:  # it has ended, or is another user's
                    pass
        return found

    def workers(self):
        """Those of envs, each below its supervisor, without what the envs have started."""
        return [pid for pid in self.processes() if parent(parent(pid)) == self.trainer.pid]

    def wait(self, what, seconds=30.0):
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until, Path("output").read_text()[-3000:]
            assert self.trainer.poll() is None, Path("output").read_text()[-3000:]
            time.sleep(0.05)
        return found

    def goes_on(self):
        """Wait until it has learned something more."""
        reached = updates()
        self.wait(lambda: updates() > reached)

    def ends(self, code):
        assert self.trainer.wait(30) == code
        until = time.monotonic() + GONE
        while left := self.processes():
            assert time.monotonic() < until, left
            time.sleep(0.05)

    def trouble(self, how, chance):
        self.counts[how] = self.counts.get(how, 0) + 1
        if how in IN_ENVS:
            before = said(IN_ENVS[how])
            Path("new").write_text(how)
            os.rename("new", "order")
            self.wait(lambda: said(IN_ENVS[how]) > before)
        elif how in OF_PROCESSES:
            before = said(OF_PROCESSES[how])
            number = signal.SIGKILL if how == "kill" else signal.SIGSTOP
            os.kill(chance.choice(self.wait(self.workers)), number)
            self.wait(lambda: said(OF_PROCESSES[how]) > before)
        elif how == "save":
            before = said("SIGUSR1: saved")
            self.trainer.send_signal(signal.SIGUSR1)
            self.wait(lambda: said("SIGUSR1: saved") > before)
        else:
            if how == "terminate":
                self.trainer.terminate()
                self.ends(143)
            else:
                self.trainer.kill()
                self.ends(-signal.SIGKILL)
            if how == "cut the checkpoint off":
                last = Path("r/checkpoints/last.safetensors")
                os.truncate(last, chance.randrange(last.stat().st_size))
            self.start()
        self.goes_on()

    def finish(self):
        """No more trouble: to its end. Returns the mean return of the policy, and its report."""
        Path("slowly").unlink()
        assert self.trainer.wait(1800) == 0, Path("output").read_text()[-3000:]
        self.ends(0)
        warm = [seen for seen in self.lives if seen]
        score = succeeded(proximo("eval", "r", "--env", "chaos:CartPole", "--json")).out
        return {
            "faults": self.counts,
            "trainers": len(self.lives),
            "total_steps": self.total,
            "steps": result("r")["steps"],
            "updates": result("r")["updates"],
            "return_mean": json.loads(score)["return_mean"],
            "rss_growth_mb": round(max(max(seen) - seen[0] for seen in warm) / 2**20, 1),
            "rss_between_lives_mb": round(
                (max(map(max, warm)) - min(seen[0] for seen in warm)) / 2**20, 1
            ),
            "processes_left": len(self.processes()),
        }


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def memory(pid):
    """Resident bytes of a process, if it lives."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def updates():
    """How many the metrics have a row of."""
    file = Path("r/metrics.jsonl")
    return file.read_bytes().count(b"\n") if file.exists() else 0


def said(words):
    log = Path("r/log")
    return log.read_text().count(words) if log.exists() else 0


@pytest.fixture
def soak(here):
    begun = []

    def begin(total, warm):
        begun.append(Soak(total, warm))
        begun[0].start()
        return begun[0]

    yield begin
    begun[0].trainer.kill()
    begun[0].trainer.wait()


def check(report, score):
    """It has learned, and nothing is lost, grows or is left."""
    one_update = 250
    assert report["total_steps"] <= report["steps"] < report["total_steps"] + one_update
    assert [row["update"] for row in rows("r")] == list(range(1, report["updates"] + 1))
    done = [row["steps"] for row in rows("r")]
    for before, after in itertools.pairwise([0, *done]):
        assert before < after <= before + one_update  # fewer, where an episode was cut
    assert done[-1] == report["steps"]
    assert report["return_mean"] >= score
    assert report["rss_growth_mb"] < GROWTH
    assert report["rss_between_lives_mb"] < GROWTH
    assert report["processes_left"] == 0


def test_half_a_minute_of_trouble(soak):
    chance = random.Random(1)
    run = soak(10_000, warm=1)
    for how in chance.sample(SOME, len(SOME)):
        time.sleep(chance.random() / 2)
        run.trouble(how, chance)
    check(run.finish(), score=60)  # of somebody who has learned nothing: 9 to 25


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_ten_thousand_steps_take_no_more_memory(here, engine):
    seen = []
    train(
        "CartPole-v1",
        PPO(epochs=1, minibatch_size=64),
        rollout=RolloutConfig(steps=16),
        run_config=RunConfig(total_steps=15_000, engine=engine),
        run_dir="r",
        callbacks=[lambda *_: seen.append(memory(os.getpid()))],
    )
    warm = len(seen) // 3
    assert max(seen[warm:]) - seen[warm] < GROWTH * 2**20 / 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_minutes_of_trouble(soak):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance, seconds = random.Random(seed), 20 * 60
    run = soak(PACE * seconds, warm=20)
    begun = time.monotonic()
    for due in range(10, seconds + 1, 10):
        time.sleep(max(0, begun + due - time.monotonic()))
        kinds = OF_TRAINERS if chance.random() < 0.2 else [*IN_ENVS, *OF_PROCESSES]
        run.trouble(chance.choice(kinds), chance)
    lasted = time.monotonic() - begun
    report = {"seed": seed, "minutes_of_faults": round(lasted / 60, 1), **run.finish()}
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(report)
    check(report, score=475)
