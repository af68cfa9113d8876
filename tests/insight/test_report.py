"""The report of runs: what it gathers, what it leaves out, where it is written."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from commands.command_line import proximo, refusal, rows, succeeded, train, train_in
from insight.hostile_run import HOSTILE, OLD, hostile
from proximo import UsageError, load
from proximo.envs.config import EnvConfig
from proximo.envs.make import make_env
from proximo.errors import printable
from proximo.insight import behaviour, report
from proximo.insight.behaviour import histogram, realised, shares
from proximo.insight.page import MARK, page, policy
from proximo.insight.readings import SECTIONS, describe
from proximo.insight.report import document, plain, read_runs
from proximo.insight.statistics import half_width
from proximo.insight.thinning import bands, columns, thinned
from proximo.run.folder import RunFolder
from proximo.run.health import Finding


def table(count, **readings):
    """Columns of rows 1 to `count`; a reading is a function of the update."""
    made = [
        {"update": i, "steps": 10 * i, "seconds": i / 8, **{k: f(i) for k, f in readings.items()}}
        for i in range(1, count + 1)
    ]
    return columns(made, "steps")


def embedded(path):
    """The document in a page."""
    text = Path(path).read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


# ---- Curves ---------------------------------------------------------------------------------


def test_a_short_run_is_shown_row_by_row():
    found = thinned(table(5, x=lambda i: i * 0.123456789), 10, spread=True)
    assert found["axes"]["steps"] == [10, 20, 30, 40, 50]
    assert found["values"]["x"] == [0.12346, 0.24691, 0.37037, 0.49383, 0.61728]


def test_of_a_long_run_every_point_is_a_mean_and_no_spike_is_lost():
    spike = 7_777
    long = table(10_000, x=lambda i: 1000.0 if i == spike else 1.0, y=float)
    found = thinned(long, 100, spread=True)
    assert len(found["values"]["x"]) == 100
    assert found["axes"]["update"][-1] == 10_000
    assert max(found["high"]["x"]) == 1000
    assert found["values"]["x"][77] == pytest.approx(1 + 999 / 100, rel=1e-4)
    assert found["values"]["y"][0] == pytest.approx(50.5)
    assert found["low"]["y"][0] == 1


def test_what_is_missing_or_no_number_is_left_out():
    found = [{"update": i, "steps": i, "seconds": 0.1} for i in range(1, 6)]
    found[1] |= {"x": 2.0, "text": "</script>"}
    found[3] |= {"x": None, "big": math.inf}
    found.append({"update": 3, "steps": 9, "seconds": 1})  # of an earlier part of a resumed run
    found.append({"update": 7, "steps": "no", "seconds": 1})
    known = columns(found, "steps")
    assert known.axes["update"].tolist() == [1, 2, 3, 4, 5]
    assert set(known.values) == {"x"}
    assert thinned(known, 10, spread=False)["values"]["x"] == [None, 2.0, None, None, None]


def test_a_band_is_the_interval_of_the_mean_where_all_runs_have_come():
    runs = [table(n, x=lambda i, k=k: float(k * i)) for k, n in ((1, 20), (2, 30), (4, 25))]
    band = bands(runs, "steps", 100)["x"]
    assert band["x"][-1] == 200  # the shortest run's end
    at = band["x"].index(100)
    scores = np.array([10.0, 20.0, 40.0])
    assert band["mean"][at] == pytest.approx(scores.mean(), rel=1e-4)
    assert band["high"][at] - band["mean"][at] == pytest.approx(half_width(scores), rel=1e-4)
    assert band["low"][at] == 0  # what is never negative has no negative band
    assert bands(runs[:1], "steps", 100) == {}


def test_runs_with_other_steps_meet_at_common_places():
    slow, fast = table(500, x=float), table(50, x=lambda i: 10.0 * i)
    band = bands([slow, fast], "seconds", 20)["x"]
    assert len(band["x"]) == 20
    assert band["x"][-1] == 6.25


# ---- Readings -------------------------------------------------------------------------------


def test_every_reading_of_a_run_has_words(trained):
    for row in rows(trained):
        for key in row.keys() - {"update", "steps", "seconds"}:
            section, reading = describe(key, "steps")
            assert section in SECTIONS, key
            assert reading.meaning


def test_kl_is_another_reading_in_language():
    assert describe("kl", "steps")[0] == "Policy"
    assert describe("kl", "tokens")[0] == "Completions"
    assert describe("my_own", "steps") == ("Other readings", ("my own", "", "", None))


# ---- Behaviour ------------------------------------------------------------------------------


def test_a_return_is_cut_by_a_termination_and_continued_after_a_time_limit():
    reward, values = np.array([1.0, 2.0, 4.0]), np.array([0.0, 0.0, 0.0, 8.0])
    assert realised(reward, True, values, 0.5).tolist() == [3.0, 4.0, 4.0]
    assert realised(reward, False, values, 0.5).tolist() == [4.0, 6.0, 8.0]


def test_shares_of_choices_and_histograms_of_numbers():
    assert shares(np.array([2, 2, 3, 2]), range(2, 5))["share"] == [0.75, 0.25, 0.0]
    many = shares(np.arange(1000) % 500, range(500))
    assert len(many["x"]) == behaviour.MOST_CHOICES
    found = histogram(np.array([-1.0, 0.0, 1.0, 5.0]), -1.0, 1.0)
    assert sum(found["share"]) == pytest.approx(1)
    assert found["at_bounds"] == 0.75
    assert sum(histogram(np.zeros(3), -math.inf, math.inf)["share"]) == pytest.approx(1)


@pytest.mark.parametrize("net", ["plain", "recurrent", "normalised rewards"])
def test_values_and_returns_are_those_of_the_policy(here, net):
    words = {
        "plain": [],
        "recurrent": ["--net.recurrent", "lstm", "--net.recurrent-size", "8"],
        "normalised rewards": ["--algorithm.normalize-reward"],
    }[net]
    assert train("--run-dir", "r", "--quiet", *words).code == 0
    agent, folder = load("r"), RunFolder.open("r")
    env = make_env(EnvConfig(id="CartPole-v1"))
    found = behaviour.behaviour(agent, env, folder, limit=500, steps=60)
    assert found["steps"] <= 60
    assert sum(found["actions"]["panels"][0]["share"]) == pytest.approx(1)
    again = behaviour.behaviour(agent, env, folder, limit=500, steps=60)
    assert again == found  # seeded
    gamma, returns = agent.config.algorithm.gamma, np.array(found["values"]["return"])
    assert returns.max() <= 1 / (1 - gamma) + 100  # with a value of the last state
    assert returns.min() >= 0.99
    # An episode by hand, with the policy's own values.
    obs, _ = env.reset(seed=1_000_000)
    if net == "plain":
        row = agent.policy.as_rows(obs[None])
        assert behaviour.value(agent, obs[None])[0] == pytest.approx(
            float(agent.policy.value(row).item())
        )
    env.close()


def test_actions_of_every_kind_have_their_panels(monkeypatch):
    from proximo.spaces import Actions

    space = spaces.Dict(
        {
            "a": spaces.MultiDiscrete([2, 3]),
            "b": spaces.Box(-1, 1, (2,)),
            "c": spaces.MultiBinary(2),
            "d": spaces.Discrete(3, start=1),
        }
    )
    acts = Actions(space)
    taken = np.array([[0, 2, -1, 0.5, 1, 0, 1], [1, 2, 1, 0.5, 1, 1, 3]], float)

    @dataclasses.dataclass
    class Policy:
        actions: Actions

    @dataclasses.dataclass
    class Agent:
        policy: Policy

    found = behaviour.actions(Agent(Policy(acts)), taken)["panels"]
    by_name = {panel["name"]: panel for panel in found}
    assert by_name["a[0]"]["share"] == [0.5, 0.5]
    assert by_name["a[1]"]["share"] == [0, 0, 1]
    assert by_name["b[0]"]["at_bounds"] == 1
    assert by_name["c[1]"]["share"] == [0.5, 0.5]
    assert by_name["d"]["x"] == [1, 2, 3]
    assert by_name["d"]["share"] == [0.5, 0, 0.5]


# ---- The document ---------------------------------------------------------------------------


def test_one_run(here, trained):
    said = succeeded(proximo("report", trained, "--out", "page.html")).out
    assert said.startswith("report in page.html (")
    found = embedded("page.html")
    (run,) = found["runs"]
    last = rows(trained)[-1]
    assert found["title"] == "PPO on CartPole-v1"
    assert run["score"] == last["return_mean"]
    assert run["count"] == last["steps"]
    assert run["ended"] == "trained its 512 steps"
    assert run["curves"]["values"]["return_mean"][-1] == pytest.approx(last["return_mean"], 1e-4)
    assert {"return_mean", "approx_kl", "entropy"} <= found["readings"].keys()
    assert [clip["label"] for clip in found["replays"]] == ["First", "Best"]
    assert found["behaviour"][0]["episodes"] == 10
    changed = {row["name"] for row in found["settings"]["rows"] if row["differs"]}
    assert {"rollout.steps", "algorithm.epochs"} <= changed
    assert "run.seed" not in changed


def test_seeds_are_a_group_and_other_settings_another_one(here, trained):
    rate = ("--algorithm.learning-rate", "linear:1e-3:0")
    assert train("--run-dir", "b", "--quiet", "--seed", "2", *rate).code == 0
    assert train("--run-dir", "c", "--quiet", "--algorithm.clip", "0.1").code == 0
    succeeded(proximo("report", trained, "b", "c", "--no-play"))
    found = embedded("report.html")
    assert [group["runs"] for group in found["groups"]] == [[0, 1], [2]]
    scores = np.array([run["score"] for run in found["runs"]][:2])
    assert found["groups"][0]["half_width"] == pytest.approx(half_width(scores))
    assert found["bands"][0]["steps"]["return_mean"]["runs"] == 2
    assert found["bands"][1] == {}
    clip = next(row for row in found["settings"]["rows"] if row["name"] == "algorithm.clip")
    assert clip["values"] == [clip["values"][0], "0.1"]
    assert clip["differs"]


def test_a_page_of_ten_long_runs_stays_small(here, trained):
    last = rows(trained)[-1]
    for i in range(10):
        shutil.copytree(trained, f"r{i}")
        noise = np.random.default_rng(i).normal(size=1_000)
        made = [
            {k: x * (1 + n) if isinstance(x, float) else x for k, x in last.items()}
            | {"update": u, "steps": 1_000 * u, "seconds": u / 10}
            for u, n in enumerate(noise.tolist(), 1)
        ]
        (here / f"r{i}/metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in made))
        config = here / f"r{i}/config.toml"  # half of them are another group
        config.write_text(config.read_text().replace("gamma = 0.99", f"gamma = 0.9{i % 2}"))
    succeeded(proximo("report", *(f"r{i}" for i in range(10)), "--no-play"))
    assert len(embedded("report.html")["groups"]) == 2
    assert (here / "report.html").stat().st_size < 5 * 10**6


def test_runs_of_different_tasks_have_reports_of_their_own(here, trained):
    shutil.copytree(trained, "r")
    config = here / "r/config.toml"
    config.write_text(config.read_text().replace("CartPole-v1", "Other-v0"))
    assert "different tasks (CartPole-v1, Other-v0)" in refusal(proximo("report", trained, "r"))


def test_findings_of_several_runs_are_said_once(trained, monkeypatch):
    finding = Finding(rule="kl-high", evidence="KL 1", cause="So.", remedy="--lr 1", update=3)
    monkeypatch.setattr(report, "diagnose_run", lambda folder: [finding])
    (found,) = document(read_runs([trained, trained]))["findings"]
    assert found["rule"] == "kl-high"
    assert found["link"] == "docs/health.md#kl-high"
    assert [seen["run"] for seen in found["seen"]] == [0, 1]


def test_a_run_of_a_language_model(here, capsys):
    pytest.importorskip("transformers")
    shutil.copytree(OLD / "tokens", "r")
    assert proximo("report", "r").code == 0
    found = embedded("r/report.html")
    assert found["title"] == "PPO of a language model"
    assert [one["update"] for one in found["samples"][0]] == [1, 2, 3]
    assert found["samples"][0][0]["samples"][0]["completion"] == "aaa"
    assert {"score", "kl"} <= found["readings"].keys()
    assert found["main"] == ["score", "reward"]


def test_of_many_samples_some_updates_are_shown_the_first_and_the_last_among_them(here):
    shutil.copytree(OLD / "tokens", "r")
    lines = [
        {"update": u, "prompt": [{"role": "user", "content": "hi"}], "completion": "x" * 5000}
        for u in range(1, 2001)
        for _ in range(4)
    ]
    (here / "r/samples.jsonl").write_text("no json\n" + "\n".join(map(json.dumps, lines)) + "\n")
    found = document(read_runs(["r"]))["samples"][0]
    assert len(found) == report.SAMPLED_UPDATES
    assert (found[0]["update"], found[-1]["update"]) == (1, 2000)
    gaps = np.diff([one["update"] for one in found])
    assert gaps.max() < 3 * gaps.min()
    sample = found[-1]["samples"][0]
    assert sample["prompt"] == "user: hi"
    assert len(sample["completion"]) < 2100


def test_without_metrics_there_is_nothing_to_report(here, trained):
    shutil.copytree(trained, "r")
    (here / "r/metrics.jsonl").write_text("")
    assert "has no metrics yet" in refusal(proximo("report", "r"))
    assert "--live" in refusal(proximo("report", "r"))


# ---- Code of the user's own -----------------------------------------------------------------


def test_code_that_a_folder_names_is_imported_only_when_named_again(here, own_env):
    assert train_in(own_env, "--run-dir", "r", "--quiet").code == 0
    (here / "imported").unlink()
    del sys.modules["own_env"]
    said = succeeded(proximo("report", "r")).out
    assert not (here / "imported").exists()
    assert "Replays left out: this run's env, own_env:Env, is code" in said
    assert "proximo report r --env own_env:Env" in said
    found = embedded("r/report.html")
    assert not found["replays"]
    assert "type: proximo report r --env own_env:Env" in found["behaviour_notes"][0]
    succeeded(proximo("report", "r", "--env", own_env))
    assert (here / "imported").exists()
    found = embedded("r/report.html")
    assert [clip["label"] for clip in found["replays"]] == ["First", "Best"]
    assert found["behaviour"][0]["return_mean"] == 10


def test_an_env_that_cannot_be_shown_costs_the_replays_alone(here, own_env):
    text = (here / "own_env.py").read_text().replace('["rgb_array"]', '["ansi"]')
    (here / "own_env.py").write_text(text)
    assert train_in(own_env, "--run-dir", "r", "--quiet").code == 0
    said = succeeded(proximo("report", "r", "--env", own_env)).out
    assert "Replays left out: " in said
    found = embedded("r/report.html")
    assert found["behaviour"]
    assert not found["replays"]


# ---- Where it is written --------------------------------------------------------------------


def test_a_report_replaces_a_report_and_nothing_else(here, trained):
    shutil.copytree(trained, "r")
    (here / "page.html").write_text("<p>mine")
    assert "is no report of Proximo" in refusal(
        proximo("report", "r", "--no-play", "--out", "page.html")
    )
    assert (here / "page.html").read_text() == "<p>mine"
    for _ in range(2):
        succeeded(proximo("report", "r", "--no-play"))
    assert MARK in (here / "r/report.html").read_text()[:512]
    (here / "r/report.html").rename("there.html")
    (here / "r/report.html").symlink_to(here / "there.html")
    before = (here / "there.html").stat().st_mtime_ns
    assert "exists" in refusal(proximo("report", "r", "--no-play"))
    assert (here / "there.html").stat().st_mtime_ns == before
    assert "no folder" in refusal(proximo("report", "r", "--out", "nowhere/page.html"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--live", "--out", "x.html"], "--live writes no file"),
        (["--port", "70000"], "--port is 70000: give a number from 0 to 65535"),
    ],
)
def test_flags_that_have_no_meaning_are_refused(trained, words, said):
    assert said in refusal(proximo("report", trained, *words))
    assert "name at least one run folder" in refusal(proximo("report"))


# ---- Text of somebody else's ----------------------------------------------------------------


def test_text_of_a_folder_stays_text(here, trained):
    run = hostile(trained, here)
    said = succeeded(proximo("report", run, "--out", "page.html")).out
    assert printable(said) == said
    text = (here / "page.html").read_text(encoding="utf-8")
    assert text.count("<script") == 3
    assert "<img" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    found = embedded("page.html")
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\u001b")
    assert found["runs"][0]["ended"] == shown
    assert shown in found["readings"]
    assert found["title"] == f"PPO on evil{shown}:Env"
    assert shown in found["behaviour_notes"][0]
    assert found["runs"][0]["log_cut"]
    assert len(found["runs"][0]["log"]) <= report.LOG_LINES


def test_the_page_may_ask_nothing_of_anybody():
    assert policy().startswith("default-src 'none'; ")
    assert "connect-src" not in policy()
    assert "unsafe" not in policy(live=True)
    assert "connect-src 'self'" in policy(live=True)


def test_no_script_of_the_page_writes_markup():
    source = (Path(report.__file__).parent / "page/page.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in source


def test_plain_text_and_numbers():
    value = {"a\x1b": [math.nan, -math.inf, 1.5, "\u202e"], "b": ("x", None, True)}
    assert plain(value) == {"a\\u001b": [None, None, 1.5, "\\u202e"], "b": ["x", None, True]}
    with pytest.raises(KeyError):
        page({})


@pytest.mark.parametrize("name", ["log", "samples.jsonl", "versions.json", "result.json"])
@pytest.mark.parametrize("trick", ["pipe", "folder", "endless"])
def test_files_that_are_none_are_left_out(here, trained, name, trick):
    shutil.copytree(trained, "r")
    place = here / "r" / name
    place.unlink(missing_ok=True)
    makers = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "endless": lambda path: path.symlink_to("/dev/zero"),
    }
    makers[trick](place)
    succeeded(proximo("report", "r", "--no-play"))


def test_a_folder_that_is_no_run_is_refused(here):
    (here / "empty").mkdir()
    assert "is no run folder" in refusal(proximo("report", "empty"))
    with pytest.raises(UsageError, match="no run folder"):
        read_runs(["empty"])


def test_the_code_of_others_in_the_page_is_what_its_authors_published():
    place, root = Path(report.__file__).parent / "page", Path(__file__).parents[2]
    said = (root / "SECURITY.md").read_text(encoding="utf-8")
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() in said
    assert "uPlot (v1.6.32)" in (place / "uPlot.iife.min.js").read_text()[:100]
    assert "MIT License" in (place / "uPlot.LICENSE").read_text()
