"""Envs of several agents: who has left is masked, and all of them teach one policy."""

import json
import re
import sys

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("pettingzoo")

from commands.command_line import SMALL, here, proximo, refusal, succeeded
from envs.parallel_envs import (
    Empty,
    High,
    Hollow,
    Leaving,
    Masked,
    Nobody,
    NoSeed,
    Sides,
    Silent,
    Stuck,
    Unequal,
    Unknown,
    Unseeded,
    answering,
)
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, UsageError, train
from proximo.envs.check import check_env
from proximo.envs.make import make_env, make_envs
from proximo.evaluation import evaluate_policy
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

__all__ = ["here"]


def pairs(episodes):
    """Returns and lengths, in order."""
    return sorted((episode.ret, episode.length) for episode in episodes)


def rollouts(env, *, num_envs=None, steps=8, updates=1, **settings):
    """What a short training learned from, and its agent."""
    seen = []
    agent = train(
        env,
        PPO(minibatch_size=1, epochs=1, normalize_advantage="none"),
        num_envs=num_envs,
        total_steps=10_000,
        callbacks=[lambda state, rollout, _: seen.append(rollout) or state.updates == updates],
        **{"rollout": RolloutConfig(steps=steps), **settings},
    )
    return seen, agent


def test_who_has_left_is_masked_until_the_env_begins_anew():
    (rollout,), agent = rollouts(Leaving, num_envs=1)
    assert rollout.mask.T.int().tolist() == [[1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]]
    assert rollout.reward.T.tolist() == [[1, 1, 0, 0, 0, 1, 1, 0], [10] * 8]
    assert rollout.terminated.nonzero().tolist() == [[1, 0], [6, 0]]
    early, late = rollout.boundary.T.int().tolist()
    assert early == [0, 1, 1, 1, 1, 0, 1, 1]
    assert late == [0, 0, 0, 0, 1, 0, 0, 0]
    assert rollout.obs[:, 1, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert rollout.obs[:, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 1, 0]
    # The true successors: early after 2 steps, late after 5, early again.
    assert rollout.final_index.tolist() == [1 * 2 + 0, 4 * 2 + 1, 6 * 2 + 0]
    assert rollout.final_obs[:, 0].tolist() == [2, 5, 2]
    assert pairs(rollout.episodes) == [(2.0, 2), (2.0, 2), (50.0, 5)]
    assert agent.result["steps"] == 4 + 8  # nobody counts a step that was not taken


def test_an_episode_goes_on_over_rollouts_and_through_a_time_limit():
    seen, agent = rollouts(Leaving, num_envs=2, steps=2, updates=5)
    assert [pairs(rollout.episodes) for rollout in seen] == [
        [(2.0, 2)] * 2,
        [],
        [(50.0, 5)] * 2,
        [(2.0, 2)] * 2,
        [(50.0, 5)] * 2,
    ]
    assert agent.result["steps"] == 2 * 7 * 2
    limited = EnvConfig(id="envs.parallel_envs:Leaving", num_envs=1, max_episode_steps=3)
    (rollout,), _ = rollouts(limited, steps=6)
    assert pairs(rollout.episodes) == [(2.0, 2), (2.0, 2), (30.0, 3), (30.0, 3)]
    assert rollout.terminated.nonzero().tolist() == [[1, 0], [4, 0]]


def test_whole_episodes_are_those_of_each_agent():
    (rollout,), _ = rollouts(Leaving, num_envs=1, rollout=RolloutConfig(episodes=3))
    assert pairs(rollout.episodes) == [(2.0, 2), (2.0, 2), (50.0, 5)]


def test_evaluation_plays_every_agent():
    env = make_env(EnvConfig(), Leaving)
    scores = evaluate_policy(lambda obs: np.int64(0), env, episodes=2, seed=0)
    assert pairs(scores.episodes) == [(2.0, 2)] * 2 + [(50.0, 5)] * 2


def test_masks_hold_for_each_agent_and_none_is_asked_of_those_who_left():
    (rollout,), agent = rollouts(Masked, num_envs=1)
    assert (rollout.action[rollout.mask] == 1).all()
    env = make_env(EnvConfig(), Masked)
    scores = evaluate_policy(agent.policy, env, episodes=1, seed=0, deterministic=False)
    assert pairs(scores.episodes) == [(2.0, 2), (50.0, 5)]


@pytest.mark.parametrize(
    "recurrent", [{}, {"recurrent": "gru", "recurrent_size": 8}], ids=["none", "gru"]
)
def test_shared_parameters_learn_what_each_agent_sees(recurrent):
    agent = train(
        Sides,
        PPO(gamma=0.5, learning_rate=1e-2, epochs=4, minibatch_size=64),
        total_steps=6_000,
        rollout=RolloutConfig(steps=32),
        net=NetConfig(hidden=(16,), **recurrent),
    )
    scores = evaluate_policy(agent.policy, make_env(EnvConfig(), Sides), episodes=20, seed=5)
    assert scores.returns.tolist() == [4.0] * 40
    assert scores.episodes[0][:2] == (4.0, 4)


@pytest.mark.parametrize(
    "recurrent", [{}, {"recurrent": "lstm", "recurrent_size": 8}], ids=["none", "lstm"]
)
def test_a_resumed_run_goes_on_to_the_bit(tmp_path, recurrent):
    def go(folder, stop):
        train(
            EnvConfig(id="envs.parallel_envs:Sides", num_envs=3),
            PPO(epochs=2, minibatch_size=16),
            rollout=RolloutConfig(steps=7),
            net=NetConfig(**recurrent),
            total_steps=300,
            seed=3,
            run_dir=folder,
            callbacks=[lambda state, rollout, _: state.updates == stop],
        )

    go(tmp_path / "straight", None)
    go(tmp_path / "parts", 4)
    folder = RunFolder.open(tmp_path / "parts")
    saved = Checkpoint(folder.checkpoint("last"))
    session = make_session(folder.read_config(), folder=folder, resume=saved)
    assert session.log.setup_notes[0] == "agents: 2 in each env, acting by one policy"
    assert not any("cannot be brought back" in note for note in session.log.setup_notes)
    run_control(session)
    last = [(tmp_path / run / "checkpoints/last.safetensors") for run in ("straight", "parts")]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Unequal, r"action space of agent 'early' is Discrete\(2\), but that of 'late' is Discr"),
        (Nobody, r"leaving has no possible_agents: its __init__ must name all that ever act in it"),
    ],
)
def test_what_cannot_share_a_policy_is_refused(env, message):
    with pytest.raises(UsageError, match=message):
        train(env, PPO(), total_steps=100)


