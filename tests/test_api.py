"""Python does what the command line does: resume, start, evaluate, act on batches, save."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
import torch

import proximo
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, UsageError, load, train
from proximo.run.folder import RunFolder

SMALL = {"minibatch_size": 16, "epochs": 1}


def quick(env="CartPole-v1", algorithm=None, **more):
    settings = {"rollout": RolloutConfig(steps=16), "total_steps": 128, "num_envs": 2, "seed": 3}
    return train(env, algorithm or PPO(**SMALL), **{**settings, **more})


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def test_a_run_that_a_callback_ended_resumes_to_the_bit(tmp_path):
    whole = quick(run_dir=tmp_path / "whole")
    part = quick(run_dir=tmp_path / "part", callbacks=[lambda state, rollout, row: True])
    assert part.result["stopped_by"] == "callback"
    resumed = proximo.resume(tmp_path / "part")
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.result["stopped_by"] == "total_steps"
    again = proximo.resume(tmp_path / "part")  # it is over
    assert torch.equal(weights(again), weights(whole))
    further = proximo.resume(tmp_path / "part", total_steps=256)
    assert further.result["steps"] == 256


def test_a_run_in_an_env_of_a_program_is_resumed_with_it(tmp_path):
    def make():
        return gym.make("CartPole-v1")

    quick(make, run_dir=tmp_path / "run", callbacks=[lambda state, rollout, row: True])
    with pytest.raises(UsageError, match=r"made by a program: name it, as in resume\(.*env="):
        proximo.resume(tmp_path / "run")
    assert proximo.resume(tmp_path / "run", env=make).result["updates"] == 4
    assert len(proximo.evaluate(tmp_path / "run", make, episodes=1).returns) == 1


def test_training_begins_with_the_policy_and_network_of_a_run(tmp_path):
    first = quick(run_dir=tmp_path / "first", net=NetConfig(hidden=(8,)))
    begun = []
    quick(
        start=tmp_path / "first",
        run_dir=tmp_path / "second",
        callbacks=[lambda state, rollout, row: begun.append(state.policy) or True],
    )
    assert RunFolder.open(tmp_path / "second").read_config().net.hidden == (8,)
    saved = proximo.run.checkpoint.Checkpoint(RunFolder.open(tmp_path / "second").checkpoint(0))
    for name, value in first.policy.state_dict().items():
        assert torch.equal(saved.tensors[f"policy.{name}"], value)


def test_an_evaluation_is_that_of_the_command_line(tmp_path, capsys, monkeypatch):
    from proximo.cli import main

    agent = quick(run_dir=tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["proximo"])
    assert main(["eval", str(tmp_path / "run"), "--episodes", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for one in (agent, tmp_path / "run"):
        scores = proximo.evaluate(one, episodes=3)
        assert scores.summary() == {k: x for k, x in told.items() if k != "checkpoint"}
    env = gym.make("CartPole-v1")
    assert proximo.evaluate(agent, env, episodes=3).mean == scores.mean
    env.reset()  # it is left open
    with pytest.raises(UsageError, match="the observation space of Pendulum-v1 is"):
        proximo.evaluate(agent, "Pendulum-v1")
    with pytest.raises(UsageError, match="episodes is 0"):
        proximo.evaluate(agent, episodes=0)


def test_a_batch_of_observations_gets_an_action_for_each():
    agent = quick()
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    actions = agent.act(obs)
    assert actions.shape == (5,)
    assert actions.tolist() == [agent.act(one) for one in obs]
    assert agent.act(obs, deterministic=False).shape == (5,)
    for wrong in (obs[:, :3], obs[None], np.float32(1)):
        with pytest.raises(ValueError, match="one observation, or a batch"):
            agent.act(wrong)
    with pytest.raises(ValueError, match="not finite"):
        agent.act(obs * np.nan)


def test_a_batch_of_dicts_gets_dicts_of_actions():
    from proximo.envs.make import make_env

    class Both(gym.Env):
        observation_space = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(-1, 1, (2,)))
        action_space = gym.spaces.Dict(x=gym.spaces.Discrete(2), y=gym.spaces.Box(-1, 1, (1,)))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return self._seen(), {}

        def _seen(self):
            return {"a": self.np_random.integers(3), "b": np.zeros(2, np.float32)}

        def step(self, action):
            self.t += 1
            return self._seen(), 1.0, self.t == 8, False, {}

    agent = quick(Both)
    make_env(EnvConfig(), Both).close()
    obs = {"a": np.array([0, 2, 1]), "b": np.zeros((3, 2), np.float32)}
    actions = agent.act(obs)
    assert actions["x"].shape == (3,)
    assert actions["y"].shape == (3, 1)
    for i in range(3):
        one = agent.act({"a": obs["a"][i], "b": obs["b"][i]})
        assert one["x"] == actions["x"][i]
        np.testing.assert_allclose(one["y"], actions["y"][i], rtol=1e-5)


def test_each_row_of_a_batch_remembers_for_itself_and_forgets_when_it_is_reset():
    agent = quick(net=NetConfig(recurrent="lstm", recurrent_size=8, hidden=(8,)))
    alone = proximo.Agent(agent.policy, agent.config, (agent.obs_space, agent.action_space))
    obs = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    agent.reset()
    for t, both in enumerate(obs):
        if t == 3:
            agent.reset(np.array([True, False]))
        agent.act(both)
    state = agent._episodes.recurrent_state.clone()
    for i, begin in ((0, 3), (1, 0)):
        alone.reset()
        for t in range(begin, 6):
            alone.act(obs[t, i])
        torch.testing.assert_close(alone._episodes.recurrent_state[0], state[i])
    with pytest.raises(
        ValueError, match=r"has 1 observations, but the one before had 2.*reset\(\)"
    ):
        agent.act(obs[0, :1])
    agent.reset()
    agent.act(obs[0, 0])


def test_an_agent_is_saved_and_loads_as_it_was(tmp_path):
    agent = quick(net=NetConfig(normalize_obs=True))
    agent.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert torch.equal(weights(again), weights(agent))
    assert torch.equal(again.policy.obs_shift, agent.policy.obs_shift)
    assert (again.result["steps"], again.config) == (128, agent.config)
    with pytest.raises(UsageError, match="exists"):
        agent.save(tmp_path / "kept")
    with pytest.raises(UsageError, match="holds a policy and no more"):
        proximo.resume(tmp_path / "kept", total_steps=512)


def test_old_names_get_the_new_one(tmp_path):
    with pytest.raises(UsageError, match="train has no argument worlds: use num_envs"):
        train("CartPole-v1", PPO(), worlds=4)  # names of schema 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'sead'"):
        train("CartPole-v1", PPO(), sead=4)
    quick(run_dir=tmp_path / "run")
    file = tmp_path / "run/config.toml"
    text = file.read_text()
    config = RunFolder.open(tmp_path / "run").read_config()
    for new, old in (
        ("num_envs", "worlds"),  # names of schema 1
        ("recurrent", "memory"),  # names of schema 1
        ("bptt_steps", "memory_steps"),  # names of schema 1
        ("privileged", "critic_only"),  # names of schema 1
        ("std", "deviation"),  # names of schema 1
    ):
        assert f"\n{new} =" in text
        text = text.replace(f"\n{new} =", f"\n{old} =")
    file.write_text(text)
    (tmp_path / "run/result.json").write_text('{"doubts": ["one"], "steps": 1}')
    result = RunFolder.open(tmp_path / "run").read_result()
    assert result == {"warnings": ["one"], "steps": 1}
    assert RunFolder.open(tmp_path / "run").read_config() == config
    load(tmp_path / "run")


def test_an_agent_says_in_one_line_what_it_is(tmp_path):
    agent = quick(run_dir=tmp_path / "run")
    mean = f"{agent.result['return_mean']:.1f}"
    assert repr(agent) == f"Agent(ppo on CartPole-v1, 128 steps, return {mean})"
    assert repr(load(tmp_path / "run")) == "Agent(ppo on CartPole-v1, 128 steps)"
    page = agent._repr_html_()
    for part in ("ppo on CartPole-v1", "parameters", "Discrete(2)", "Box(", "updates", mean[:-2]):
        assert part in page
    bare = proximo.Agent(agent.policy, agent.config, (agent.obs_space, agent.action_space))
    assert repr(bare) == "Agent(ppo on CartPole-v1)"


def test_an_agent_of_a_hostile_name_is_text():
    agent = quick(lambda: gym.make("CartPole-v1"))
    assert repr(agent).startswith("Agent(ppo on an env of the program, 128 steps")
    hostile = "<script>alert(1)</script>\x1b[2J"
    config = dataclasses.replace(agent.config, env=EnvConfig(id=hostile))
    spaces = (agent.obs_space, agent.action_space)
    named = proximo.Agent(agent.policy, config, spaces, {"warnings": [hostile], hostile: hostile})
    assert "\x1b" not in repr(named) + named._repr_html_() + str(named.result)
    assert "<script>" not in named._repr_html_() + named.result._repr_html_()


def test_a_result_is_a_dict_that_prints_as_a_table():
    agent = quick()
    result = agent.result
    assert json.loads(json.dumps(result)) == result
    lines = str(result).splitlines()
    assert lines[0].split() == ["stopped", "by", "total_steps"]
    assert "episodes" in str(result)
    assert len({line.index(line.split()[-1]) for line in lines if "warning" not in line}) == 1
    shown = type(result)(steps=1_234_567, best=None, warnings=["one", "two"], finished=True)
    assert str(shown).splitlines() == [
        "steps     1,234,567",
        "best      -",
        "warnings  one",
        "          two",
        "finished  true",
    ]


def metrics(tmp_path, *rows):
    quick(run_dir=tmp_path / "run")
    file = tmp_path / "run/metrics.jsonl"
    if rows:
        file.write_text(
            "".join(
                json.dumps({"update": i, "seconds": 0.5, **row}) + "\n"
                for i, row in enumerate(rows, 1)
            )
        )
    return file


@pytest.fixture
def no_pandas(monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name == "pandas" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)


def test_metrics_are_arrays_by_name(tmp_path, no_pandas):
    metrics(tmp_path)
    table = proximo.read_metrics(tmp_path / "run")
    assert table["steps"].tolist() == [32, 64, 96, 128]
    assert table["steps"].dtype == table["update"].dtype == np.int64
    assert table["approx_kl"].dtype == np.float64
    assert {len(column) for column in table.values()} == {4}
    with pytest.raises(UsageError, match="is no run folder"):
        proximo.read_metrics(tmp_path)


def test_metrics_that_are_missing_are_nan_and_a_torn_row_is_left_out(tmp_path, no_pandas):
    rows = {"a": 1, "b": None, "health": "one"}, {"a": 2.5, "c": True}, {"a": 3, "c": False}
    file = metrics(tmp_path, *rows)
    with file.open("a") as log:
        log.write('{"update": 4, "seconds"')
    table = proximo.read_metrics(tmp_path / "run")
    assert list(table) == ["update", "seconds", "a", "b", "health", "c"]
    assert table["update"].tolist() == [1, 2, 3]
    assert table["a"].tolist() == [1.0, 2.5, 3.0]
    np.testing.assert_array_equal(table["b"], [np.nan] * 3)
    np.testing.assert_array_equal(table["c"], [np.nan, 1, 0])
    assert table["health"].tolist() == ["one", None, None]
    file.unlink()
    assert proximo.read_metrics(tmp_path / "run") == {}


def test_metrics_are_a_data_frame_where_pandas_is_installed(tmp_path, monkeypatch):
    pandas = types.ModuleType("pandas")
    pandas.__spec__ = importlib.machinery.ModuleSpec("pandas", None)
    pandas.DataFrame = lambda columns: ("a frame", columns)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    metrics(tmp_path, {"steps": 7})
    name, columns = proximo.read_metrics(tmp_path / "run")
    assert name == "a frame"
    assert columns["steps"].tolist() == [7]


def test_metrics_in_pandas_itself(tmp_path):
    pandas = pytest.importorskip("pandas")
    metrics(tmp_path, {"a": None, "health": "x"}, {"a": 2.0})
    frame = proximo.read_metrics(tmp_path / "run")
    assert isinstance(frame, pandas.DataFrame)
    assert frame["a"].isna().tolist() == [True, False]
    assert frame["update"].tolist() == [1, 2]
    assert frame["health"].tolist()[0] == "x"


def test_public_names_are_listed():
    assert set(proximo.__all__) <= set(dir(proximo))
    assert {"OnPolicy", "Batch", "Rollout", "TrainState", "Callback", "functional"} <= set(
        dir(proximo)
    )
    assert {"evaluate", "load", "read_metrics", "resume", "train", "__version__"} <= set(
        dir(proximo)
    )
    assert proximo.functional.__name__ == "proximo.functional"
