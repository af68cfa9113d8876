"""Vector envs as others write them: resets that stay due, final observations, foreign arrays."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from commands.command_line import SMALL, here, proximo, succeeded
from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, UsageError, train
from proximo.envs.make import make_envs
from proximo.envs.vector import VectorEnvs, check_vector
from proximo.run.checkpoint import Checkpoint

__all__ = ["here"]

SAME, NEXT = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP


class Three(gym.Env):
    """Shows how many steps it has taken, pays 1 for each, ends after three."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, self.time >= 3, False, {}


class Owing(SyncVectorEnv):
    """A reset leaves those due that an end has called for."""

    def reset(self, **kwargs):
        due = self._autoreset_envs.copy()
        answer = super().reset(**kwargs)
        self._autoreset_envs = due
        return answer


def owing():
    return Owing([Three] * 3)


def without_shared_memory():
    return AsyncVectorEnv([Three] * 2, shared_memory=False)


@pytest.mark.parametrize("make", [owing, without_shared_memory, lambda: SyncVectorEnv([Three] * 2)])
def test_a_reset_that_is_due_after_a_reset_is_never_learned_from(make):
    for rollout in (RolloutConfig(steps=16), RolloutConfig(episodes=5)):
        seen, unpaid = [], []

        def look(state, rollout, metrics, seen=seen, unpaid=unpaid):
            seen.extend(rollout.episodes)
            unpaid.append(int(((rollout.reward == 0) & rollout.mask).sum()))

        algorithm = PPO(epochs=1, minibatch_size=16)
        train(make(), algorithm, total_steps=100, rollout=rollout, callbacks=[look])
        assert {episode[:2] for episode in seen} == {(3.0, 3)}
        assert not any(unpaid)


@pytest.mark.parametrize("draws", [False, True])
def test_an_env_that_owes_nothing_is_not_taken_for_one_that_does(draws):
    class Drawing(Three):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=None if draws else seed)
            return self.np_random.random(1, np.float32), {}

    envs = VectorEnvs(SyncVectorEnv([Drawing] * 3), 0)
    check_vector(envs)
    assert not envs.owes