def found_in(one_env, **env):
    return check_env(make_env(EnvConfig(**env), one_env), seconds=20.0)


@pytest.mark.parametrize("env", [Leaving, Masked, Sides, High])
def test_the_check_plays_each_agent_until_it_leaves(env):
    found = found_in(env)
    assert found.notes == []
    assert found.replayable
    assert found.episodes == 2
    if env is not Sides:  # two episodes of five steps, and the first one again
        assert found.steps == 15
        assert found_in(env, max_episode_steps=3).steps == 9


class Both(Leaving):
    def observation_space(self, agent):
        return gym.spaces.Box(0, 9, (1,), np.uint8)

    def see(self):
        return {agent: seen / 2 for agent, seen in super().see().items()}


class ThreeThings(Leaving):
    def step(self, actions):
        return super().step(actions)[:3]


HERE = "step 3 of episode 0 for agent 'late'"
WRONG = {
    "nan": (Hollow, [f"the observation[0] = nan at {HERE}", "finite"]),
    "shape": (answering(obs=np.zeros(2)), ["of shape (2,)", "says (1,)", f"(at {HERE})"]),
    "fractions": (Both, ["[0.5] at step 0 of episode 0 for agent 'early'", "dtype of float32"]),
    "reward": (answering(reward=None), [f"reward must be one number, but it is None at {HERE}"]),
    "flag": (answering(terminated=None), [f"its terminated is None at {HERE}", "True or False"]),
    "mask": (
        Stuck,
        ["action_mask, [0 0], allows no action for step 4 of episode 0 for agent 'late'"],
    ),
    "three": (ThreeThings, ["step must return (observations, rewards, ", "(dict, dict, dict)"]),
    "silent": (Silent, ["nothing to its agent 'late' at the reset of episode 0, of its observ"]),
    "unknown": (Unknown, ["agents hold 'third' at the reset", "possible_agents ('early', 'late')"]),
    "empty": (Empty, ["its agents are [] after the reset of episode 0: reset must fill agents"]),
    "no seed": (NoSeed, ["its reset takes no seed", "write def reset(self, *, seed=None"]),
}


@pytest.mark.parametrize(("env", "parts"), WRONG.values(), ids=WRONG)
def test_what_one_agent_cannot_learn_from_is_refused_before_training(env, parts):
    with pytest.raises(UsageError) as caught:
        train(env, PPO(), total_steps=100)
    assert str(caught.value).startswith("leaving cannot be trained in: ")
    for part in parts:
        assert part in str(caught.value)


