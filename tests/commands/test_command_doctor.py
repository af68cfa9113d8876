"""`proximo doctor`: the installation, an env, a run; what is wrong is said, and nothing else."""

import fcntl
import importlib.metadata
import json
import os
import shlex
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from commands.command_line import SMALL, proximo, refusal, rows, succeeded, train
from proximo.commands import env_page
from proximo.commands.layout import Page, plain
from proximo.engines import library
from proximo.envs.testing import probes
from proximo.insight import explanation, installation, selftest
from proximo.insight.explanation import explain_run
from proximo.insight.installation import fits
from proximo.run.health import Finding

FIXTURES = Path(__file__).parents[1] / "faults" / "fixtures"
EVIL = "\x1b[2J\x1b]0;owned\x07 \u202e"
"""Clears a screen, renames a terminal, turns the direction of writing."""


def states(outcome):
    """(state, subject) of the lines of a page."""
    words = ("ok", "warning", "broken", "-")
    lines = [line.split(maxsplit=2) for line in outcome.out.splitlines()]
    return [tuple(line[:2]) for line in lines if len(line) > 2 and line[0] in words]


# The installation


def test_a_sound_installation_is_well():
    told = succeeded(proximo("doctor", "--no-self-test"))
    found = states(told)
    for subject in ("Python", "torch", "numpy", "gymnasium", "native", "cores", "disk"):
        assert subject in [s for _, s in found], subject
    assert not [line for line in found if line[0] == "broken"]
    assert "Self-test" not in told.out
    assert "\x1b" not in told.out  # no terminal, no colours


def test_the_same_as_json():
    told = json.loads(succeeded(proximo("doctor", "--no-self-test", "--json")).out)
    assert told["well"]
    assert {line["state"] for line in told["lines"]} <= {"ok", "warning", "absent"}
    extras = [line for line in told["lines"] if line["subject"].startswith("[")]
    known = importlib.metadata.metadata("proximo").get_all("Provides-Extra")
    assert {line["subject"] for line in extras} == {f"[{name}]" for name in known if name != "dev"}
    for line in told["lines"]:
        if line["state"] in ("warning", "broken") or line["subject"] == "[envpool]":
            assert line["remedy"] or line["state"] == "ok"


def test_every_extra_says_what_it_is_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].keys() - {"dev"}
    assert extras <= installation.EXTRAS.keys()


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("there", ["0.9.1", None])
def test_a_package_that_is_too_old_or_missing_is_broken(name, there, monkeypatch):
    version = importlib.metadata.version

    def other(package):
        if package != name:
            return version(package)
        if there is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return there

    monkeypatch.setattr(importlib.metadata, "version", other)
    told = proximo("doctor", "--no-self-test")
    assert told.code == 1
    assert ("broken", name) in states(told)
    assert f"pip install '{name}>=" in told.out
    assert f"Broken: {name}" in told.out


def test_without_the_native_engine_it_works_and_says_what_that_costs(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: (None, "it was not built"))
    told = succeeded(proximo("doctor", "--no-self-test"))
    assert ("warning", "native") in states(told)
    assert "install a C++ compiler" in told.out


def test_limits_of_a_container_are_seen(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(installation, "CPU_MAX", quota)
    monkeypatch.setattr(installation, "cores", lambda: 8)
    for text, limit in (("max 100000", None), ("150000 100000", 1.5), ("nonsense", None)):
        quota.write_text(text)
        assert installation.processor_limit() == limit
    quota.write_text("150000 100000")
    (line,) = installation._processor()
    assert (line.state, "allows 1.5" in line.found) == ("warning", True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**26, 0, 2**20))
    shared = [line for line in installation._memory() if line.subject == "shared memory"]
    assert [line.state for line in shared] == ["warning"]
    assert "--shm-size" in shared[0].remedy
    assert next(installation._disk()).state == "broken"


def test_what_cannot_be_looked_at_does_not_end_the_rest(monkeypatch):
    def fails():
        raise RuntimeError("no such device")
        yield

    monkeypatch.setattr(installation, "_gpu", fails)
    told = proximo("doctor", "--no-self-test")
    assert told.code == 1
    assert "no such device" in told.out
    assert ("ok", "disk") in states(told)


