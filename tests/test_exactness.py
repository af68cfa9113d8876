"""The same command gives the same bits, and a run that was interrupted is none the wiser."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

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
    load,
    train,
)
from proximo.envs.compiled import obstacle
from proximo.envs.make import make_envs
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

TIMES = ("seconds", "steps_per_second", "env_time_fraction", "env_step_seconds")
OWN = f"native:{Path(__file__).parents[1] / 'examples' / 'catch.c'}"
TASKS = {
    "CartPole-v1": {},
    "Pendulum-v1": {
        "net": NetConfig(normalize_returns=True),
        "algorithm": {"optimizer": "rmsprop"},
        "run": {"engine": "torch"},
    },
    "LunarLander-v3": {"algorithm": {"normalize_reward": True, "critic_learning_rate": 1e-3}},
    "HalfCheetah-v5": {
        "net": NetConfig(normalize_obs=True),
        "algorithm": {"normalize_reward": True},
    },
    "Acrobot-v1": {"net": NetConfig(recurrent="lstm", recurrent_size=8)},
    OWN: {"net": NetConfig(normalize_obs=True)},
}
if NOT_COMPILED := obstacle(EnvConfig(id="CartPole-v1")):
    del TASKS[OWN]
LINEAGE = {
    "reinforce": Reinforce(learning_rate=1e-2),
    "qac": QActorCritic(normalize_reward=True),
    "a2c": A2C(),
    "trpo": TRPO(epochs=2, minibatch_size=7),
    "ppo-penalty": PPOPenalty(epochs=2, minibatch_size=7, kl_target=1e-4),
    "ppo-by-kl": PPO(epochs=2, minibatch_size=7, desired_kl=1e-4),
}


def go(env, run_dir, callbacks=(), episodes=0, **more):
    task = TASKS[env]
    settings = {"learning_rate": "linear:1e-3:0", "epochs": 2, "minibatch_size": 32}
    return train(
        EnvConfig(id=env, num_envs=3, max_episode_steps=37, **more),
        PPO(**(settings | task.get("algorithm", {}))),
        rollout=RolloutConfig(steps=32, episodes=episodes),
        net=task.get("net"),
        run_config=RunConfig(
            total_steps=12 * 96,
            save_every=5,
            eval_every=4,
            eval_episodes=2,
            **task.get("run", {}),
        ),
        seed=3,
        run_dir=run_dir,
        callbacks=callbacks,
    )


def metrics(folder):
    rows = RunFolder(folder).read_metrics()
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def checkpoints(folder):
    """All but those that were `last` before: when that was is a matter of the clock."""
    files = sorted((folder / "checkpoints").iterdir())
    return {p.name: p.read_bytes() for p in files if not p.name.startswith("last-")}


@pytest.mark.parametrize("env", TASKS)
def test_the_same_seed_gives_the_same_metrics_and_the_same_bytes(env, tmp_path):
    for name in ("a", "b"):
        go(env, tmp_path / name)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    names = [f"{n}.safetensors" for n in ("best", "last", "update-0", "update-10", "update-5")]
    assert list(checkpoints(tmp_path / "a")) == names


@pytest.mark.skipif(bool(NOT_COMPILED), reason=NOT_COMPILED)
@pytest.mark.parametrize("episodes", [0, 4])
def test_compiled_envs_give_the_metrics_and_bytes_of_gymnasiums(episodes, tmp_path):
    """A run of the one, too, that is resumed with the other."""
    env = "CartPole-v1"
    for backend in ("sync", "native"):
        go(env, tmp_path / backend, episodes=episodes, backend=backend)
    go(env, tmp_path / "auto", [lambda state, rollout, metrics: state.updates == 4], episodes)
    folder = RunFolder.open(tmp_path / "auto")
    config = folder.read_config()
    assert config.env.backend == "native"
    config = replace(config, env=replace(config.env, backend="sync"))
    saved = Checkpoint(folder.checkpoint("last"))
    run_control(make_session(config, folder=folder, resume=saved))
    wholes = [metrics(tmp_path / name) for name in ("sync", "native", "auto")]
    assert wholes[0] == wholes[1] == wholes[2]
    wholes = [checkpoints(tmp_path / name) for name in ("sync", "native", "auto")]
    assert wholes[0] == wholes[1] == wholes[2]


@pytest.mark.parametrize("env", TASKS)
@pytest.mark.parametrize("episodes", [0, 4])
def test_a_run_resumed_at_any_update_ends_as_if_it_had_never_stopped(env, episodes, tmp_path):
    go(env, tmp_path / "straight", episodes=episodes)
    updates = len(metrics(tmp_path / "straight"))
    stop = random.Random(env).randrange(1, updates)
    parts = tmp_path / "parts"
    go(env, parts, [lambda state, rollout, metrics: state.updates == stop], episodes)
    assert len(metrics(parts)) == stop
    folder = RunFolder.open(parts)
    with folder.metrics_file.open("a") as file:  # a row past the checkpoint, and a torn one
        file.write(json.dumps({"update": stop + 1, "steps": 1}) + "\n" + '{"update": 9')
    saved = Checkpoint(folder.checkpoint("last"))
    session = make_session(folder.read_config(), folder=folder, resume=saved)
    assert not any("cannot be brought back" in note for note in session.log.setup_notes)
    run_control(session)
    assert metrics(parts) == metrics(tmp_path / "straight")
    straight, resumed = checkpoints(tmp_path / "straight"), checkpoints(parts)
    assert straight == resumed


@pytest.mark.parametrize("name", LINEAGE)
@pytest.mark.parametrize(
    ("env", "rollout"),
    [
        ("CartPole-v1", RolloutConfig(steps=7)),
        ("Pendulum-v1", RolloutConfig(steps=7)),
        ("CartPole-v1", RolloutConfig(episodes=2)),
    ],
)
def test_every_algorithm_resumes_as_if_it_had_never_stopped(name, env, rollout, tmp_path):
    def begin(folder, callbacks=()):
        train(
            EnvConfig(id=env, num_envs=3, max_episode_steps=17),
            LINEAGE[name],
            rollout=rollout,
            net=NetConfig(normalize_obs=True),
            total_steps=12 * 21,
            seed=3,
            run_dir=folder,
            callbacks=callbacks,
        )

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    begin(straight)
    begin(stopped, [lambda state, rollout, metrics: state.updates == 5])
    folder = RunFolder.open(stopped)
    saved = Checkpoint(folder.checkpoint("last"))
    assert saved.updates == 5
    assert (saved.tensors.get("ahead") is not None) == (name == "qac")
    run_control(make_session(folder.read_config(), folder=folder, resume=saved))
    assert metrics(stopped) == metrics(straight)
    mine, theirs = checkpoints(stopped), checkpoints(straight)
    assert mine["last.safetensors"] == theirs["last.safetensors"]
    if name == "ppo-penalty":
        assert Checkpoint(folder.checkpoint("last")).record["beta"] not in (None, 1.0)
    if name == "ppo-by-kl":
        assert Checkpoint(folder.checkpoint("last")).record["rate_scale"] != 1.0


def test_what_was_loaded_is_aligned_as_what_was_computed(tmp_path):
    """By the address of its numbers modulo 16 a product may differ in its last bits."""
    go("Acrobot-v1", tmp_path / "run", [lambda state, rollout, metrics: True])
    tensors = Checkpoint(RunFolder(tmp_path / "run").checkpoint("last")).tensors
    assert tensors["recurrent_state"].data_ptr() % 64 == 0
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors.values())


def test_another_seed_gives_other_bytes(tmp_path):
    algorithm = PPO(epochs=1)
    for seed in (1, 2):
        train("CartPole-v1", algorithm, total_steps=1024, seed=seed, run_dir=tmp_path / str(seed))
    first, second = (checkpoints(tmp_path / str(seed)) for seed in (1, 2))
    assert first["update-0.safetensors"] != second["update-0.safetensors"]


def test_envs_that_do_not_answer_as_before_are_noticed():
    config = EnvConfig(id="Pendulum-v1", num_envs=2)
    envs = make_envs(config, 0)
    state = envs.start()
    state.obs = state.obs + 1
    assert not envs.restore(state)
    assert state.episode.tolist() == [1, 1]
    assert np.isfinite(state.obs).all()


def test_a_loaded_policy_acts_as_the_trained_one(tmp_path):
    agent = go("HalfCheetah-v5", tmp_path / "run")
    again = load(tmp_path / "run")
    for _ in range(10):
        obs = agent.obs_space.sample()
        obs = np.clip(obs, -5, 5)
        np.testing.assert_array_equal(agent.act(obs), again.act(obs))
    assert again.action_space == agent.action_space
    assert again.obs_space == agent.obs_space


def test_a_vector_env_resumes_in_new_episodes_and_says_so(tmp_path):
    env = EnvConfig(id="CartPole-v1", num_envs=4, backend="vector")

    def go(folder, stop):
        return train(
            env,
            PPO(epochs=1, minibatch_size=64),
            rollout=RolloutConfig(steps=32),
            total_steps=1024,
            run_dir=folder,
            callbacks=[lambda state, rollout, metrics: state.updates == stop],
        )

    go(tmp_path / "run", stop=4)
    folder = RunFolder.open(tmp_path / "run")
    begun = make_session(folder.read_config()).state.envs.obs
    session = make_session(
        folder.read_config(), folder=folder, resume=Checkpoint(folder.checkpoint("last"))
    )
    assert any("cannot be brought back" in note for note in session.log.setup_notes)
    # Not the beginnings that the run has seen already.
    assert not np.array_equal(session.state.envs.obs, begun)
    agent = run_control(session)
    assert agent.result["steps"] >= 1024


@pytest.mark.parametrize(("stop", "whole"), [(1, True), (3, False)])
def test_an_episode_that_is_too_long_to_be_replayed_is_not_kept_and_the_resumed_run_says_so(
    stop, whole, monkeypatch, tmp_path
):
    monkeypatch.setattr("proximo.envs.base.REPLAYED", 40)
    most = []

    def look(state, rollout, metrics):
        most.append(max(sum(map(len, log)) for log in state.envs.actions))
        return state.updates == stop

    train(
        EnvConfig(id="Pendulum-v1", num_envs=2, max_episode_steps=100),
        PPO(epochs=1, minibatch_size=32),
        rollout=RolloutConfig(steps=32),
        total_steps=2 * 32 * 4,
        run_dir=tmp_path / "r",
        callbacks=[look],
    )
    assert max(most) <= 40
    folder = RunFolder.open(tmp_path / "r")
    saved = Checkpoint(folder.checkpoint("last"))
    session = make_session(folder.read_config(), folder=folder, resume=saved)
    said = "these envs cannot be brought back (episodes of more than 100,000 steps are not)"
    assert any(said in note for note in session.log.setup_notes) == (not whole)
    assert session.state.envs.length.tolist() == [32 if whole else 0] * 2
    # It is kept again from the next beginning on.
    run_control(session)
    assert session.state.envs.actions[0] or session.state.envs.length[0] > 40
