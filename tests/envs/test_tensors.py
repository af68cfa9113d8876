"""Vector envs of tensors: the numbers of their NumPy twin, and no read before a rollout's end."""

import dataclasses
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from proximo import (
    A2C,
    PPO,
    EnvConfig,
    NetConfig,
    Reinforce,
    RunConfig,
    TrainingError,
    UsageError,
    load,
    resume,
    train,
)
from proximo.envs.tensors import Snapshots, TensorEnvs
from proximo.envs.vector import VectorEnvs
from proximo.run.config import Config, RolloutConfig
from proximo.run.control import make_session

COUNT = 5
SEEN = {
    "vector": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "dict": gym.spaces.Dict(
        action_mask=gym.spaces.MultiBinary(3),
        place=gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        phase=gym.spaces.Discrete(3, start=1),
        pair=gym.spaces.MultiDiscrete([2, 3]),
    ),
    "image": gym.spaces.Box(0, 255, (6, 6, 1), np.uint8),
}
DONE = {
    "box": gym.spaces.Box(-1, 1, (2,), np.float32),
    "discrete": gym.spaces.Discrete(3, start=2),
    "hybrid": gym.spaces.Dict(push=gym.spaces.Box(-1, 1, (2,)), tool=gym.spaces.Discrete(3)),
}


class Drift(VectorEnv):
    """A point that is pushed, N times over: with NumPy or with PyTorch, in the same operations.

    An episode ends where the point is far out, or is cut off after a few steps. It hands out its
    own tensors, which the next step writes over, as simulators do.
    """

    def __init__(self, lib, mode, seen="vector", done="box"):
        self.lib, self.mode, self.seen, self.done = lib, mode, seen, done
        self.num_envs = COUNT
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = SEEN[seen], DONE[done]
        self.broken = None

    def _of(self, array):
        return array if self.lib is np else torch.from_numpy(array)

    def _cast(self, x, kind):
        return x.astype(getattr(np, kind)) if self.lib is np else x.to(getattr(torch, kind))

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            drawn = np.random.default_rng(seed)
            self.starts = self._of(drawn.uniform(-1, 1, (50, COUNT, 2)).astype(np.float32))
            self.limits = self._of(drawn.integers(2, 9, (50, COUNT)))
            self.episode = self._of(np.full(COUNT, -1))
            self.place = self._of(np.zeros((COUNT, 2), np.float32))
            self.time = self._of(np.zeros(COUNT, np.int64))
        all_of_them = self._of(np.ones(COUNT, bool))
        self._begin(all_of_them if options is None else options["reset_mask"])
        self.over = ~all_of_them
        return self._look(), {}

    def _begin(self, which):
        self.episode = self.episode + self._cast(which, "int64")
        envs = self._of(np.arange(COUNT))
        start = self.starts[self.episode % 50, envs]
        self.place[:] = self.lib.where(which[:, None], start, self.place)
        self.time = self.lib.where(which, 0, self.time)

    def _look(self):
        lib, phase = self.lib, self.time % 3
        if self.seen == "image":
            image = self._cast(lib.abs(self.place[:, 0]) * 60 % 255, "uint8")
            return image.reshape(COUNT, 1, 1, 1) + self._of(np.zeros((COUNT, 6, 6, 1), np.uint8))
        where = lib.concatenate([self.place, self._cast(self.time, "float32")[:, None]], -1)
        if self.seen == "vector":
            if self.broken == "nan":
                where = where / self._cast(self.time < 3, "float32")[:, None]
            return where
        legal = phase[:, None] != self._of(np.arange(3))
        if self.broken == "mask":
            legal = legal & (self.time < 3)[:, None]
        far = 5 if self.broken == "phase" else 0
        return {
            "action_mask": self._cast(legal, "int8"),
            "place": where,
            "phase": phase + 1 + far * self._cast(self.time > 3, "int64"),
            "pair": lib.stack([self.time % 2, phase], -1),
        }

    def step(self, action):
        lib = self.lib
        push = action["push"] if self.done == "hybrid" else action
        if self.done == "discrete":
            push = lib.stack([action - 3, 3 - action], -1) / 2
        if self.done == "hybrid":
            push = push * (1 + self._cast(action["tool"], "float32"))[:, None]
        reset_alone = self.mode is AutoresetMode.NEXT_STEP
        before = self.over
        moved = self._cast(self.place * 0.9 + push, "float32")
        self.place[:] = moved
        self.time = self.time + 1
        limit = self.limits[self.episode % 50, self._of(np.arange(COUNT))]
        reward = self._cast(self.place[:, 0] - 0.5 * self.place[:, 1], "float64")
        terminated = lib.abs(self.place[:, 0]) > 2
        truncated = self.time >= limit
        if reset_alone:
            self._begin(before)
            reward = lib.where(before, 0.0, reward)
            terminated, truncated = terminated & ~before, truncated & ~before
        self.over, info = terminated | truncated, {}
        seen = self._look()
        if self.mode is AutoresetMode.SAME_STEP:
            if self.broken != "final":
                info["final_obs"] = seen
            if self.seen == "vector" and self.broken != "final":
                info["final_obs"] = seen * 1
            self._begin(self.over)
            seen = self._look()
        return seen, reward, terminated, truncated, info