@pytest.mark.parametrize(
    ("version", "wanted", "within"),
    [
        ("3.11.7", "<3.15,>=3.11", True),
        ("3.10.2", ">=3.11", False),
        ("3.15.0", "<3.15,>=3.11", False),
        ("2.13.0+cpu", ">=2.10", True),
        ("2.9", ">=2.10", False),
        ("4.0", "<4", False),
        ("1.2.5", "==1.2", True),
        ("2.0rc1", ">=1.9", True),
        ("1.0", "", True),
    ],
)
def test_ranges_of_versions(version, wanted, within):
    assert fits(version, wanted) is within


@pytest.mark.skipif(not library.kernels(), reason="no native engine, or one of older sources")
def test_the_kernels_are_named():
    assert library.kernels() in ("AVX2", "AVX-512", "NEON", "plain")


@pytest.mark.skipif(library.load()[0] is None, reason="there is no native engine")
def test_the_self_test_holds_and_finds_an_engine_that_learns_the_wrong_thing(monkeypatch):
    learning = selftest._passed("learning", lambda: selftest._learns("native"))
    assert learning.state == "ok"
    for test in (selftest._resumes, selftest._agrees):
        assert selftest._passed("", test).state == "ok"
    reward = probes.Probe.closeness
    monkeypatch.setattr(probes.Probe, "closeness", lambda *args: -reward(*args))
    learning = selftest._passed("learning", lambda: selftest._learns("native"))
    assert (learning.state, "actions [1, 0]" in learning.found) == ("broken", True)
    monkeypatch.setattr(selftest, "ROUNDING", 0.0)
    assert selftest._passed("", selftest._agrees).state == "broken"
    failing = selftest._passed("", lambda: 1 / 0)
    assert (failing.state, "ZeroDivisionError" in failing.found) == ("broken", True)


def test_a_resumed_run_with_other_bits_is_found(monkeypatch):
    resume = selftest.resume
    monkeypatch.setattr(selftest, "resume", lambda run, **how: resume(run, total_steps=256))
    assert selftest._passed("", selftest._resumes).state == "broken"


@pytest.mark.long
def test_the_whole_self_test_takes_under_a_minute():
    assert [line.state for line in selftest.self_test()] == ["ok"] * 5


# An env


FEW = ("--seconds", "60", "--steps", "400")
"""Limits by steps, not by a clock: what is found must not depend on the machine."""


@pytest.fixture
def brief(monkeypatch):
    """Trials of training and of backends that take a moment; the rest has all the time it needs."""
    shares = {"check": 1.0, "survey": 1.0, "backends": 0.001, "trial": 0.004}
    monkeypatch.setattr(env_page, "SHARES", shares)


def examined(*words):
    return json.loads(succeeded(proximo("doctor", *words, *FEW, "--json")).out)


def test_an_env_is_measured_and_gets_a_line(brief):
    told = examined("CartPole-v1")
    assert told["baselines"][0]["policy"] == "random"
    random = told["baselines"][0]["return"]["mean"]
    assert 15 < random < 30
    by_name = {one["policy"]: one for one in told["baselines"]}
    assert by_name.keys() == {"random", "always 0", "always 1"}
    assert 8 < by_name["always 1"]["return"]["mean"] < 11
    assert told["rewards"]["min"] == told["rewards"]["max"] == 1
    assert told["time_limit"] == 500
    assert told["solved_from"] == 475
    assert told["repeats"]
    assert told["check"]["notes"] == []
    assert told["observation"][1]["bounds"] == [None, None]  # JSON knows no infinity
    assert told["speed"]["env_steps_per_second"] > 0
    assert told["proposal"]["words"] == ["proximo", "train", "ppo", "CartPole-v1"]
    assert told["proposal"]["preset"] == "cartpole"


def test_the_proposed_line_runs(brief, here):
    told = examined("MountainCar-v0", "--preset", "none")
    verb, *words = told["proposal"]["words"]
    assert verb == "proximo"
    assert {"--preset", "--net.normalize-obs", "--algorithm.normalize-reward"} <= set(words)
    if "--total-steps" in words:  # it was fast enough to be proposed
        words[words.index("--total-steps") + 1] = "2048"
    else:
        words += ["--total-steps", "2048"]
    succeeded(proximo(*words, "--run-dir", "run", "--quiet"))
    assert rows("run")[-1]["steps"] == 2048


