"""Killed at its beginning, at its end, between any two of its file operations: nothing is lost.

Whoever types the same line again, or resumes, gets the bits, the rows and the result of a run that
was never interrupted.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import proximo.run.control
from commands.command_line import SMALL, refusal, result, rows, succeeded, timeless, train
from commands.command_line import proximo as command
from proximo import (
    A2C,
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    PPOPenalty,
    QActorCritic,
    Reinforce,
    RolloutConfig,
    RunConfig,
)
from proximo import train as train_policy
from proximo.loop import run_control
from proximo.run import checkpoint, keeping
from proximo.run.control import make_session
from proximo.run.folder import RunFolder, free
from proximo.run.keeping import newest

LAST = "checkpoints/last.safetensors"
KILLED = 99
ENDS = {
    "total_steps": ["--total-steps", "256"],
    "total_episodes": ["--total-steps", "20000", "--run.total-episodes", "12"],
    "stop_at": ["--total-steps", "20000", "--stop-at", "9", "--run.eval-episodes", "1"],
}


def outcome(run):
    """All that a run comes to, but for the time that it took, and what each process had to say."""
    apart = ("seconds", "warnings", "health")
    ended = {name: value for name, value in result(run).items() if name not in apart}
    names = [f"checkpoints/{name}.safetensors" for name in ("last", "best", "update-0")]
    files = [Path(run) / name for name in ("config.toml", *names)]
    return ended, timeless(run), [file.read_bytes() for file in files if file.exists()]


class Killer:
    """Runs commands in a process apart, killed before their file operation of a number."""

    def __init__(self):
        line = [sys.executable, Path(__file__).parent / "killed_child.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(line, env=environment, bufsize=1, **pipes)

    def run(self, *words, before=None):
        """Exit code, and how many file operations there were."""
        self.process.stdin.write(json.dumps([os.getcwd(), words, before]) + "\n")
        code, operations = self.process.stdout.readline().split()
        return int(code), int(operations)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.close()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("end", ENDS)
def test_a_run_may_be_killed_before_any_of_its_file_operations(here, killer, end, every):
    """From its first to its last; each is followed by `resume`, or by the same line again."""
    line = ["train", "ppo", "CartPole-v1", *SMALL, *ENDS[end], "--quiet"]
    line += ["--run.log-every", "7", "--run-dir", "r"]
    code, operations = killer.run(*line)
    assert code == 0
    whole, verbs = outcome("r"), []
    assert whole[0]["stopped_by"] == end
    # Some of its beginning, as long as it is the same for all, and some of its end.
    some = [12, 40, operations - 3] if end == "total_steps" else [operations - 8, operations - 2]
    for number in range(operations) if every else some:
        shutil.rmtree(here / "r")
        assert killer.run(*line, before=number)[0] == KILLED
        code, _ = killer.run("resume", "r", "--quiet")
        verbs.append("resume")
        if code == 2:  # it holds nothing yet
            code, _ = killer.run(*line)
            verbs[-1] = "train"
        assert (code, number) == (0, number)
        assert outcome("r") == whole, number
    assert set(verbs) == ({"resume"} if some[0] > 40 and not every else {"train", "resume"})
    assert verbs == sorted(verbs, reverse=True)  # from one operation on, that which makes it a run


class Killed(BaseException):
    """Stands for kill -9 while a run is resumed."""


@pytest.mark.parametrize("end", ENDS)
def test_a_result_that_was_not_written_is_written_from_the_checkpoint(here, end):
    succeeded(train("--run-dir", "r", "--quiet", "--run.log-every", "7", *ENDS[end]))
    whole, seconds = outcome("r"), result("r")["seconds"]
    assert whole[0]["stopped_by"] == end
    (here / "r/result.json").unlink()
    said = succeeded(command("resume", "r")).out
    assert "writing the result of r" in said
    assert "r is finished" in said
    assert outcome("r") == whole
    assert result("r")["seconds"] == seconds
    before = (here / "r/result.json").stat().st_mtime_ns
    succeeded(command("resume", "r"))
    assert (here / "r/result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_was_lengthened_and_killed_is_not_finished(here, monkeypatch, end):
    """Before its first update or later, by its old goal or without a result."""
    succeeded(train("--run-dir", "r", "--quiet", *ENDS[end]))
    steps = result("r")["steps"] + 128
    shutil.copytree("r", "unbroken")
    succeeded(command("resume", "unbroken", "--quiet", "--total-steps", str(steps)))
    assert result("unbroken")["stopped_by"] == "total_steps"

    def kill(*arguments, **settings):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(proximo.run.control, "collect", kill)
        with pytest.raises(Killed):
            command("resume", "r", "--quiet", "--total-steps", str(steps))
    assert not (here / "r/result.json").exists()  # it was of another state
    succeeded(command("resume", "r", "--quiet"))
    assert outcome("r") == outcome("unbroken")


def test_a_result_of_another_state_is_not_believed(here):
    succeeded(train("--run-dir", "r", "--quiet", "--run.total-episodes", "5"))
    succeeded(train("--run-dir", "long", "--quiet"))
    for name in ("config.toml", "metrics.jsonl", LAST):
        shutil.copyfile(f"long/{name}", f"r/{name}")
    succeeded(command("resume", "r", "--quiet"))
    assert result("r")["stopped_by"] == "total_steps"
    assert result("r")["updates"] == 8


def test_another_goal_continues_a_run_that_has_reached_its_own(here):
    succeeded(train("--run-dir", "r", "--quiet", *ENDS["stop_at"]))
    updates = result("r")["updates"]
    succeeded(command("resume", "r", "--quiet", "--stop-at", "15"))
    assert result("r")["updates"] > updates
    assert "is finished" in succeeded(command("resume", "r", "--stop-at", "8")).out
    succeeded(train("--run-dir", "e", "--quiet", *ENDS["total_episodes"]))
    succeeded(command("resume", "e", "--quiet", "--total-episodes", "40"))
    succeeded(
        train(
            "--run-dir", "forty", "--quiet", *ENDS["total_episodes"], "--run.total-episodes", "40"
        )
    )
    assert outcome("e") == outcome("forty")


def test_a_run_of_the_first_schema_that_reached_its_goal_stays_finished(here):
    succeeded(train("--run-dir", "r", "--quiet", *ENDS["stop_at"]))
    saved = newest(RunFolder("r"))
    record = {name: x for name, x in saved.record.items() if name != "last_trial_return"}
    checkpoint.write(saved.path, saved.tensors, record)
    before = saved.path.read_bytes()
    assert "ended early at its --stop-at" in succeeded(command("resume", "r")).out
    assert saved.path.read_bytes() == before


# The rows beside a checkpoint


@pytest.fixture
def run(here, trained):
    shutil.copytree(trained, here / "r")
    return here / "r"


LOST = {
    "the last": (lambda lines: lines[:3], "lacks the rows of 5 updates, from 4 to 8"),
    "all": (lambda lines: [], "lacks the rows of 8 updates, from 1 to 8"),
    "one in the middle, torn": (
        lambda lines: [*lines[:3], lines[3][:40] + b"\n", *lines[4:]],
        "lacks the row of one update, 4",
    ),
    "zeros for blocks": (
        lambda lines: [*lines[:6], bytes(4096)],
        "lacks the rows of 2 updates, from 7 to 8",
    ),
    "those of another run": (
        lambda lines: [line.replace(b'"steps":512', b'"steps":640') for line in lines],
        "has 640 steps at update 8, the checkpoint 512: its rows are of another run",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_rows_that_a_power_cut_took_are_named(run, name):
    change, words = LOST[name]
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(change(lines)))
    for steps in ("640", "704"):  # and again by whatever resumes it later
        said = succeeded(command("resume", run, "--total-steps", steps)).out
        if steps == "640" or "another" not in name:
            assert words in said
            assert words in "".join(result(run)["warnings"])
            assert words in (run / "log").read_text()
    assert [row["update"] for row in rows(run)][-3:] == [9, 10, 11]


def test_rows_that_came_twice_are_there_once(run, trained):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write((trained / "metrics.jsonl").read_bytes())
    said = succeeded(command("resume", run, "--total-steps", "576")).out
    assert "metrics.jsonl" not in said
    assert [row["update"] for row in rows(run)] == list(range(1, 10))


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(here, monkeypatch):
    """What a power cut leaves is what was synced: never fewer rows than the checkpoint's."""
    safe, sync, replace, checked = {}, os.fsync, os.replace, []

    def synced(handle):
        about = os.fstat(handle)
        safe[about.st_ino] = about.st_size
        sync(handle)

    def replaced(source, target, **folders):
        replace(source, target, **folders)
        name = Path(target).name
        if name.startswith(("last", "update-")):
            file = here / "r/metrics.jsonl"
            left = file.read_bytes()[: safe.get(file.stat().st_ino, 0)]
            checked.append((name, len(left.splitlines())))
            assert left.splitlines() == file.read_bytes().splitlines()

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(keeping, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(keeping, "SAVE_SHARE", float("inf"))
    succeeded(train("--run-dir", "r", "--quiet", "--run.save-every", "4"))
    assert ("update-4.safetensors", 4) in checked
    assert checked[-1] == ("last.safetensors", 8)


# Folders


def vacant(place):
    """What a run leaves that is killed before its first checkpoint."""
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints/.update-0.safetensors.partial").write_bytes(b"half")
    for name in ("config.toml", "versions.json", "log"):
        (place / name).write_text("begun\n")
    (place / "metrics.jsonl").touch()
    return place


def test_a_folder_that_holds_nothing_yet_is_taken_over(here):
    vacant(here / "r")
    (here / "empty").mkdir()
    for name in ("r", "empty"):
        succeeded(train("--run-dir", name, "--quiet"))
        assert result(name)["updates"] == 8
    assert free(vacant(here / "runs/x")) == here / "runs/x"
    assert free(here / "r") == here / "r-2"


VALUABLE = {
    "a thesis": lambda place: (place / "thesis.txt").write_text("years of work"),
    "rows": lambda place: (place / "metrics.jsonl").write_text('{"update": 1}\n'),
    "a result": lambda place: (place / "result.json").write_text("{}"),
    "a checkpoint": lambda place: (place / "checkpoints/best.safetensors").write_bytes(b"best"),
    "weights": lambda place: [
        (place / "model").mkdir(),
        (place / "model/model.safetensors").write_bytes(b"weights"),
    ],
    "a link": lambda place: [
        (place / "log").unlink(),
        (place / "log").symlink_to(place.parent / "victim"),
    ],
    "a configuration of somebody": lambda place: [
        shutil.rmtree(place / "checkpoints"),
        (place / "config.toml").write_text("# my own\n"),
    ],
}


@pytest.mark.parametrize("name", VALUABLE)
def test_a_folder_that_holds_anything_of_value_is_left_as_it_is(here, name):
    place = vacant(here / "r")
    VALUABLE[name](place)
    before = {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}
    assert "the run folder r exists" in refusal(train("--run-dir", "r"))
    assert before == {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}


def test_a_run_that_has_just_begun_says_how_to_begin_it_again(here):
    vacant(here / "r")
    (here / "r/config.toml").write_text('[env]\nid = "CartPole-v1"\n')
    message = refusal(command("resume", "r"))
    assert "r holds no checkpoint yet" in message
    assert "same line" in message


def test_one_process_trains_in_a_folder(run):
    """The lock ends with the process, whatever it has forked."""
    first = RunFolder(run)
    first.claim()
    before = (run / "metrics.jsonl").read_bytes()
    message = refusal(command("resume", run, "--total-steps", "640"))
    assert f"another process is training in the run folder {run}" in message
    assert (run / "metrics.jsonl").read_bytes() == before
    reader, writer = os.pipe()
    there, begun = os.pipe()
    if (child := os.fork()) == 0:  # an env's own process, which outlives the trainer
        os.write(begun, b"x")
        os.read(reader, 1)
        os._exit(0)
    os.read(there, 1)
    first.release()
    try:
        succeeded(command("resume", run, "--total-steps", "640", "--quiet"))
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        for end in (reader, writer, there, begun):
            os.close(end)


def test_a_beginning_run_is_not_taken_over_while_its_process_lives(here):
    folder = RunFolder(vacant(here / "runs/x"))
    folder.claim()
    assert free(folder.path) == here / "runs/x-2"
    assert "another process" in refusal(train("--run-dir", "runs/x"))
    folder.release()


def test_a_resume_that_is_refused_changes_nothing(here):
    """Not even the configuration, which would then be of another run than the checkpoint."""
    succeeded(train("--run-dir", "r", "--quiet"))
    config = (here / "r/config.toml").read_text()
    (here / "r/config.toml").write_text(config.replace("num_envs = 2", "num_envs = 3"))
    before = {path: path.read_bytes() for path in (here / "r").rglob("*") if path.is_file()}
    refusal(command("resume", "r", "--total-steps", "640"))
    after = {path: path.read_bytes() for path in (here / "r").rglob("*") if path.is_file()}
    assert before == after


# Anything, killed anywhere

ALGORITHMS = {
    "reinforce": Reinforce(learning_rate=1e-2),
    "qac": QActorCritic(normalize_reward=True),
    "a2c": A2C(),
    "trpo": TRPO(epochs=1, minibatch_size=8),
    "ppo-penalty": PPOPenalty(epochs=1, minibatch_size=8, kl_target=1e-4),
    "ppo": PPO(epochs=2, minibatch_size=8, normalize_reward=True),
}


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(s, marks=pytest.mark.long) for s in range(8, 78))]
)
def test_any_run_that_is_killed_anywhere_ends_as_if_it_never_was(here, monkeypatch, seed):
    """Algorithm, env, net, engine, what ends it, what it logs and keeps: drawn by the seed."""
    chance = random.Random(seed)
    name = list(ALGORITHMS)[seed % 6]
    env = chance.choice(["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
    ends = {"total_steps": 40 * chance.randrange(6, 12)}
    goal = chance.choice([{}, {"total_episodes": 9}, {"stop_at": -1e9}, {"stop_at": 1e9}])
    evaluated = chance.choice([0, 3])
    run_config = RunConfig(
        **ends,
        **goal,
        log_every=chance.choice([1, 3]),
        save_every=chance.choice([0, 4]),
        eval_every=evaluated,
        eval_episodes=1,
        keep_best="evaluation" if evaluated else "smoothed",
        smoothed_from=chance.choice([None, -2000.0]),
        engine=chance.choice(["auto", "torch"]),
        seed=seed,
    )
    memory = (
        {"recurrent": "gru", "recurrent_size": 4} if name == "ppo" and chance.random() < 0.5 else {}
    )
    monkeypatch.setattr(keeping, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(keeping, "SAVE_SHARE", chance.choice([float("inf"), 0.2]))
    killed = []

    def kill(state, rollout, metrics):  # a copy of what kill -9 would leave here
        if chance.random() < 0.25:
            killed.append(here / f"killed-{state.updates}")
            shutil.copytree("whole", killed[-1])

    train_policy(
        EnvConfig(id=env, num_envs=2, max_episode_steps=23),
        ALGORITHMS[name],
        rollout=chance.choice([RolloutConfig(steps=20), RolloutConfig(episodes=2)]),
        net=NetConfig(hidden=(8,), normalize_obs=chance.random() < 0.5, **memory),
        run_config=run_config,
        run_dir="whole",
        callbacks=[kill],
    )
    shutil.copytree("whole", here / "no result")
    (here / "no result/result.json").unlink()
    whole = outcome("whole")
    for place in [*killed[:2], *killed[-1:], here / "no result"]:
        folder = RunFolder.open(place)
        run_control(make_session(folder.read_config(), folder=folder, resume=newest(folder)))
        assert outcome(place) == whole, place.name
        shutil.rmtree(place)
        shutil.copytree("whole", place)