def session(lib, mode, seen="vector", done="box", *, algorithm=None, net=None, rollout=None, **run):
    settings = RunConfig(total_steps=3 * 16 * COUNT, seed=3, **run)
    algorithm = algorithm or PPO(epochs=2, minibatch_size=16)
    config = Config(
        algorithm=algorithm,
        rollout=rollout or RolloutConfig(steps=16),
        env=EnvConfig(num_envs=COUNT),
        net=net or NetConfig(hidden=(8, 8)),
        run=settings,
    )
    return make_session(config, source=Drift(lib, mode, seen, done))


def rounds(session, count=3):
    """The rollouts of some updates, and the policy at their end."""
    from proximo.collect import collect

    config, state, rollouts = session.task.config, session.state, []
    for _ in range(count):
        rollout = collect(
            session.task.envs,
            state,
            config.env,
            steps=config.rollout.steps,
            episodes=config.rollout.episodes,
        )
        batch = config.algorithm.prepare(state, rollout)
        config.algorithm.update(state, batch)
        state.advance(rollout, {})
        rollouts.append(rollout)
    return rollouts, session.state.policy.state_dict()


def the_same(one, other):
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
            assert value.dtype is getattr(other, name).dtype
        elif name == "counted":
            assert value[1] == other.counted[1] == other.mask.sum()
        else:
            assert value == getattr(other, name), name


MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name.lower())
CASES = {
    "vector and box": ("vector", "box", {}),
    "squashed": ("vector", "box", {"action": "squash"}),
    "beta": ("vector", "box", {"action": "beta"}),
    "dict, mask and discrete": ("dict", "discrete", {}),
    "dict, mask and hybrid": ("dict", "hybrid", {"recurrent": "lstm", "recurrent_size": 8}),
    "image and discrete": ("image", "discrete", {}),
    "recurrent": ("vector", "discrete", {"recurrent": "gru", "recurrent_size": 8}),
}


@MODES
@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize(("seen", "done", "net"), CASES.values(), ids=CASES)
def test_tensors_give_the_rollouts_and_the_policy_of_their_numpy_twin_to_the_bit(
    mode, engine, seen, done, net
):
    found = []
    for lib in (np, torch):
        net_config = NetConfig(hidden=(8, 8), **net)
        own = session(lib, mode, seen, done, net=net_config, engine=engine)
        assert type(own.task.envs) is (TensorEnvs if lib is torch else VectorEnvs)
        found.append((*rounds(own), own.state))
    (rollouts, policy, state), (others, other_policy, other_state) = found
    assert sum(len(rollout.episodes) for rollout in rollouts) > 10
    for one, other in zip(rollouts, others, strict=True):
        the_same(one, other)
    for name, tensor in policy.items():
        assert torch.equal(tensor, other_policy[name])
    for name in ("episode", "resetting", "ret", "length"):
        own, other = getattr(state.envs, name), getattr(other_state.envs, name)
        assert own.dtype == other.dtype
        np.testing.assert_array_equal(own, other)
    np.testing.assert_array_equal(state.envs.obs, other_state.envs.obs.numpy())
    assert state.recent == other_state.recent