class Shown(gym.Env):
    """Shows the time in an array of its own, beside other things; episodes of 4 to 8 steps.

    how: `one` array for ever, `copies`, or one for steps and `another` for resets. door: closed at
    the beginning and at every end.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, how):
        self.how, self.time, self.first = how, np.zeros(1, np.float32), np.zeros(1, np.float32)
        self.observation_space = spaces.Dict(
            colour=spaces.Discrete(3),
            door=spaces.Box(0, 1, (1,), np.float32),
            inner=spaces.Tuple([spaces.Box(0, 9, (1,), np.float32)]),
        )

    def see(self, time):
        door = np.array([time[0] % 2 and not self.ends], np.float32)
        time = time.copy() if self.how == "copies" else time
        return {"colour": int(time[0]) % 3, "door": door, "inner": (time,)}

    @property
    def ends(self):
        return self.time[0] >= self.limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.limit = int(self.np_random.integers(4, 9))
        if self.how != "another":
            self.time[:] = 0
            return self.see(self.time), {}
        self.steps = 0
        return self.see(self.first), {}

    def step(self, action):
        if self.how == "another":
            self.steps += 1
            self.time[:] = self.steps
        else:
            self.time += 1
        return self.see(self.time), 1.0, False, bool(self.ends), {}


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("how", ["one", "copies", "another"])
def test_final_observations_that_a_reset_writes_over_are_refused_leaf_by_leaf(kind, how):
    made = kind([lambda: Shown(how)] * 4, autoreset_mode=SAME)
    finals = []

    def look(state, rollout, metrics):
        finals.extend(rollout.final_obs[:, -1].tolist())

    def go():
        train(
            made, PPO(epochs=1), total_steps=400, rollout=RolloutConfig(steps=50), callbacks=[look]
        )

    if how == "one":
        with pytest.raises(UsageError, match=r"the last step returned for inner/0, so that"):
            go()
        made.close()
    else:
        go()
        assert set(finals) <= {4, 5, 6, 7, 8}


class Batch(VectorEnv):
    """Three counters; final_obs is the batch itself, over which the reset then writes.

    leaf: whether that is so of the time; it is never of the place. of: makes the arrays' kind.
    """

    def __init__(self, leaf, of=np.asarray):
        self.of, self.num_envs, self.leaf, self.metadata = of, 3, leaf, {"autoreset_mode": SAME}
        self.single_action_space = spaces.Discrete(2)
        box = spaces.Box(0, 99, (1,), np.float32)
        self.single_observation_space = spaces.Dict(place=box, time=box)
        self.seen = {"place": np.zeros((3, 1), np.float32), "time": np.zeros((3, 1), np.float32)}

    def reset(self, *, seed=None, options=None):
        for part in self.seen.values():
            part[:] = 0
        return self.give(self.seen), {}

    def give(self, parts):
        """The same memory, as an array or a tensor."""
        return {key: self.of(part) for key, part in parts.items()}

    def step(self, actions):
        self.seen["time"] += 1
        self.seen["place"] += 2
        over = self.seen["time"][:, 0] >= np.array([3, 4, 5])
        final = {key: part if self.leaf else part.copy() for key, part in self.seen.items()}
        final["place"] = self.seen["place"].copy()
        for part in self.seen.values():
            part[over] = 0
        info = {"final_obs": self.give(final)} if over.any() else {}
        numbers = (self.of(x) for x in (np.ones(3), over, np.zeros(3, bool)))
        return self.give(self.seen), *numbers, info


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_so_are_those_of_a_vector_env_of_ones_own(of):
    def check(leaf):
        check_vector(make_envs(EnvConfig(), 0, Batch(leaf, of)))

    with pytest.raises(UsageError, match="returned for time, so that"):
        check(leaf=True)
    check(leaf=False)


class Foreign:
    """An array of another library, which NumPy can read and whose sums are its own."""

    __array_priority__ = 100

    def __init__(self, numbers, dtype):
        self.numbers = np.asarray(numbers).astype(dtype)
        self.numbers.flags.writeable = False
        self.dtype, self.shape = self.numbers.dtype, self.numbers.shape

    def __array__(self, dtype=None, copy=None):
        return self.numbers if dtype is None else self.numbers.astype(dtype)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return Foreign(self.numbers[index], self.dtype)

    def __or__(self, other):
        return Foreign(self.numbers | other.numbers, self.dtype)

    def __radd__(self, other):
        return Foreign((other + self.numbers).astype(np.int32), np.int32)

    __add__ = __radd__


class Elsewhere(VectorEnv):
    """Counters in arrays of another library, with types of its own."""

    def __init__(self, num_envs=2, mode=NEXT, own=Foreign, **kwargs):
        self.num_envs, self.own, self.metadata = num_envs, own, {"autoreset_mode": mode}
        self.single_observation_space = spaces.Box(0, 9, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)

    def see(self):
        return self.own(np.stack([self.time, self.limit], -1), np.float16)

    def reset(self, *, seed=None, options=None):
        which = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        if seed is not None:
            self.drawn, self.done = np.random.default_rng(seed), np.zeros(self.num_envs, bool)
            self.time = self.limit = np.zeros(self.num_envs, int)
        return self.begin(which), {}

    def begin(self, which):
        self.time = np.where(which, 0, self.time)
        self.limit = np.where(which, self.drawn.integers(3, 7, self.num_envs), self.limit)
        self.done = self.done & ~which
        return self.see()

    def step(self, actions):
        due = self.done
        self.time = self.time + 1
        self.done = (self.time >= self.limit) & ~due
        reward = np.where(due, 0, 0.5)
        final, info, ended = self.see(), {}, self.done
        if due.any():
            self.begin(due)
        if self.metadata["autoreset_mode"] is SAME and ended.any():
            info = {"final_obs": final}
            self.begin(ended)
        flags = [self.own(x, np.bool_) for x in (ended & (self.time % 2 == 0), ended)]
        return self.see(), self.own(reward, np.float16), *flags, info


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
def test_arrays_of_other_libraries_give_the_bits_of_numpys(mode, tmp_path):
    saved = []
    for name, own in (("foreign", Foreign), ("numpy", np.array)):
        train(
            Elsewhere(mode=mode, own=own),
            PPO(epochs=1, minibatch_size=16),
            rollout=RolloutConfig(steps=16),
            net=NetConfig(hidden=(8,)),
            total_steps=160,
            run_dir=tmp_path / name,
        )
        saved.append(Checkpoint(tmp_path / name / "checkpoints/last.safetensors"))
    assert saved[0].sha256 == saved[1].sha256
    assert saved[0].tensors["envs.episode"].dtype is torch.int64


def test_a_run_in_such_an_env_goes_on(here):
    gym.register("Elsewhere-v0", entry_point=Three, vector_entry_point=Elsewhere)
    try:
        set_up = ("--env.backend", "vector", "--env.no-check", *SMALL, "--run-dir", "run")
        succeeded(proximo("train", "ppo", "Elsewhere-v0", "--total-steps", "512", *set_up))
        done = succeeded(proximo("resume", "run", "--total-steps", "1024"))
    finally:
        del gym.registry["Elsewhere-v0"]
    assert "these envs cannot be brought back: new episodes begin in them" in done.out
