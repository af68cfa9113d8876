"""Rules of health: each comes first in rows that are sick in its way; none applies to others."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from proximo import PPO, EnvConfig, resume, train
from proximo.run.config import Config, RolloutConfig, RunConfig, to_tables
from proximo.run.folder import RunFolder
from proximo.run.health import CONTROL, LANGUAGE, HealthMonitor, diagnose, diagnose_run, rule_name
from proximo.run.history import KEPT, History, thinned

UPDATES = 40
PAGE = Path(__file__).parents[1] / "docs/health.md"


DEFAULTS = to_tables(Config.of({"env": {"id": "CartPole-v1"}}, {"run.total_steps": 1024 * UPDATES}))


def settings(**changed):
    """Tables of a run of PPO in CartPole, with env__num_envs=8 and the like."""
    return with_changes(copy.deepcopy(DEFAULTS), changed)


def with_changes(tables, changed):
    for name, value in changed.items():
        section, _, setting = name.partition("__")
        tables.setdefault(section, {})[setting] = value
    return tables


def rows(count=UPDATES, **changed):
    """Rows of a healthy run. changed: a number, or a function of (update, share of the run)."""
    found = []
    for update in range(1, count + 1):
        share = update / UPDATES
        row = {
            "update": update,
            "steps": 1024 * update,
            "episodes": 20 * update,
            "return_latest": 20 + 300 * share + 20 * math.sin(update),
            "return_mean": 20 + 300 * share,
            "length_mean": 20 + 300 * share,
            "success_rate": 0.0,
            "best": 20 + 300 * share,
            "approx_kl": 0.01,
            "clip_fraction": 0.1,
            "entropy": 0.69 - 0.2 * share,
            "explained_variance": 0.8 * share,
            "value_loss": 10.0,
            "grad_norm": 2.0,
            "learning_rate": 3e-4,
            "clip": 0.2,
            "entropy_coef": 0.0,
        }
        if update % 4 == 1:
            row |= {
                "reward_max": 1.0,
                "reward_std": 0.5,
                "reward_nonzero": 1.0,
                "value_target_rms": 20.0,
                "value_target_std": 5.0,
                "advantage_std": 3.0,
                "acting_entropy": 0.69 - 0.2 * share,
                "obs_scale_min": 0.2,
                "obs_scale_max": 3.0,
                "truncated_fraction": 0.1,
                "length_max": 500.0,
                "longest_fraction": 0.1,
                "longest_terminated_fraction": 0.05,
                "almost_longest_fraction": 0.1,
                "grad_clip_fraction": 0.9,
                "env_time_fraction": 0.5,
                "env_step_seconds": 1e-4,
            }
        for name, value in changed.items():
            row[name] = value(update, share) if callable(value) else value
        found.append(row)
    return found


LOST = {"return_mean": lambda u, x: 20.0 if u < 3 else 9.0, "return_latest": 9.0}
FLAT = {"return_mean": 20.0, "return_latest": lambda u, x: 20 + math.sin(u), "best": 21.0}
SAME = {"return_mean": -50.0, "return_latest": -50.0, "length_mean": 50.0, "best": -50.0}
LIMIT = {
    "longest_fraction": 0.9,
    "longest_terminated_fraction": 0.9,
    "almost_longest_fraction": 0.0,
    "length_max": 200.0,
    "truncated_fraction": 0.0,
}
FELL = dict.fromkeys(
    ["return_mean", "return_latest"], lambda u, x: 20 + 300 * math.sin(math.pi * x)
)

# rule: changes of the rows, and of the settings
SICK = {
    "env-never-pays": ({"reward_max": 0.0, "return_mean": 0.0, "best": 0.0}, {}),
    "reward-scale": ({"reward_max": 1e4}, {}),
    "observations-unscaled": ({"obs_scale_max": 300.0}, {}),
    "time-limit-as-termination": (LIMIT, {}),
    "all-end-by-time-limit": ({**SAME, "truncated_fraction": 1.0}, {}),
    "discount-too-short": ({}, {"algorithm__gamma": 0.5}),
    "entropy-low-from-start": ({"acting_entropy": 0.01}, {}),
    "kl-over-target": ({"approx_kl": 0.4}, {}),
    "actions-saturated": ({"action_saturation": 0.7, "entropy": 1.0}, {}),
    "learning-rate-spent": ({"learning_rate": lambda u, x: max(0.0, 3e-4 * (1 - 5 * x))}, {}),
    "gradient-always-clipped": (
        {"grad_norm": 2.0, "grad_clip_fraction": 1.0},
        {"algorithm__max_grad_norm": 1e-6},
    ),
    "entropy-not-falling": ({"entropy": 0.68, "entropy_coef": 1.0}, {}),
    "clip-saturated": ({"clip_fraction": 0.7}, {}),
    "critic-steps-too-large": (
        {"explained_variance": lambda u, x: 0.6 * (u % 2), "critic_learning_rate": 1.0},
        {},
    ),
    "value-loss-exploding": ({"explained_variance": -1000.0}, {}),
    "kl-under-target": ({"approx_kl": 1e-9}, {}),
    "advantages-flat": (
        {
            "reward_std": 0.0,
            "reward_max": 0.01,
            "truncated_fraction": 1.0,
            "value_target_rms": 0.5,
            "value_loss": 0.01,
            "value_target_std": 0.1,
        },
        {"env__reward_clip": 0.01},
    ),
    "clip-nil": ({**FLAT, "clip_fraction": 0.0}, {}),
    "evaluation-differs": ({"evaluation": 5.0}, {}),
    "critic-useless": ({"explained_variance": 0.01}, {"algorithm__value_coef": 0.0}),
    "env-bottleneck": (
        {"env_time_fraction": 0.95, "env_step_seconds": 0.01},
        {"env__backend": "sync"},
    ),
    "entropy-collapsed": ({**FLAT, "entropy": lambda u, x: 0.69 * math.exp(-20 * x)}, {}),
    "return-fell": (FELL, {}),
    "too-few-steps": ({}, {"run__total_steps": 1024 * UPDATES // 2}),
    "return-stalled": (FLAT, {"env__id": "module:Env"}),
}


def test_a_policy_that_one_update_has_ruined_is_found():
    ruined = rows(**LOST, approx_kl=lambda u, x: 0.9 if u == 1 else 0.0, clip_fraction=0.0)
    assert first(diagnose(ruined, settings(env__id="module:Env"))) == "kl-over-target"


def test_a_pile_of_episodes_at_the_limit_is_found_before_most_get_there():
    module = settings(env__id="module:Env")
    shares = {"longest_fraction": 0.2, "longest_terminated_fraction": 0.2}
    piled = {**LIMIT, **shares, "almost_longest_fraction": 0.3}
    assert first(diagnose(rows(**piled), module)) == "time-limit-as-termination"
    assert diagnose(rows(**{**piled, "almost_longest_fraction": 0.5}), module) == []
    assert diagnose(rows(**{**piled, "length_max": lambda u, x: 200.0 + u % 9}), module) == []
    # Rollouts without a truncation may be those that were measured.
    assert diagnose(rows(**{**piled, "longest_terminated_fraction": 0.01}), module) == []


def first(found):
    return found[0].rule if found else ""


@pytest.mark.parametrize("name", SICK)
def test_a_rule_comes_first_where_its_fault_is(name):
    changed, set_to = SICK[name]
    of_few = {} if name == "too-few-steps" else {"env__id": "module:Env"}
    until = UPDATES // 2 if name in ("learning-rate-spent", "too-few-steps") else UPDATES
    found = diagnose(rows(until, **changed), settings(**{**of_few, **set_to}))
    assert first(found) == name
    assert found[0].link == f"docs/health.md#{name}"
    assert 1 <= found[0].update <= UPDATES
    for text in (found[0].evidence, found[0].cause, found[0].remedy):
        assert text == text.strip() != ""
        assert "nan" not in text.split()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, UPDATES])
def test_no_rule_applies_to_healthy_rows(count):
    assert diagnose(rows(count), settings(env__id="module:Env")) == []


def test_rows_without_further_readings_have_no_findings():
    """As those of earlier versions, and of algorithms without a critic, a clip or an entropy."""
    lean = [{k: row[k] for k in ("update", "steps", "episodes", "return_mean")} for row in rows()]
    assert diagnose(lean, settings(env__id="module:Env")) == []
    nothing = [{"update": i, "steps": i, "episodes": 0, "return_mean": None} for i in (1, 2, 3)]
    assert diagnose(nothing, {}) == []
    assert diagnose([], {}) == []


@pytest.mark.parametrize(
    ("changed", "set_to"),
    [
        # what looks alike, and is as it should be
        ({"reward_max": 1e4}, {"algorithm__normalize_reward": True}),
        ({"obs_scale_max": 300.0}, {"net__normalize_obs": True}),
        ({**LIMIT, "truncated_fraction": 1.0}, {}),
        ({**LIMIT, "longest_terminated_fraction": 0.0}, {}),
        ({"explained_variance": -0.02}, {}),
        ({"approx_kl": lambda u, x: 0.01 if u < 25 else 1e-9}, {}),
        ({**LIMIT, "length_max": lambda u, x: 300.0 if u < 10 else 30.0}, {}),
        ({"learning_rate": lambda u, x: 3e-4 * (1.001 - x)}, {}),
        ({"entropy": lambda u, x: 0.69 * math.exp(-9 * x)}, {}),
        ({"explained_variance": -20.0, "value_target_std": 0.01, "length_mean": 500.0}, {}),
        ({"clip": lambda u, x: 0.2 * (1.001 - x), "clip_fraction": 0.3}, {}),
        ({"env_time_fraction": 0.95, "env_step_seconds": 1e-4}, {"env__backend": "sync"}),
        ({"evaluation": lambda u, x: 30 + 300 * x}, {}),
        ({"approx_kl": lambda u, x: 0.9 if u == 7 else 0.01}, {}),
        ({"value_target_rms": 8.0}, {"algorithm__gamma": 0.9}),
        ({"critic_learning_rate": 0.01, "explained_variance": 0.5}, {}),
        (
            {"critic_learning_rate": 0.1, "explained_variance": lambda u, x: min(0.8, 4 * x)},
            {},
        ),
        (
            {"critic_learning_rate": 1.0, "explained_variance": 0.5},
            {"algorithm__optimizer": "sgd"},
        ),
    ],
)
def test_what_looks_like_a_fault_has_no_finding(changed, set_to):
    assert diagnose(rows(**changed), settings(**{"env__id": "module:Env", **set_to})) == []


def language(**changed):
    tables = {
        "lm": {"stage": "ppo"},
        "algorithm": {"name": "ppo", "advantage": "gae", "max_grad_norm": 1.0, "value_coef": 0.1},
        "kl": {"coef": 0.05, "target": "none"},
        "sampling": {"max_tokens": 32},
        "run": {"updates": UPDATES},
    }
    return with_changes(tables, changed)


def language_rows(count=UPDATES, **changed):
    found = []
    for update in range(1, count + 1):
        share = update / UPDATES
        row = {
            "update": update,
            "tokens": 500 * update,
            "episodes": 64 * update,
            "score": share,
            "score_std": 0.3,
            "kl": 0.1 + share,
            "beta": 0.05,
            "length": 12.0,
            "stopped": 0.9,
            "entropy": 2.0,
            "repetition": 0.1,
            "sampling_gap": 1e-6,
            "approx_kl": 0.01,
            "clip_fraction": 0.1,
            "learning_rate": 1e-5,
            "clip": 0.2,
            "grad_norm": 1.0,
            "grad_clip_fraction": 0.5,
        }
        for name, value in changed.items():
            row[name] = value(update, share) if callable(value) else value
        found.append(row)
    return found


def falls(u, x):
    return 0.5 * math.sin(math.pi * x) if u % 2 == 0 else None


SICK_LANGUAGE = {
    "scores-all-equal": ({"score": 0.0, "score_std": 0.0}, {}),
    "zero-variance-groups": (
        {"zero_variance_groups": 1.0, "score": 0.0, "score_std": 0.0},
        {"algorithm__advantage": "grpo"},
    ),
    "reward-hacking": ({"held_out_score": falls}, {}),
    "eos-lost": ({"stopped": lambda u, x: 0.9 * math.exp(-9 * x)}, {}),
    "length-explosion": ({"length": lambda u, x: 4 + 20 * x}, {}),
    "length-collapse": ({"length": lambda u, x: max(1.0, 12 - 20 * x)}, {}),
    "repetition": ({"repetition": lambda u, x: x}, {}),
    "kl-over-target": ({"approx_kl": 0.5}, {}),
    "learning-rate-spent": ({"learning_rate": lambda u, x: max(0.0, 1e-5 * (1 - 5 * x))}, {}),
    "kl-running-away": ({"kl": lambda u, x: 20 * x, "beta": 0.0}, {}),
    "gradient-always-clipped": ({"grad_norm": 1e4, "grad_clip_fraction": 1.0}, {}),
    "clip-saturated": ({"clip_fraction": 0.8}, {}),
    "value-loss-exploding": (
        {"explained_variance": -1e3, "value_target_std": 1.0, "value_target_rms": 1.0},
        {},
    ),
    "kl-under-target": ({"approx_kl": 1e-9}, {}),
    "sampling-differs": ({"sampling_gap": 0.02}, {}),
}


@pytest.mark.parametrize("name", SICK_LANGUAGE)
def test_a_rule_of_language_comes_first_where_its_fault_is(name):
    changed, set_to = SICK_LANGUAGE[name]
    until = UPDATES // 2 if name == "learning-rate-spent" else UPDATES
    found = diagnose(language_rows(until, **changed), language(**set_to))
    assert first(found) == name


@pytest.mark.parametrize(("until", "name"), [(0.3, "repetition"), (2.0, "eos-lost")])
def test_what_came_first_is_named_first_where_completions_repeat_themselves_and_never_end(
    until, name
):
    both = {
        "stopped": lambda u, x: 0.9 * math.exp(-9 * x),  # a tenth at 0.26
        "repetition": lambda u, x: min(0.9, 0.1 + x / until),
    }
    assert first(diagnose(language_rows(**both), language())) == name


@pytest.mark.parametrize("count", [1, 3, 8, UPDATES])
def test_no_rule_applies_to_healthy_rows_of_language(count):
    assert diagnose(language_rows(count), language()) == []
    assert diagnose([{"update": 1, "tokens": 9, "loss": 1.0}], {"lm": {"stage": "sft"}}) == []


HOSTILE = [None, "text", True, -1, 1e300, -1e300, 2**63, float("inf")]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_no_reading_or_setting_breaks_a_rule(value):
    """Rows of metrics.jsonl and config.toml may come from elsewhere."""
    for make, tables_of, sick in (
        (rows, settings, SICK),
        (language_rows, language, SICK_LANGUAGE),
    ):
        names = sorted(make()[0].keys() - {"update"})
        for i, (changed, set_to) in enumerate(sick.values()):
            for name in names[i % 3 :: 3]:  # each with some, all with each third rule
                diagnose(make(12, **{**changed, name: value}), tables_of(**set_to))
            for section, table in tables_of().items():
                forged = {name: value for name in table if name != "stage"}
                diagnose(make(12, **changed), {**tables_of(), section: {**table, **forged}})
    lacking = [{k: x for k, x in row.items() if k != "learning_rate"} for row in rows()]
    for changed, set_to in SICK.values():
        found = diagnose([{**row, **constants(changed)} for row in lacking], settings(**set_to))
        assert all(finding.evidence for finding in found)


def constants(changed):
    return {name: value for name, value in changed.items() if not callable(value)}


def test_every_rule_has_a_case_here_and_a_paragraph_on_the_page():
    assert set(SICK) == set(map(rule_name, CONTROL))
    assert set(SICK_LANGUAGE) == set(map(rule_name, LANGUAGE))
    headings = [line[4:] for line in PAGE.read_text().splitlines() if line.startswith("### ")]
    assert {rule_name(rule) for rule in (*CONTROL, *LANGUAGE)} <= set(headings)
    assert len(headings) == len(set(headings))


def test_a_long_history_is_thinned_evenly_and_keeps_the_last_row():
    many = rows(10 * KEPT)
    kept = thinned(many)
    assert len(kept) <= 2 * KEPT + 1
    assert kept[-1] is many[-1]
    assert sum("env_time_fraction" in row for row in kept) > KEPT / 2
    updates = np.array([row["update"] for row in kept])
    assert (np.diff(updates) > 0).all()
    assert np.diff(updates).max() <= 20
    assert thinned(many[:5]) == many[:5]


def test_a_history_says_what_is_early_recent_and_missing():
    history = History(rows(value_loss=lambda u, x: float(u)), settings())
    assert history.first("value_loss") == 1
    assert history.early("value_loss") == 2
    assert history.recent("value_loss") == 35
    assert math.isnan(history.recent("no such reading"))
    assert history.setting("algorithm.gamma") == 0.99
    assert history.setting("algorithm.nothing", 3) == 3


SICK_RUN = {
    "algorithm": PPO(learning_rate=1.0, epochs=2, minibatch_size=64),
    "rollout": RolloutConfig(steps=64),
    "num_envs": 2,
    "total_steps": 4096,
}


def quick(callbacks=(), run_dir=None, **changed):
    options = {**SICK_RUN, **changed}
    return train("CartPole-v1", run_dir=run_dir, callbacks=callbacks, **options)


def test_a_sick_run_says_so_once_in_all_places(tmp_path, capsys):
    seen = []
    watch = [lambda state, rollout, row: seen.append((row["update"], row.get("health", "")))]
    agent = quick(watch, tmp_path / "run")
    (finding,) = [x for x in agent.result["health"] if x["rule"] == "kl-over-target"]
    assert agent.result["health"][0] == finding
    assert "--algorithm.learning-rate 0.0003" in finding["remedy"]
    told = [update for update, names in seen if "kl-over-target" in names.split(", ")]
    assert told == [8]
    line = "health: kl-over-target: "
    assert capsys.readouterr().err.count(line) == 1
    folder = RunFolder.open(tmp_path / "run")
    assert folder.log_file.read_text().count(line) == 1
    assert json.loads(folder.result_file.read_text())["health"] == agent.result["health"]
    assert {row["health"] for row in folder.read_metrics() if "health" in row} >= {seen[7][1]}
    assert diagnose_run(folder)[0].rule == "kl-over-target"


def test_a_resumed_run_does_not_say_it_again(tmp_path, capsys):
    quick([lambda state, rollout, row: state.updates == 16], tmp_path / "run")
    assert "kl-over-target" in capsys.readouterr().err
    agent = resume(tmp_path / "run")
    assert "kl-over-target" not in capsys.readouterr().err
    assert agent.result["health"][0]["rule"] == "kl-over-target"


def test_health_changes_no_weight(tmp_path, monkeypatch):
    one = quick()
    monkeypatch.setattr(HealthMonitor, "__call__", lambda *args: None)
    monkeypatch.setattr("proximo.run.measurements.Measurements.due", lambda *args: False)
    other = quick()
    for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        assert a.equal(b)


def test_an_update_is_measured_early_and_then_every_few_thousand_steps():
    config = RunConfig(total_steps=18_432)
    rows = []
    train(
        EnvConfig(id="Pendulum-v1", num_envs=4, backend="sync", check=False),
        PPO(epochs=1),
        rollout=RolloutConfig(steps=512),
        run_config=config,
        callbacks=[lambda state, rollout, row: rows.append(dict(row))],
    )
    measured = {row["update"]: row for row in rows if "reward_max" in row}
    assert set(measured) == {1, 2, 5, 9}
    row = measured[9]
    assert 0 < row["reward_std"] < row["reward_max"] <= 17
    assert row["reward_nonzero"] == 1
    assert row["value_target_std"] < row["value_target_rms"]
    assert row["advantage_std"] > 0
    assert row["acting_entropy"] == pytest.approx(row["entropy"], abs=0.1)
    assert 0.9 < row["obs_scale_min"] <= 1 < row["obs_scale_max"] <= 8
    assert row["truncated_fraction"] == 1
    assert (row["length_max"], row["longest_fraction"]) == (200, 1)
    assert row["longest_terminated_fraction"] == row["almost_longest_fraction"] == 0
    assert row["grad_clip_fraction"] == 1
    assert 0 < row["env_time_fraction"] < 1
    assert 0 < row["env_step_seconds"] < 0.1
    assert 0 < row["action_saturation"] < 0.5


def test_the_clipped_gradient_steps_are_counted_alike_by_native_and_torch():
    found = []
    for engine in ("native", "torch"):
        rows = []
        quick(
            [lambda state, rollout, row, rows=rows: rows.append(dict(row))],
            algorithm=PPO(max_grad_norm=16.3, epochs=2, minibatch_size=32),
            run_config=RunConfig(engine=engine),
            total_steps=512,
        )
        found.append([row.get("grad_clip_fraction") for row in rows])
    assert found[0] == found[1]
    assert any(0 < x < 1 for x in found[0] if x is not None)


@pytest.mark.parametrize("stop", [5, 8, 13])
def test_a_resumed_run_is_looked_at_where_a_straight_one_is(stop):
    def looked(first, last, rows):
        found = list[int]()
        monitor = HealthMonitor({}, rows, lambda text: None)
        monitor._look = lambda row: found.append(row["update"])
        for update in range(first, last):
            row = {"update": update, "steps": 7000 * update}
            monitor(None, None, row)
            rows.append(row)
        return found

    rows = []
    parts = looked(1, stop, rows) + looked(stop, 40, rows)
    assert parts == looked(1, 40, []) == [3, 5, 8, 10, 13, 17, 23, 30, 32]