@MODES
def test_whole_episodes_are_those_of_the_twin(mode):
    rollout = RolloutConfig(episodes=7)
    found = []
    for lib in (np, torch):
        algorithm = Reinforce(minibatches="whole")
        found.append(rounds(session(lib, mode, algorithm=algorithm, rollout=rollout)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert len(one.episodes) == 7
        the_same(one, other)


READS = ("cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__")
READS += ("__index__", "__array__", "__contains__")


@MODES
@pytest.mark.parametrize("seen", ["vector", "dict"])
@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_nothing_is_read_on_the_host_from_the_first_step_to_the_last(
    monkeypatch, mode, seen, recurrent
):
    net = NetConfig(hidden=(8, 8), recurrent=recurrent, normalize_obs=True)
    own = session(torch, mode, seen, "hybrid" if seen == "dict" else "box", net=net, engine="torch")
    envs, reads, steps = own.task.envs.envs, [], []
    counting = False
    for name in READS:
        original = getattr(torch.Tensor, name)

        def read(*args, original=original, name=name, **kwargs):
            if counting:
                reads.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    original_step = envs.step

    def step(action):
        nonlocal counting
        counting = True  # from the first step on
        steps.append(1)
        answer = original_step(action)
        counting = len(steps) % 16 != 0  # until the last
        return answer

    monkeypatch.setattr(envs, "step", step)
    rounds(own, 2)
    assert len(steps) == 32
    assert reads == []
    counting = True
    bool(torch.ones(()))
    assert reads == ["__bool__"]  # it would have been seen


@MODES
@pytest.mark.parametrize("name", ["run.device"])
def test_the_envs_say_where_the_networks_live(mode, name):
    own = session(torch, mode)
    assert own.task.envs.device == torch.device("cpu")
    assert any("where the envs' tensors are" in note for note in own.log.setup_notes)
    with pytest.raises(UsageError, match=rf"{name} is cuda, but the envs hold tensors on cpu"):
        session(torch, mode, device="cuda")


@pytest.mark.parametrize(
    ("broken", "seen", "mode", "words"),
    [
        (
            "nan",
            "vector",
            AutoresetMode.NEXT_STEP,
            r"env \d gave the observation\[\d\] = -inf .* must be f",
        ),
        (
            "mask",
            "dict",
            AutoresetMode.NEXT_STEP,
            r"env \d shows an action_mask that allows no action: .*, at step \d+ of update 2$",
        ),
        (
            "phase",
            "dict",
            AutoresetMode.DISABLED,
            r"env \d returned phase with a number that is not in Discrete.*, at step \d+ of upd",
        ),
        (
            "final",
            "vector",
            AutoresetMode.SAME_STEP,
            r"env \d ended an episode, but info has no final_obs.*, at step \d+ of",
        ),
    ],
)
def test_what_is_wrong_is_found_at_the_end_of_the_rollout(broken, seen, mode, words):
    own = session(torch, mode, seen, "discrete")
    rounds(own, 1)
    own.task.envs.envs.broken = broken
    with pytest.raises(TrainingError, match=words):
        rounds(own, 1)


class Wrong(Drift):
    """Answers of the wrong kind."""

    how = ""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.how == "reward":
            reward = reward.numpy()
        if self.how == "flags":
            terminated = terminated.long()
        if self.how == "shape":
            obs = obs[:, :2]
        if self.how == "device":
            obs = obs.numpy()
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("reward", r"reward is \[.*must be a tensor of shape \(5,\)"),
        ("flags", r"terminated is torch.int64 of shape \(5,\).*a tensor of bool"),
        ("shape", r"the observation of shape \(2,\), but its observation_space says \(3,\)"),
        ("device", "as ndarray, but other observations as tensors on cpu"),
    ],
)
def test_an_answer_of_the_wrong_kind_is_named(how, words):
    config = Config(
        rollout=RolloutConfig(steps=16),
        env=EnvConfig(num_envs=COUNT, check=False),  # which would name it before
        net=NetConfig(hidden=(8, 8)),
    )
    own = make_session(config, source=Wrong(torch, AutoresetMode.NEXT_STEP))
    own.task.envs.envs.how = how
    with pytest.raises(UsageError, match=words):
        rounds(own, 1)