def test_the_page_of_an_env(brief, own_env):
    told = succeeded(proximo("doctor", own_env, *FEW))
    for part in ("Check", "Random play", "Baselines", "Speed", "To begin with"):
        assert part in told.out.splitlines()
    assert "1 in every step" in told.out
    assert "after exactly 10 steps" in told.out
    assert "(best)" not in told.out  # both earn 10


def test_a_vector_env_says_how_it_resets(brief):
    told = examined("CartPole-v1", "--env.backend", "vector")
    assert "autoreset mode" in told["resets"]
    assert told["proposal"]["words"][-2:] == ["--env.backend", "vector"]
    assert told["repeats"]


LIES = """
import gymnasium as gym
import numpy as np
from own_env import Env


class Shape(Env):
    def see(self):
        return np.zeros(3 if self.steps > 5 else 2, np.float32)


class Reward(Env):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest


class Late(Env):
    def step(self, action):
        if self.steps > 260:
            raise RuntimeError("motor \\x1b[2J gone")
        return super().step(action)


class Exits(Env):
    def step(self, action):
        raise SystemExit(0)


class Masked(Env):
    action_masks = lambda self: np.array([1, 0])

    def step(self, action):
        assert action == 0
        return super().step(action)


class Single(Env):
    made = 0

    def __init__(self):
        super().__init__()
        Single.made += 1
        if Single.made > 1:
            raise RuntimeError("the port is taken")
"""


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("Shape", ["Shape cannot be trained in", "shape (3,)"]),
        ("Reward", ["Reward cannot be trained in", "nan", "finite"]),
        ("Late", ["cannot be trained in", r"motor \u001b[2J gone"]),
        ("Exits", ["SystemExit: 0"]),
        ("Masked", ["AssertionError", "--env.action-masks method"]),
        ("Gone", ["has no 'Gone'"]),
    ],
)
def test_an_env_that_lies_is_refused_as_by_check(brief, own_env, here, env, words):
    (here / "lies.py").write_text(LIES)
    said = refusal(proximo("doctor", f"lies:{env}", *FEW))
    for part in words:
        assert part in said
    if env != "Late":  # which fails after what `check` plays
        short = refusal(proximo("check", f"lies:{env}"))
        assert short.split(" (")[0] == said.split(" (")[0] or env == "Masked"


def test_one_env_alone_can_be_examined_but_not_trained_in(own_env, here, monkeypatch):
    (here / "lies.py").write_text(LIES)
    monkeypatch.setattr(env_page, "SHARES", dict.fromkeys(env_page.SHARES, 1.0))
    told = proximo("doctor", "lies:Single", *FEW)
    assert told.code == 1
    assert ("broken", "training") in states(told)
    assert "the port is taken" in " ".join(told.out.split())


def test_check_is_the_short_form_with_its_old_output():
    told = succeeded(proximo("check", "CartPole-v1", "--episodes", "2"))
    labels = [line.split("  ")[0] for line in told.out.splitlines()]
    assert labels == ["observations", "actions", "played", "nothing is wrong with it"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--episodes", "3"], "--episodes is not for the installation"),
        (["--num-envs", "3"], "--num-envs is not for the installation"),
        (["CartPole-v1", "--no-self-test"], "--no-self-test is not for an env"),
        (["CartPole-v1", "--seconds", "0"], "--seconds is 0.0: give more than 0"),
        (["CartPole-v1", "--env", "Acrobot-v1"], "two envs"),
        (["CartPole-v1", "--preset", "atari"], "--preset is atari: give none"),
        (["CartPole-v9"], "CartPole"),
        (["nothing/here"], "there is no env 'nothing/here'"),
        (["empty"], "empty is no run folder: it has no config.toml"),
        (["empty", "--steps", "3"], "--steps is not for a run"),
        (["file"], "file is a file"),
    ],
)
def test_what_does_not_fit_is_refused(here, words, said):
    (here / "empty").mkdir()
    (here / "file").write_text("")
    assert said in refusal(proximo("doctor", *words))


