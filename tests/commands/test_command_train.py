"""`proximo train`: what it reads, what it says and what it leaves behind."""

import io
import json
import sys
import tomllib

import pytest
from safetensors.torch import load_file

from commands.command_line import (
    proximo,
    refusal,
    result,
    rows,
    run_folders,
    succeeded,
    timeless,
    train,
    train_in,
)
from proximo.cli import main


def config(run):
    return tomllib.loads((run / "config.toml").read_text())


def policy(run, name):
    tensors = load_file(run / "checkpoints" / f"{name}.safetensors")
    return {key: value for key, value in tensors.items() if key.startswith("policy.")}


def same_policy(a, b):
    return a.keys() == b.keys() and all(bool((a[key] == b[key]).all()) for key in a)


# What a run leaves behind


@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "metrics.jsonl",
        "log",
        "versions.json",
        "result.json",
        "checkpoints/update-0.safetensors",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    ],
)
def test_a_run_leaves(trained, name):
    assert (trained / name).stat().st_size > 0


def test_nothing_else_lies_among_the_checkpoints(trained):
    found = {path.stem for path in (trained / "checkpoints").iterdir()}
    assert found == {"update-0", "last", "last-1", "best"}


def test_the_result_says_how_it_ended(trained):
    ended = result(trained)
    assert ended["stopped_by"] == "total_steps"
    assert (ended["updates"], ended["steps"]) == (8, 512)
    last = rows(trained)[-1]
    for key in ("episodes", "return_mean", "length_mean", "return_smoothed", "best"):
        assert ended[key] == last[key]


def test_the_versions_name_what_a_result_depends_on(trained):
    versions = json.loads((trained / "versions.json").read_text())
    assert versions.keys() >= {"proximo", "python", "torch", "numpy", "gymnasium", "commit"}


def test_the_configuration_is_written_with_everything_resolved(trained):
    written = config(trained)
    assert list(written) == ["algorithm", "rollout", "env", "net", "run"]
    assert written["run"]["device"] == "cpu"
    assert written["run"]["threads"] == 1
    assert written["env"]["id"] == "CartPole-v1"


def test_metrics_have_a_row_per_update_with_what_the_display_shows(trained):
    assert [row["update"] for row in rows(trained)] == list(range(1, 9))
    shown = "return_mean best approx_kl clip_fraction entropy explained_variance steps_per_second"
    for row in rows(trained):
        assert row.keys() >= set(shown.split())


def test_a_configuration_file_gives_the_same_run_again(here, trained):
    succeeded(proximo("train", "--config", trained / "config.toml", "--run-dir", "again"))
    assert timeless("again") == timeless(trained)
    last = "checkpoints/last.safetensors"
    assert (here / "again" / last).read_bytes() == (trained / last).read_bytes()
    assert config(here / "again") == config(trained)


def test_what_is_typed_goes_before_a_configuration_file(here, trained):
    file = trained / "config.toml"
    succeeded(
        proximo("train", "--config", file, "--run-dir", "r", "--seed", "5", "--total-steps", "64")
    )
    assert config(here / "r")["run"] == config(trained)["run"] | {"seed": 5, "total_steps": 64}


def test_what_is_typed_is_judged_together_with_the_configuration_file(here):
    flags = ("--run.eval-every", "2", "--run.eval-episodes", "1")
    succeeded(train("--run-dir", "r", *flags, steps=64))
    words = ("--config", "r/config.toml", "--run.keep-best", "evaluation", "--run-dir", "again")
    succeeded(proximo("train", *words))
    assert config(here / "again")["run"]["keep_best"] == "evaluation"


def test_the_best_policy_by_evaluation(here):
    flags = ("--run.keep-best", "evaluation", "--run.eval-every", "2", "--run.eval-episodes", "2")
    succeeded(train("--run-dir", "r", *flags))
    scores = [row["evaluation"] for row in rows("r") if "evaluation" in row]
    assert len(scores) == 4
    assert result(here / "r")["best"] == max(scores)
    assert (here / "r/checkpoints/best.safetensors").exists()


def test_another_seed_gives_another_run(here, trained):
    succeeded(
        proximo("train", "--config", trained / "config.toml", "--run-dir", "r", "--seed", "1")
    )
    assert timeless("r") != timeless(trained)


def test_runs_without_a_name_are_numbered(here):
    for _ in range(3):
        succeeded(train("--seed", "4", steps=64))
    names = ["CartPole-v1-ppo-seed4", "CartPole-v1-ppo-seed4-2", "CartPole-v1-ppo-seed4-3"]
    assert run_folders(here) == [here / "runs" / name for name in names]