def test_a_run_is_kept_resumed_and_loaded(tmp_path):
    def run(steps, **more):
        envs = Drift(torch, AutoresetMode.NEXT_STEP)
        return train(
            envs,
            A2C(),
            total_steps=steps,
            seed=1,
            rollout=RolloutConfig(steps=8),
            run_config=RunConfig(profile=True),
            **more,
        )

    agent = run(200, run_dir=tmp_path / "r")
    assert agent.result["profile"]["phases"]["env"]["share"] > 0
    obs = np.zeros(3, np.float32)
    np.testing.assert_array_equal(load(tmp_path / "r").act(obs), agent.act(obs))

    from proximo.run.checkpoint import Checkpoint
    from proximo.run.folder import RunFolder

    folder = RunFolder.open(tmp_path / "r")
    config = folder.read_config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, total_steps=400))
    saved = Checkpoint(folder.checkpoint("last"))
    source = Drift(torch, AutoresetMode.NEXT_STEP)
    with make_session(config, folder=folder, source=source, resume=saved) as resumed:
        assert any("new episodes begin" in note for note in resumed.log.setup_notes)
        assert (resumed.state.envs.length == 0).all()
        assert isinstance(resumed.state.envs.obs, torch.Tensor)
        rounds(resumed, 1)


class Stored(Drift, Snapshots):
    """What is drawn anew by a seed is no part of what changes; `lost`: it cannot be restored."""

    lost = False

    def snapshot(self):
        held = (self.starts, self.limits, self.episode, self.place, self.time, self.over)
        return tuple(x.numpy().copy() for x in held)

    def restore(self, saved):
        tensors = (torch.from_numpy(x.copy()) for x in saved)
        self.starts, self.limits, self.episode, self.place, self.time, self.over = tensors
        return not self.lost


@pytest.mark.parametrize("mode", AutoresetMode, ids=str)
def test_envs_that_have_a_snapshot_resume_exactly(tmp_path, mode):
    how = {"seed": 1, "rollout": RolloutConfig(steps=16), "progress": False}

    def weights(name, steps, env=None):
        if env is None:
            agent = train(Stored(torch, mode), total_steps=steps, run_dir=tmp_path / name, **how)
        else:
            agent = resume(tmp_path / name, env=env, total_steps=steps, progress=False)
        return torch.cat([x.flatten() for x in agent.policy.state_dict().values()])

    whole = weights("whole", 4 * 16 * COUNT)
    for lost in (False, True):
        source = Stored(torch, mode)
        source.lost = lost
        weights(f"half-{lost}", 2 * 16 * COUNT)
        assert torch.equal(weights(f"half-{lost}", 4 * 16 * COUNT, source), whole) != lost


def test_an_env_of_tensors_is_not_evaluated_one_episode_at_a_time():
    with pytest.raises(UsageError, match="cannot be evaluated one episode at a time"):
        session(torch, AutoresetMode.NEXT_STEP, stop_at=1.0)


def test_the_example_of_the_docs_learns():
    page = (Path(__file__).parents[2] / "docs/custom-environments.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), names)
    # The origin is 0.77 away on average, and 0.05 are gone with a step: a return of -3.5 or so.
    assert names["agent"].result["return_mean"] > -5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@MODES
def test_on_a_gpu_nothing_waits_for_the_host_within_a_rollout(mode):
    class OnGpu(Drift):
        def _of(self, array):
            return torch.from_numpy(array).cuda()

    envs = OnGpu(torch, mode)
    original, steps = envs.step, []

    def step(action):
        torch.cuda.set_sync_debug_mode("default")  # the env's own copies are its own
        answer = original(action)
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) % 8 else "default")
        return answer

    envs.step = step
    try:
        train(envs, PPO(minibatch_size=16), total_steps=64, rollout=RolloutConfig(steps=8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
