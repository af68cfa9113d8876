"""Every algorithm and every teaching system from the command line, by all of their names."""

import pytest

from commands.command_line import proximo, refusal, result, rows, succeeded
from proximo.run.config import ALGORITHMS, ALIASES
from proximo.run.presets import presets

QUICK = ("--preset", "none", "--env.num-envs", "2", "--rollout.steps", "64")
BY_NAME = [preset.name for preset in presets() if preset.by_name]


@pytest.mark.parametrize("name", [*ALGORITHMS, *ALIASES])
def test_every_algorithm_trains_and_is_evaluated_by_every_name(here, name):
    words = ("--total-steps", "256", "--run-dir", "run", "--quiet", *QUICK)
    succeeded(proximo("train", name, "CartPole-v1", *words))
    assert f'name = "{ALIASES.get(name, name)}"' in (here / "run" / "config.toml").read_text()
    assert len(rows("run")) == 2
    scores = succeeded(proximo("eval", "run", "--episodes", "2"))
    assert "return" in scores.out
    succeeded(proximo("resume", "run", "--total-steps", "384", "--quiet"))
    assert len(rows("run")) == 3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_help_has_the_flags_of_the_algorithm(name, capsys):
    text = proximo("train", name, "CartPole-v1", "--help").out
    own = {
        "reinforce": "--algorithm.critic",
        "qac": "--algorithm.critic-learning-rate",
        "a2c": "--algorithm.lam",
        "trpo": "--algorithm.max-kl",
        "ppo-penalty": "--algorithm.kl-target",
        "ppo": "--algorithm.dual-clip",
    }
    assert own[name] in text
    assert ("--algorithm.max-kl" in text) == (name == "trpo")
    assert ("--algorithm.clip-high" in text) == (name == "ppo")


def test_a_flag_of_another_algorithm_is_refused(here):
    message = refusal(proximo("train", "a2c", "CartPole-v1", "--algorithm.max-kl", "0.1"))
    assert "--algorithm.max-kl" in message


def test_a_setting_that_would_do_nothing_is_refused(here):
    words = ("--algorithm.learning-rate", "0.1")
    message = refusal(proximo("train", "trpo", "CartPole-v1", *words))
    assert "does nothing where the algorithm is trpo" in message


def test_a_configuration_of_another_algorithm_is_refused(here):
    words = ("--total-steps", "256", "--run-dir", "run", "--quiet", *QUICK)
    succeeded(proximo("train", "ppo", "CartPole-v1", *words))
    message = refusal(proximo("train", "a2c", "--config", "run/config.toml"))
    assert "run/config.toml is for ppo, not a2c" in message
    again = ("--config", "run/config.toml", "--run-dir", "again", "--quiet")
    succeeded(proximo("train", "ppo2", *again))


def test_a_run_that_ended_by_its_episodes_is_finished_and_can_be_extended(here):
    words = ("--run.total-episodes", "3", "--run-dir", "run", "--quiet")
    succeeded(proximo("train", "--preset", "teaching-cartpole", *words))
    before = rows("run")
    said = succeeded(proximo("resume", "run")).out
    assert "ended early at its --run.total-episodes" in said
    assert rows("run") == before
    steps = before[-1]["steps"] + 100
    succeeded(proximo("resume", "run", "--total-steps", str(steps), "--quiet"))
    assert rows("run")[-1]["steps"] >= steps


def test_runs_with_different_thresholds_are_drawn_together(here):
    for seed, more in (("1", ()), ("2", ("--run.success-at", "-200"))):
        words = ("--total-steps", "1600", "--seed", seed, "--run-dir", f"run{seed}", "--quiet")
        succeeded(proximo("train", "ppo", "Pendulum-v1", *QUICK, *words, *more))
    succeeded(proximo("plot", "run1", "run2"))


def test_the_profile_counts_the_steps_of_every_algorithm(here):
    for name in ("trpo", "qac"):
        words = ("--total-steps", "512", "--run-dir", name, "--run.profile")
        succeeded(proximo("train", name, "CartPole-v1", *QUICK, *words))
        phases = result(name)["profile"]["phases"]
        assert phases["update"]["share"] > phases["readings"]["share"]


def test_what_is_not_there_has_no_reading(here):
    succeeded(proximo("train", "a2c", "CartPole-v1", "--total-steps", "256", *QUICK))
    (run,) = (here / "runs").iterdir()
    assert "clip_fraction" not in rows(run)[-1]
    assert {"approx_kl", "entropy", "explained_variance"} <= rows(run)[-1].keys()
    succeeded(proximo("plot", run))


def test_without_a_critic_there_is_none_to_report(here):
    words = ("--total-steps", "256", "--algorithm.no-critic", "--run-dir", "run", "--quiet")
    succeeded(proximo("train", "reinforce", "CartPole-v1", *QUICK, *words))
    assert not {"value_loss", "explained_variance"} & rows("run")[-1].keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_teaching_system_is_one_command(here, name):
    limit = ("--total-steps", "600", "--run.total-episodes", "3")
    succeeded(proximo("train", "--preset", name, *limit, "--run-dir", "run", "--quiet"))
    assert result("run")["episodes"] >= 3
    assert result("run")["stopped_by"] in ("total_episodes", "total_steps")


def test_it_ends_after_so_many_episodes(here):
    words = ("--run.total-episodes", "20", "--run-dir", "run")
    out = succeeded(proximo("train", "--preset", "teaching-cartpole", *words)).out
    assert result("run")["stopped_by"] == "total_episodes"
    assert result("run")["episodes"] == len(rows("run")) == 20
    assert "counts as solved from a return of 195" in out


def test_the_smoothed_return_starts_where_it_is_told(here):
    words = ("--run.total-episodes", "1", "--run-dir", "run", "--quiet")
    succeeded(proximo("train", "--preset", "teaching-cartpole", "--run.smoothed-from", "0", *words))
    row = rows("run")[0]
    assert row["return_smoothed"] == pytest.approx(0.1 * row["return_latest"])