# A run


@pytest.fixture
def run(trained, here):
    shutil.copytree(trained, here / "run")
    return here / "run"


def test_a_finished_run(run):
    told = succeeded(proximo("doctor", "run"))
    assert ("ok", "end") in states(told)
    assert ("ok", "checkpoint") in states(told)
    assert "512 of 512 steps, 8 updates" in told.out
    assert "proximo resume run --total-steps 1024" in told.out
    assert "--run.profile" in told.out


def test_a_run_as_json(run):
    told = json.loads(succeeded(proximo("doctor", "run", "--json")).out)
    assert told["progress"]["done"] == told["progress"]["total"] == 512
    assert told["resume"] == "proximo resume run --total-steps 1024"
    assert told["scores"][0]["last"] == pytest.approx(rows(run)[-1]["return_mean"])


def test_where_the_time_went(here):
    succeeded(train("--run-dir", "run", "--quiet", "--run.profile"))
    told = explain_run("run")
    assert sum(told.phases.values()) == pytest.approx(1)
    assert "gradient steps" in proximo("doctor", "run").out


def test_findings_are_shown_with_evidence_cause_remedy_and_link(run, monkeypatch):
    finding = Finding(
        rule="kl-over-target",
        evidence=f"approx_kl 0.4 in 7 of 8 updates{EVIL}",
        cause="the learning rate is too large",
        remedy="--lr 3e-4",
        update=3,
    )
    monkeypatch.setattr(explanation, "diagnose_run", lambda folder: [finding])
    told = succeeded(proximo("doctor", "run"))
    text = " ".join(told.out.split())
    for part in ("kl-over-target", "0.4 in 7 of 8", "first in update 3", "too large", "--lr 3e-4"):
        assert part in text
    assert "docs/health.md#kl-over-target" in text
    assert "\x1b" not in told.out
    as_json = json.loads(proximo("doctor", "run", "--json").out)
    assert as_json["findings"][0]["link"] == "docs/health.md#kl-over-target"


def test_a_run_that_was_killed_can_be_resumed_by_the_line(run):
    (run / "result.json").unlink()
    told = proximo("doctor", "run")
    assert told.code == 0
    assert ("warning", "end") in states(told)
    assert "killed before its result was written" in " ".join(told.out.split())
    assert "proximo resume run" in told.out


def test_a_run_that_was_killed_on_its_way(run):
    (run / "result.json").unlink()
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("total_steps = 512", "total_steps = 1024"))
    told = proximo("doctor", run / "config.toml")
    assert "killed, or the power went" in told.out
    assert "512 of 1,024 steps" in told.out
    assert told.out.splitlines()[-1].strip() == f"proximo resume {run}"


def test_a_run_that_failed_says_why(run):
    (run / "result.json").unlink()
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("total_steps = 512", "total_steps = 1024"))
    with (run / "log").open("a") as file:
        file.write("Traceback (most recent call last):\n  File x\nValueError: no such motor\n")
    told = proximo("doctor", "run")
    assert told.code == 1
    assert "failed: ValueError: no such motor" in told.out


def test_a_damaged_checkpoint_is_named_and_the_next_whole_one_is_taken(run):
    last = run / "checkpoints" / "last.safetensors"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(bytes(data))
    told = proximo("doctor", "run")
    assert told.code == 1
    assert ("broken", "checkpoint") in states(told)
    assert "is damaged" in told.out
    assert "from which `resume` continues" in " ".join(told.out.split())
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    told = proximo("doctor", "run")
    assert "the run cannot be resumed" in told.out
    assert "nothing is there to go on from" in told.out