def test_numbered_checkpoints_and_sparse_metrics(here):
    succeeded(train("--run-dir", "r", "--run.log-every", "3", "--run.save-every", "4"))
    assert [row["update"] for row in rows("r")] == [3, 6, 8]  # the last one always
    found = {path.stem for path in (here / "r/checkpoints").iterdir()}
    assert found == {"update-0", "update-4", "update-8", "last", "last-1", "best"}


# Presets and settings

FEW = ("--total-steps", "500", "--algorithm.epochs", "1")


def test_a_tuned_preset_is_used_and_named(here):
    said = succeeded(proximo("train", "ppo", "CartPole-v1", *FEW, "--run-dir", "r")).out
    assert "preset cartpole" in said
    assert "--preset none" in said
    assert config(here / "r")["algorithm"]["gamma"] == 0.98


def test_a_preset_names_its_source(here):
    said = succeeded(proximo("train", "ppo", "CartPole-v1", *FEW)).out
    assert "()" not in said


def test_presets_can_be_turned_off(here):
    said = succeeded(train("--run-dir", "r", steps=64)).out
    assert "cartpole" not in said
    assert config(here / "r")["algorithm"]["gamma"] == 0.99


def test_a_named_preset_needs_neither_algorithm_nor_env(here):
    said = succeeded(proximo("train", "--preset", "cartpole", *FEW, "--run-dir", "r")).out
    assert "ppo on CartPole-v1" in said
    assert config(here / "r")["env"]["id"] == "CartPole-v1"


def test_a_named_preset_can_be_used_on_another_env(here):
    words = ("ppo", "Acrobot-v1", "--preset", "cartpole", *FEW, "--run-dir", "r")
    succeeded(proximo("train", *words))
    assert config(here / "r")["env"]["id"] == "Acrobot-v1"
    assert config(here / "r")["algorithm"]["lam"] == 0.8


def test_what_is_typed_goes_before_a_preset_even_where_it_is_the_plain_default(here):
    words = ("--algorithm.gamma", "0.99", "--env.num-envs", "5", "--algorithm.minibatch-size", "64")
    succeeded(proximo("train", "ppo", "CartPole-v1", *FEW, *words, "--run-dir", "r"))
    written = config(here / "r")
    assert written["algorithm"]["gamma"] == 0.99
    assert written["env"]["num_envs"] == 5
    assert written["algorithm"]["lam"] == 0.8  # the preset's own, which was not typed


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("3e-4", 3e-4, 3e-4),
        ("linear:1e-3:0", 1e-3, 1e-3 / 8),
        ("linear:1e-3:0:5e-4", 1e-3, 5e-4),
        ("cosine:1e-3:1e-4", 1e-3, 1.3425420e-4),
    ],
)
def test_schedules_have_a_text_form(here, text, first, last):
    succeeded(train("--run-dir", "r", "--algorithm.learning-rate", text, "--quiet"))
    rates = [row["learning_rate"] for row in rows("r")]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last)


def test_clip_and_entropy_can_be_scheduled_too(here):
    flags = ("--algorithm.clip", "linear:0.2:0.1", "--algorithm.entropy-coef", "linear:0.02:0")
    succeeded(train("--run-dir", "r", *flags, steps=128))
    assert [row["clip"] for row in rows("r")] == pytest.approx([0.2, 0.15])
    assert [row["entropy_coef"] for row in rows("r")] == pytest.approx([0.02, 0.01])
    assert config(here / "r")["algorithm"]["clip"] == "linear:0.2:0.1"


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("algorithm", "max_grad_norm"),
        ("algorithm", "target_kl"),
        ("algorithm", "critic_learning_rate"),
        ("env", "reward_clip"),
        ("env", "max_episode_steps"),
        ("run", "stop_at"),
    ],
)
def test_what_can_be_off_is_turned_off_by_none(here, section, setting):
    flag = f"--{section}.{setting}".replace("_", "-")
    succeeded(train("--run-dir", "r", flag, "none", steps=64))
    assert config(here / "r")[section][setting] == "none"


def test_the_device_is_chosen_and_explained(here):
    assert "device: cpu (small networks are faster there" in succeeded(train(steps=64)).out


# Envs


def test_arguments_reach_the_env(here):
    flags = ("--env.kwargs", "sutton_barto_reward", "True")
    succeeded(train("--run-dir", "r", *flags))
    assert result("r")["return_mean"] == -1  # 0 per step and -1 at the end, instead of 1 per step
    assert config(here / "r")["env"]["kwargs"] == {"sutton_barto_reward": True}


def test_a_time_limit_of_ones_own(here):
    succeeded(train("--run-dir", "r", "--env.max-episode-steps", "5"))
    assert result("r")["return_mean"] == result("r")["length_mean"] == 5


