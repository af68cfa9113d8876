"""`proximo eval`: seeded scores, the same every time."""

import json
import re
import shutil
import sys

import pytest
import torch

from commands.command_line import proximo, refusal, succeeded, train_in

KEYS = [
    "episodes",
    "return_mean",
    "return_std",
    "return_min",
    "return_max",
    "length_mean",
    "seed",
    "deterministic",
    "checkpoint",
]


def scores(run, *words):
    """The one object that `eval --json` prints."""
    return json.loads(succeeded(proximo("eval", run, "--json", "--episodes", "5", *words)).out)


def test_json_prints_one_object_with_these_keys(trained):
    assert list(scores(trained)) == KEYS


def test_json_says_what_was_played(trained):
    found = scores(trained)
    assert found["episodes"] == 5
    assert found["deterministic"] is True
    assert found["checkpoint"] == "last"
    assert found["return_min"] <= found["return_mean"] <= found["return_max"]
    assert found["return_mean"] == found["length_mean"]  # 1 per step


def test_a_hundred_episodes_unless_told_otherwise(trained):
    assert "100 episodes from seed" in succeeded(proximo("eval", trained)).out


def test_the_same_command_gives_the_same_scores(trained):
    assert scores(trained) == scores(trained)


def test_a_small_network_acts_on_one_thread_whatever_it_was_trained_on(here, trained):
    shutil.copytree(trained, here / "r")
    config = (here / "r/config.toml").read_text()
    (here / "r/config.toml").write_text(re.sub(r"\nthreads = 1\n", "\nthreads = 2\n", config))
    assert "threads = 2" in (here / "r/config.toml").read_text()
    assert scores("r") == scores(trained)
    torch.set_num_threads(2)
    scores("r")
    assert torch.get_num_threads() == 1


def test_another_seed_gives_other_episodes(trained):
    one, other = (scores(trained, "--episodes", "20", "--seed", seed) for seed in ("1", "2000"))
    assert (one.pop("seed"), other.pop("seed")) == (1, 2000)
    assert one != other


def test_episode_i_starts_from_seed_plus_i(trained):
    whole = scores(trained, "--seed", "7")
    parts = [scores(trained, "--episodes", "1", "--seed", str(7 + i)) for i in range(5)]
    returns = [part["return_mean"] for part in parts]
    assert whole["return_mean"] == pytest.approx(sum(returns) / 5)
    assert whole["return_max"] == max(returns)


def test_the_best_policy_can_be_asked_for(here, trained):
    assert scores(trained, "--checkpoint", "best")["checkpoint"] == "best"
    swapped = here / "swapped"
    shutil.copytree(trained, swapped)
    kept = swapped / "checkpoints"
    shutil.copy(kept / "update-0.safetensors", kept / "best.safetensors")
    last, best = (scores(swapped, "--checkpoint", name) for name in ("last", "best"))
    assert last["return_mean"] != best["return_mean"]


def test_sampled_actions_are_reproducible_and_differ_from_the_most_likely_ones(trained):
    drawn = scores(trained, "--stochastic")
    assert drawn["deterministic"] is False
    assert drawn == scores(trained, "--stochastic")
    assert drawn["return_mean"] != scores(trained)["return_mean"]


def test_scores_are_readable_without_json(trained):
    said = succeeded(proximo("eval", trained, "--episodes", "2", "--seed", "3")).out
    assert "return " in said
    assert "2 episodes from seed 3, most likely actions, last policy" in said


def test_evaluating_changes_nothing_in_the_folder(trained):
    def content():
        return {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}

    before = content()
    scores(trained)
    assert content() == before


def test_an_env_of_ones_own_needs_its_name_again(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", "--quiet"))
    (here / "imported").unlink()
    del sys.modules["own_env"]

    message = refusal(proximo("eval", "r"))
    assert f"proximo eval r --env {own_env}" in message
    assert not (here / "imported").exists()

    assert scores("r", "--env", own_env)["return_mean"] == 10
    assert (here / "imported").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--episodes", "0"], ["--episodes", "0", "at least 1"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--checkpoint", "first"], ["--checkpoint", "first", "last", "best"]),
        (["--env", "CartPoll-v1"], ["CartPoll-v1", "CartPole-v1"]),
        (["--env", "Pendulum-v1"], ["Pendulum-v1", "(3,)", "(4,)"]),
    ],
    ids=["no episodes", "a seed below 0", "no such checkpoint", "no such env", "unfit env"],
)
def test_eval_refuses(trained, words, parts):
    message = refusal(proximo("eval", trained, *words))
    for part in parts:
        assert part in message