def test_a_run_that_begins_or_still_runs(run):
    handle = os.open(run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "still running" in succeeded(proximo("doctor", "run")).out
    os.close(handle)
    for name in ("result.json", "metrics.jsonl"):
        (run / name).unlink()
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    told = proximo("doctor", "run")
    assert "killed while it began" in told.out
    assert "type the line again" in told.out


def test_no_code_of_the_run_is_imported_and_the_line_names_it(own_env, here):
    succeeded(proximo("train", "ppo", own_env, "--total-steps", "128", *SMALL, "--run-dir", "run"))
    (here / "imported").unlink()
    (here / "own_env.py").write_text("raise RuntimeError('imported')")
    told = succeeded(proximo("doctor", "run"))
    assert not (here / "imported").exists()
    line = next(x for x in told.out.splitlines() if "proximo resume" in x)
    assert shlex.split(line) == [
        *("proximo", "resume", "run", "--total-steps", "256", "--env", own_env)
    ]


@pytest.mark.parametrize("name", ["version-0.2-dev/base", "version-0.2-dev/scores", "schema-1"])
def test_runs_of_language_models_and_of_earlier_versions(name):
    told = proximo("doctor", FIXTURES / name)
    assert told.code == 0
    assert ("ok", "checkpoint") in states(told)
    assert ("lm resume" in told.out) == ("version" in name)


def hostile(run):
    text = json.dumps(EVIL)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('"CartPole-v1"', text))
    result = json.loads((run / "result.json").read_text())
    result |= {"warnings": [EVIL * 200, 3, None, *["x"] * 50], "stopped_by": EVIL}
    result |= {"profile": {"phases": {"env": {"share": EVIL}, EVIL: 3}}, "steps": "many"}
    (run / "result.json").write_text(json.dumps(result))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1]) | {"return_mean": EVIL, "best": 1e308, "update": 9, "loss": None}
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(row), "[1", EVIL]))
    (run / "versions.json").write_text(json.dumps({"torch": EVIL, "numpy": [1]}))
    with (run / "log").open("a") as file:
        file.write(f"Traceback (most recent call last):\n{EVIL}\n")


def test_hostile_text_is_shown_as_text(run):
    hostile(run)
    for words in ((), ("--json",)):
        told = proximo("doctor", "run", *words)
        assert told.code == 0
        assert not set("\x1b\x07\u202e") & set(told.out + told.err)
        assert r"\u001b[2J" in told.out
    assert "and 31 more, in result.json" in proximo("doctor", "run").out


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "versions.json", "log"])
def test_a_file_that_never_ends_is_left_out(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    assert proximo("doctor", "run").code == 0


def test_a_configuration_that_is_damaged_is_refused(run):
    (run / "config.toml").write_text("[algorithm\n")
    assert "is not TOML" in refusal(proximo("doctor", "run"))


def test_readings_that_no_run_writes_are_named(run, monkeypatch):
    def fails(folder):
        raise TypeError("'<' not supported")

    monkeypatch.setattr(explanation, "diagnose_run", fails)
    assert "cannot be judged" in succeeded(proximo("doctor", "run")).out


def test_doctor_changes_nothing_in_a_run(run):
    def content():
        return {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}

    before = content()
    proximo("doctor", "run")
    assert content() == before


# The page


@pytest.mark.parametrize("width", [20, 40, 64, 80, 200])
def test_a_page_fits_its_width(run, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    told = succeeded(proximo("doctor", "run"))
    longest = max(told.out.splitlines(), key=len)
    assert len(longest) <= max(min(width, 100), 20) or "proximo" in longest
    assert not [line for line in told.out.splitlines() if line != line.rstrip()]
    joined = told.out.replace("\\\n", " ")
    assert shlex.split(joined.splitlines()[-1])[:3] == ["proximo", "resume", "run"]


@pytest.mark.parametrize("width", [30, 60, 100])
def test_a_command_pastes_back_whole(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["proximo", "train", "ppo", "module:Env", "--env.kwargs", "name", "two words", "--lr"]
    words += ["linear:3e-4:0", "--net.hidden", *["64"] * 9, "--algorithm.normalize-reward"]
    Page().command(words)
    printed = capsys.readouterr().out
    assert shlex.split(printed.replace("\\\n", " ")) == words


def test_colours_are_for_terminals_and_repeat_words(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Page().line("broken", "disk", f"full{EVIL}", "make room")
    printed = capsys.readouterr().out
    assert "broken" in printed
    assert "\x1b[1;31m" in printed
    assert "\x1b[2J" not in printed
    assert plain(EVIL) in printed