def test_rewards_are_shifted_then_scaled_then_clipped_and_returns_are_shown_as_they_were(here):
    # Every reward of CartPole is 1, so these are three ways to make it 2.
    ways = (
        ("--env.reward-scale", "2"),
        ("--env.reward-shift", "3", "--env.reward-scale", "0.5"),
        ("--env.reward-scale", "10", "--env.reward-clip", "2"),
    )
    for number, way in enumerate(ways):
        succeeded(train("--run-dir", f"r{number}", *way))
    succeeded(train("--run-dir", "plain"))
    assert timeless("r0") == timeless("r1") == timeless("r2")
    assert rows("r0")[0]["value_loss"] > 2 * rows("plain")[0]["value_loss"]
    assert rows("r0")[0]["return_mean"] == rows("plain")[0]["return_mean"]


def test_the_return_that_solves_the_task_is_shown(here):
    said = succeeded(train("--run-dir", "r", steps=64)).out
    assert "counts as solved from a return of 475" in said
    assert rows("r")[0]["success_rate"] == 0


def test_an_env_of_ones_own(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r"))
    assert result("r")["return_mean"] == 10
    assert config(here / "r")["env"]["id"] == "own_env:Env"


def test_a_configuration_with_an_env_of_ones_own_needs_its_name_again(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", "--quiet"))
    (here / "imported").unlink()
    del sys.modules["own_env"]

    message = refusal(proximo("train", "--config", "r/config.toml", "--run-dir", "again"))
    assert "type: proximo train --config r/config.toml" in message
    assert message.endswith(f"--env {own_env}")
    assert not (here / "imported").exists()
    assert not (here / "again").exists()

    words = ("--config", "r/config.toml", "--run-dir", "again", "--env", own_env)
    succeeded(proximo("train", *words))
    assert (here / "imported").exists()
    assert timeless("again") == timeless("r")
    words = ("--config", "r/config.toml", "--run-dir", "third", "--env.id", own_env)
    succeeded(proximo("train", *words))


# Where it starts and where it ends


def test_it_ends_early_at_a_return(here):
    said = succeeded(train("--run-dir", "r", "--stop-at", "5", steps=64_000)).out
    ended = result("r")
    assert ended["stopped_by"] == "stop_at"
    assert ended["steps"] < 64_000
    assert rows("r")[-1]["evaluation"] == ended["evaluation"] >= 5
    assert "64,000 steps" in said
    smoothed = f"the smoothed return, {ended['return_smoothed']:.1f}"
    assert f"{smoothed}, and an evaluation of 20 episodes, {ended['evaluation']:.1f}, re" in said
    assert f"return {ended['return_mean']:.1f} (last 100 episodes of training" in said


def test_a_return_out_of_reach_ends_nothing(here):
    succeeded(train("--run-dir", "r", "--stop-at", "1e6"))
    assert result("r")["stopped_by"] == "total_steps"
    assert "evaluation" not in rows("r")[-1]


def test_it_starts_from_the_policy_of_another_run(here, trained):
    said = succeeded(train("--run-dir", "r", "--from", trained, steps=64)).out
    assert f"policy and network: from {trained}" in said
    assert same_policy(policy(here / "r", "update-0"), policy(trained, "last"))
    assert not same_policy(policy(here / "r", "last"), policy(trained, "last"))
    assert rows("r")[0]["update"] == 1


# What it says


def test_plain_lines_where_the_output_is_no_terminal(here):
    said = succeeded(train("--run-dir", "r")).out
    assert "\x1b" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("512/512 steps")]
    for reading in ("return", "best", "KL", "clip fraction", "entropy", "explained variance"):
        assert f"  {reading} " in line
    assert "steps/s" in line
    assert line.endswith("left")
    assert "run folder: r" in said


def test_the_speed_of_a_run_of_one_update_is_told_truly(here):
    said = succeeded(train("--run-dir", "r", steps=64)).out
    measured = rows("r")[0]["steps_per_second"]
    assert f"{measured:,.0f} steps/s" in said


def test_a_panel_in_a_terminal(here, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    words = "train ppo CartPole-v1 --preset none --total-steps 512 --rollout.steps 64 --run-dir r"
    assert main(words.split()) == 0
    assert "512 of 512 steps" in screen.getvalue()
    assert "explained variance" in screen.getvalue()
    assert "512/512 steps" in (here / "r/log").read_text()


def test_quiet_prints_nothing(here):
    said = succeeded(train("--run-dir", "r", "--quiet"))
    assert said.out == ""


def test_the_log_keeps_what_was_said(here):
    said = succeeded(train("--run-dir", "r", steps=64)).out
    log = (here / "r/log").read_text()
    for line in said.splitlines()[:3]:
        assert line in log