class Vanishing(Leaving):
    def step(self, actions):
        seen, rewards, _, truncated, infos = super().step(actions)
        return seen, rewards, dict.fromkeys(actions, False), truncated, infos


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (answering(obs=np.array([900.0])), f"at {HERE}, the observation[0] was 900, outside"),
        (Unseeded, "reset with the same seed gives another observation"),
        (answering(truncated=0), f"truncated is 0 at {HERE}: give True or False"),
        (Vanishing, "agent 'early' is no longer in agents after step 1 of episode 0, but neither"),
    ],
)
def test_what_is_doubtful_of_one_agent_is_noted(env, words):
    (note,) = found_in(env).notes
    assert words in note
    _, agent = rollouts(env)
    assert agent.result["warnings"] == [f"the envs: {note}"]


def test_those_who_are_away_are_not_looked_at_for_their_bounds():
    _, agent = rollouts(High, num_envs=1, steps=4, updates=32)
    assert "warnings" not in agent.result


def test_envs_in_processes_are_checked_too():
    env = EnvConfig(id="envs.parallel_envs:Unseeded", backend="workers", num_envs=2)
    _, agent = rollouts(env)
    assert "reset with the same seed gives another observation" in agent.result["warnings"][0]


@pytest.mark.parametrize(
    ("base", "wrong", "words"),
    [
        (Leaving, Hollow, "agent 'late' of env 1 gave the observation[0] = nan at step 3 of"),
        (Masked, Stuck, "step 4 of update 1: the action_mask of agent 'late' of env 1 allows no"),
    ],
)
def test_a_fault_in_training_names_the_env_and_the_agent(base, wrong, words):
    made = iter([base(), wrong(), base()])  # the last one is for the check
    with pytest.raises(UsageError, match=re.escape(words)):
        rollouts(lambda: next(made), num_envs=2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Hollow", "env 0 failed after 3 steps of its episode 0 .* gave agent 'late' the obser"),
        ("Stuck", "action_mask of agent 'late' of env 0 allows no action"),
    ],
)
def test_so_does_one_in_a_process(name, words):
    settings = {"backend": "workers", "check": False, "restarts": 0}
    with pytest.raises(UsageError, match=words):
        rollouts(EnvConfig(id=f"envs.parallel_envs:{name}", num_envs=1, **settings))


class Nameless(Leaving):
    def __init__(self):
        super().__init__()
        self.metadata = None

    def close(self):
        raise RuntimeError("closed already")


def test_one_without_metadata_is_called_by_its_class(capsys):
    train(Nameless, PPO(minibatch_size=16), total_steps=64)
    assert "Nameless could not be closed: RuntimeError: closed already" in capsys.readouterr().err


def test_samples_are_counted_over_all_agents():
    settings = {"total_steps": 64, "rollout": RolloutConfig(steps=16), "num_envs": 1}
    train(Sides, PPO(minibatch_size=32, epochs=1), **settings)
    with pytest.raises(UsageError, match=r"env\.num_envs 1 x 2 agents x rollout\.steps 16"):
        train(Sides, PPO(minibatch_size=33), **settings)
    envs = make_envs(EnvConfig(num_envs=3), 0, Sides)
    assert (envs.count, envs.agents) == (6, 2)


def test_every_command_takes_an_env_of_pettingzoo(here):
    train_it = ("train", "ppo", "classic/rps-v2", *SMALL, "--run-dir", "run")
    done = succeeded(proximo(*train_it, "--total-steps", "256"))
    assert "agents: 2 in each env, acting by one policy" in done.out
    scores = json.loads(succeeded(proximo("eval", "run", "--episodes", "3", "--json")).out)
    assert (scores["episodes"], scores["length_mean"]) == (6, 15.0)  # two agents in each
    played = succeeded(proximo("play", "run", "--video", "run.gif")).out
    assert "return 0.00, 0.00" in played  # one policy, deterministic: it ties with itself
    assert (
        "cannot be brought back"
        not in succeeded(proximo("resume", "run", "--total-steps", "512")).out
    )
    shown = succeeded(proximo("check", "classic/rps-v2")).out
    assert "agents        2 in each env, acting by one policy" in shown
    assert "played        315 steps, 20 episodes to their end" in shown
    assert "nothing is wrong with it" in shown
    assert "classic/rps-v2?" in refusal(proximo("train", "ppo", "classic/rsp-v2"))


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(UsageError, match=r"pip install 'proximo\[pettingzoo\]'"):
        make_envs(EnvConfig(id="classic/rps-v2"), 0)
