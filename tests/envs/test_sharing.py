"""Nothing that an env holds is ours, and nothing of ours is the env's: the bits show it."""

import importlib.util

import numpy as np
import pytest
import torch

from envs.sharing_envs import ACTIONS, MODES, Pair, Single, Vector, spoil, vector
from envs.test_tensors import Drift
from proximo import PPO, EnvConfig, RolloutConfig, RunConfig, load, train
from proximo.envs.make import make_env
from proximo.evaluation import evaluate_policy
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.run.monitors import TRAINING_EVALUATION_SEED

TIMES = {"seconds", "steps_per_second", "env_time_fraction", "env_step_seconds"}
UPDATES = 5


def kept(folder):
    """All numbers of a run: its last checkpoint and its metrics."""
    folder = RunFolder(folder)
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in folder.read_metrics()]
    saved = Checkpoint(folder.checkpoint("last"))
    return {**saved.tensors, "record": {**saved.record, "spaces": None}, "rows": rows}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def go(env, folder, stop=0, **run):
    return train(
        env,
        PPO(epochs=2, minibatch_size=16),
        rollout=RolloutConfig(steps=16),
        run_config=RunConfig(total_steps=2 * 16 * UPDATES, seed=3, **run),
        run_dir=folder,
        callbacks=[lambda state, rollout, metrics: state.updates == stop],
    )


def single(how, actions, backend="sync"):
    return EnvConfig(
        id="envs.sharing_envs:Single",
        kwargs={"how": how, "actions": actions},
        num_envs=2,
        backend=backend,
    )


def scores(agent, env):
    """Returns of an evaluation, deterministic and drawn."""
    return [
        evaluate_policy(
            agent.policy, make_env(env), episodes=4, seed=5, deterministic=d
        ).returns.tolist()
        for d in (True, False)
    ]


@pytest.mark.parametrize("actions", ACTIONS)
def test_an_env_that_keeps_changes_and_reuses_its_arrays_gives_the_bits_of_one_that_copies(
    actions, tmp_path
):
    evaluations = {"eval_every": 2, "eval_episodes": 2}
    right = single("copies", actions)
    expected = scores(go(right, tmp_path / "copies", **evaluations), right)
    for how in ("keeps", "changes"):
        env, folder = single(how, actions), tmp_path / how
        go(env, folder, stop=2, **evaluations)  # and resume: the log holds what was sent
        run = RunFolder.open(folder)
        session = make_session(
            run.read_config(), folder=run, resume=Checkpoint(run.checkpoint("last"))
        )
        assert not any("cannot be brought back" in note for note in session.log.setup_notes)
        agent = run_control(session)
        assert_same(kept(folder), kept(tmp_path / "copies"))
        assert scores(agent, env) == expected


@pytest.mark.parametrize(("how", "actions"), [("keeps", "hybrid"), ("changes", "box")])
def test_so_it_is_in_processes(how, actions, tmp_path):
    evaluations = {"eval_every": 3, "eval_episodes": 2}
    go(single("copies", actions), tmp_path / "copies", **evaluations)
    go(single(how, actions, "workers"), tmp_path / how, **evaluations)
    assert_same(kept(tmp_path / how), kept(tmp_path / "copies"))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("actions", ACTIONS)
def test_so_it_is_with_vector_envs(mode, actions, tmp_path):
    for name, spoiling in (("copies", False), ("spoils", True)):
        go(vector(mode, actions, spoiling), tmp_path / name)
    assert_same(kept(tmp_path / "spoils"), kept(tmp_path / "copies"))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("actions", ["box", "hybrid"])
def test_so_it_is_with_envs_of_tensors(mode, actions, tmp_path):
    for name, made in (("copies", lambda x: x), ("spoils", Vector)):
        go(made(Drift(torch, mode, done=actions)), tmp_path / name)
    assert_same(kept(tmp_path / "spoils"), kept(tmp_path / "copies"))


@pytest.mark.skipif(not importlib.util.find_spec("pettingzoo"), reason="PettingZoo is an extra")
@pytest.mark.parametrize("how", ["keeps", "changes"])
def test_so_it_is_with_several_agents(how, tmp_path):
    def env(how):
        return EnvConfig(id=f"{Pair.__module__}:Pair", kwargs={"how": how}, num_envs=1)

    evaluations = {"eval_every": 1, "eval_episodes": 2}
    expected = scores(go(env("copies"), tmp_path / "copies", **evaluations), env("copies"))
    agent = go(env(how), tmp_path / how, **evaluations)
    assert_same(kept(tmp_path / how), kept(tmp_path / "copies"))
    assert scores(agent, env(how)) == expected
    # In training it is evaluated as it is afterwards: each agent by its own action.
    *_, last = RunFolder(tmp_path / how).read_metrics()
    policy, seed = load(tmp_path / how).policy, TRAINING_EVALUATION_SEED
    after = evaluate_policy(policy, make_env(env(how)), episodes=2, seed=seed)
    assert last["evaluation"] == pytest.approx(after.mean)


@pytest.mark.parametrize("actions", ACTIONS)
def test_what_an_agent_was_told_to_do_is_the_callers(actions):
    agent = train(lambda: Single(actions=actions), PPO(epochs=1, minibatch_size=16), total_steps=64)
    obs, _ = Single(actions=actions).reset(seed=1)
    before = {key: part.copy() for key, part in obs.items()}
    first = agent.act(obs)
    told = repr(first)
    spoil({"action": first})
    assert repr(agent.act(obs)) == told
    assert all(np.array_equal(obs[key], before[key]) for key in obs)
