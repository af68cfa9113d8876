"""Experience: what acted is what is evaluated, whole episodes are counted fairly."""

import copy
import dataclasses
import functools
import json
import operator

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proximo import (
    PPO,
    EnvConfig,
    NetConfig,
    RolloutConfig,
    RunConfig,
    TrainingError,
    UsageError,
    train,
)
from proximo.collect import collect
from proximo.envs.make import make_envs
from proximo.functional.distributions import Categorical, Gaussian, SquashedGaussian
from proximo.nets.actor_critic import ActorCritic
from proximo.run.choices import choose_engine, make_engine
from proximo.state import TrainState

NETS = {
    "plain": NetConfig(),
    "shared": NetConfig(trunk="shared", activation="relu"),
    "normalized": NetConfig(normalize_obs=True, normalize_returns=True),
    "squashed": NetConfig(action="squash"),
}
ENVS = ("CartPole-v1", "Pendulum-v1")


def start(env, net, policy_type=ActorCritic, num_envs=3, source=None, engine="auto"):
    config = EnvConfig(id=env, num_envs=num_envs)
    made = make_envs(config, 0, source)
    torch.manual_seed(0)
    policy = policy_type(made.obs_space, made.action_space, net)
    algorithm = PPO(epochs=2, minibatch_size=16)
    optimizer = algorithm.make_optimizer(policy)
    state = TrainState(
        policy=policy,
        optimizer=optimizer,
        engine=make_engine(choose_engine(engine, algorithm, policy)[0], policy, optimizer, 1),
        envs=made.start(),
        collecting=torch.Generator().manual_seed(0),
        shuffling=torch.Generator().manual_seed(1),
        horizon=10_000,
    )
    return made, state, algorithm, config


def rounds(envs, state, algorithm, config, count=3, steps=20):
    for _ in range(count):
        rollout = collect(envs, state, config, steps=steps)
        batch = algorithm.prepare(state, rollout)
        algorithm.update(state, batch)
        state.advance(rollout, {})


class Remembering(ActorCritic):
    """Keeps the distribution of every act."""

    def act(self, obs, noise=None, recurrent_state=None):
        action, distribution, recurrent_state = super().act(obs, noise, recurrent_state)
        self.__dict__.setdefault("acted", []).append(distribution.parameters)
        return action, distribution, recurrent_state


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_the_distribution_that_acted_is_the_one_that_is_evaluated(env, net):
    if net.action == "squash" and env == "CartPole-v1":
        net = NetConfig()
    envs, state, algorithm, config = start(env, net, Remembering)
    for _ in range(3):
        state.policy.__dict__["acted"] = []
        rollout = collect(envs, state, config, steps=20)
        batch = algorithm.prepare(state, rollout)
        with torch.no_grad():
            evaluation = state.policy.evaluate(rollout.obs, rollout.action, entropy=False)
        acted = torch.stack(state.policy.acted)
        torch.testing.assert_close(acted, evaluation.distribution.parameters, rtol=1e-5, atol=1e-5)
        kind = SquashedGaussian if net.action == "squash" else Gaussian
        kind = Categorical if env == "CartPole-v1" else kind
        assert isinstance(evaluation.distribution, kind)
        algorithm.update(state, batch)
        state.advance(rollout, {})


class MovingMoments(ActorCritic):
    """Fault: observation statistics move with every act."""

    def act(self, obs, noise=None, recurrent_state=None):
        self.obs_shift += 0.05
        return super().act(obs, noise, recurrent_state)


class Temperature(ActorCritic):
    """Fault: acts with half the deviation, or sharper logits, than it evaluates."""

    def act(self, obs, noise=None, recurrent_state=None):
        _, distribution, recurrent_state = super().act(obs, noise, recurrent_state)
        if isinstance(distribution, Gaussian):
            distribution = Gaussian(distribution.mean, distribution.log_std - 0.7)
        else:
            distribution = Categorical.from_logits(2 * distribution.log_p + 0.1 * obs[:, :2])
        return distribution.sample(noise), distribution, recurrent_state


class StaleCache(ActorCritic):
    """Fault: acts with a copy of the weights that is never brought up to date."""

    def act(self, obs, noise=None, recurrent_state=None):
        if "stale" not in self.__dict__:
            self.__dict__["stale"] = [copy.deepcopy(self.actor), copy.deepcopy(self.logits)]
        actor, logits = self.__dict__["stale"]
        distribution = self.head.distribution(logits(actor(obs)), None, obs)
        return distribution.sample(noise), distribution, recurrent_state


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("fault", [MovingMoments, Temperature, StaleCache])
def test_a_policy_that_acts_otherwise_than_it_evaluates_is_caught(env, fault):
    net = NetConfig(normalize_obs=fault is MovingMoments, policy_gain=1.0)
    with pytest.raises(TrainingError, match=r"acted is not the one that is evaluated"):
        rounds(*start(env, net, fault))


def test_moments_stay_frozen_from_the_first_act_to_the_end_of_the_update():
    envs, state, algorithm, config = start("Pendulum-v1", NetConfig(normalize_obs=True))
    seen = []
    for _ in range(3):
        before = state.policy.obs_shift.clone()
        rollout = collect(envs, state, config, steps=20)
        batch = algorithm.prepare(state, rollout)
        assert torch.equal(state.policy.obs_shift, before)
        seen.append(batch.obs)
        algorithm.update(state, batch)
        state.advance(rollout, {})
        union = torch.cat(seen).double()
        torch.testing.assert_close(state.obs_moments.mean, union.mean(0))
        torch.testing.assert_close(state.obs_moments.var, union.var(0, correction=0))
        torch.testing.assert_close(state.policy.obs_shift, union.mean(0).float())


def test_values_stay_what_they_were_when_the_moments_of_returns_move():
    envs, state, algorithm, config = start("Pendulum-v1", NetConfig(normalize_returns=True))
    for _ in range(3):
        rollout = collect(envs, state, config, steps=20)
        before = state.policy.value(rollout.obs)
        batch = algorithm.prepare(state, rollout)
        torch.testing.assert_close(state.policy.value(rollout.obs), before, rtol=1e-4, atol=1e-3)
        algorithm.update(state, batch)
    assert state.policy.return_scale > 5  # returns of Pendulum are in the hundreds


def test_rewards_are_scaled_by_the_running_deviation_of_the_discounted_return():
    envs, state, _, config = start("CartPole-v1", NetConfig())
    algorithm = PPO(normalize_reward=True, gamma=0.9, minibatch_size=16, lam=0.0)
    running, everything = np.zeros(3), []
    for _ in range(3):
        rollout = collect(envs, state, config, steps=30)
        batch = algorithm.prepare(state, rollout)
        for t in range(30):
            running = 0.9 * running + rollout.reward[t].numpy()
            everything.append(running.copy())
            running[rollout.boundary[t].numpy()] = 0
        scale = 1 / np.sqrt(np.var(everything) + 1e-8)
        # With lambda 0 the target is r / sigma + gamma V(s'), and no more than that at the end.
        ends = rollout.terminated.t().reshape(-1)
        np.testing.assert_allclose(batch.target[ends], scale, rtol=1e-5)
        state.advance(rollout, {})


class Countdown(gym.Env):
    """Lasts as many steps as its env and episode say."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    made = 0

    def __init__(self):
        self.number, self.episode = Countdown.made, -1
        Countdown.made += 1

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        self.left = [2, 9, 5][self.number] if self.episode % 2 == 0 else 3
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


@pytest.fixture
def countdown():
    Countdown.made = 0
    return start("", NetConfig(), source=Countdown)


@pytest.mark.parametrize(
    ("episodes", "lengths"),
    # Envs of 2, 9 and 5 steps; the next episode of each has 3. The fourth to start is the one
    # that follows the shortest, and it counts although the long one ends later.
    [(1, [2]), (2, [2, 9]), (3, [2, 5, 9]), (4, [2, 3, 5, 9]), (5, [2, 2, 3, 5, 9])],
)
def test_the_first_episodes_that_start_are_the_ones_that_count(countdown, episodes, lengths):
    envs, state, algorithm, config = countdown
    rollout = collect(envs, state, config, steps=999, episodes=episodes)
    assert sorted(episode.length for episode in rollout.episodes) == lengths
    assert int(rollout.mask.sum()) == sum(lengths)
    batch = algorithm.prepare(state, rollout)
    assert len(batch) == sum(lengths)
    assert sorted(torch.bincount(batch.episode).tolist()) == lengths


def test_each_round_of_episodes_begins_with_fresh_ones(countdown):
    envs, state, _, config = countdown
    for _ in range(4):
        rollout = collect(envs, state, config, steps=999, episodes=2)
        assert len(rollout.episodes) == 2
        state.advance(rollout, {})
    assert state.episodes == 8


@pytest.mark.parametrize("what", ["obs", "reward", "final"])
def test_a_number_that_is_not_finite_names_env_and_step(what):
    class Broken(Countdown):
        def step(self, action):
            obs, reward, over, cut, info = super().step(action)
            if self.number == 1 and self.left == (0 if what == "final" else 4):
                obs, reward = (obs, np.nan) if what == "reward" else (obs * np.nan, reward)
            return obs, reward, over, cut, info

    Countdown.made = 0
    envs, state, _, config = start("", NetConfig(), source=Broken)
    step = 8 if what == "final" else 4
    with pytest.raises(
        UsageError, match=rf"env 1 gave the (observation.0. =|reward) nan at step {step} "
    ):
        collect(envs, state, config, steps=20)
    state.updates = 1
    Countdown.made = 0
    envs, state, _, config = start("", NetConfig(), source=Broken)
    state.updates = 1
    with pytest.raises(TrainingError, match="nan"):
        collect(envs, state, config, steps=20)


def test_rewards_are_shifted_scaled_and_clipped_but_returns_are_not(countdown):
    envs, state, _, config = countdown
    config = dataclasses.replace(config, reward_shift=2.0, reward_scale=0.5, reward_clip=1.2)
    rollout = collect(envs, state, config, steps=9)
    assert (rollout.reward == 1.2).all()  # (1 + 2) * 0.5 = 1.5
    assert all(episode.ret == episode.length for episode in rollout.episodes)


@pytest.mark.parametrize("action", ["clip", "squash"])
def test_envs_get_actions_within_bounds_and_the_stored_ones_are_free(action):
    envs, state, _, config = start("Pendulum-v1", NetConfig(log_std=1.5, action=action))
    rollout = collect(envs, state, config, steps=50)
    assert rollout.action.abs().max() > 2  # stored before clipping
    env_action = np.concatenate([np.concatenate(log) for log in state.envs.actions])
    assert np.abs(env_action).max() <= 2
    first = rollout.action[:, 0, 0].numpy()
    expected = np.clip(first, -2, 2) if action == "clip" else 2 * np.tanh(first)
    np.testing.assert_allclose(env_action[:50, 0], expected, atol=1e-6)
    cut = state.policy.head.cut_off(rollout.action)
    assert cut is None if action == "squash" else torch.equal(cut, rollout.action[..., 0].abs() > 2)


def test_actions_that_were_cut_off_are_counted(tmp_path):
    class Hybrid(Countdown):
        action_space = gym.spaces.Tuple(
            [gym.spaces.Discrete(2), gym.spaces.Box(-np.inf, 1, (2,)), gym.spaces.Box(0, 1, ())]
        )

        def __init__(self):
            self.number, self.episode = 0, -1

    shares = []

    def look(state, rollout, metrics):
        _, *numbers, last = rollout.action.unbind(-1)
        outside = (torch.stack(numbers) > 1).any(0) | (last < 0) | (last > 1)
        shares.append(float(outside.float().mean()))

    algorithm = PPO(epochs=1, minibatch_size=8)
    train(Hybrid, algorithm, total_steps=240, run_dir=tmp_path / "r", callbacks=[look])
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["action_clip_fraction"] for line in lines] == pytest.approx(shares)
    assert 0.3 < shares[0] < 0.9


def test_discrete_actions_count_from_where_their_space_starts():
    seen = set()

    class From5(Countdown):
        action_space = gym.spaces.Discrete(2, start=5)

        def step(self, action):
            assert self.action_space.contains(action)
            seen.add(int(action))
            return super().step(action)

    Countdown.made = 0
    envs, state, _, config = start("", NetConfig(), source=From5)
    collect(envs, state, config, steps=20)
    assert seen == {5, 6}


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_weights_that_became_nan_are_noticed_in_the_update_that_made_them(engine):
    """The losses are computed before each step: only a look after the last one shows these."""
    envs, state, _, config = start("Pendulum-v1", NetConfig(log_std=-9.9), engine=engine)
    algorithm = PPO(
        epochs=1,
        minibatch_size=60,
        normalize_advantage="none",
        optimizer="sgd",
        learning_rate=10.0,
        max_grad_norm=None,
    )
    state.optimizer = algorithm.make_optimizer(state.policy)
    state.engine = make_engine(engine, state.policy, state.optimizer, 1)
    rollout = collect(envs, state, config, steps=20)
    batch = algorithm.prepare(state, rollout)
    wild = dataclasses.replace(
        batch, log_prob=batch.log_prob - 30.0, advantage=torch.full_like(batch.advantage, -100.0)
    )
    before = state.updates
    with pytest.raises(UsageError, match="became"):
        algorithm.update(state, wild)
    assert (state.updates, state.skipped) == (before, 0)


def test_a_rollout_in_which_every_env_only_resets_goes_on_until_one_steps():
    envs = make_envs(EnvConfig(id="CartPole-v1", num_envs=1, backend="vector"), 0)
    torch.manual_seed(0)
    policy = ActorCritic(envs.obs_space, envs.action_space, NetConfig())
    algorithm = PPO(epochs=1, minibatch_size=1)
    optimizer = algorithm.make_optimizer(policy)
    state = TrainState(
        policy=policy,
        optimizer=optimizer,
        engine=make_engine("native", policy, optimizer, 1),
        envs=envs.start(),
        collecting=torch.Generator(),
        shuffling=torch.Generator(),
        horizon=100,
    )
    for _ in range(60):
        rollout = collect(envs, state, EnvConfig(), steps=1)
        assert rollout.mask.any()
        algorithm.update(state, algorithm.prepare(state, rollout))
        state.advance(rollout, {})
    assert state.episodes > 0


class Misshapen(Countdown):
    """Its step returns one number where its space has four."""

    observation_space = gym.spaces.Box(0, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset()
        return np.zeros(4, np.float32), {}


class NoInfo(Countdown):
    def reset(self, *, seed=None, options=None):
        return super().reset()[0]


class ArrayReward(Countdown):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward, reward]), *rest


class FourThings(Countdown):
    def step(self, action):
        return super().step(action)[:4]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Misshapen, r"observation of shape \(1,\), but its observation_space says \(4,\)"),
        (NoInfo, r"reset must return two things"),
        (ArrayReward, r"reward must be one number"),
        (FourThings, r"but returned 4 things"),
    ],
)
def test_envs_that_answer_wrongly_are_told_how(env, message):
    Countdown.made = 0

    def go():
        envs, state, _, config = start("", NetConfig(), source=env)
        collect(envs, state, config, steps=5)

    with pytest.raises(UsageError, match=message):
        go()


class Scripted(Countdown):
    """Pays what is written down, in episodes of drawn lengths; `paid`: of every episode."""

    def __init__(self, rewards, ends, paid):
        self.pay, self.paid = iter(zip(rewards, ends, strict=True)), paid

    def reset(self, *, seed=None, options=None):
        self.paid.append([])
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward, over = next(self.pay)
        self.paid[-1].append(reward)
        return np.zeros(1, np.float32), reward, bool(over), False, {}


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.01, 0.1, 0.6]))
@settings(max_examples=15)
def test_a_return_is_the_sum_of_its_rewards_from_zero_wherever_a_rollout_ends(seed, steps, often):
    drawn = np.random.default_rng(seed)
    size = (3, 3 * 60 + 3)
    rewards = drawn.choice([0.7, 0.1, -1e17, 1e-9, 3.3], size, p=[0.5, 0.2, 0.02, 0.18, 0.1])
    ends, paid, made = drawn.random(size) < often, [[] for _ in range(3)], iter(range(3))

    def make():
        i = next(made)
        return Scripted(rewards[i].tolist(), ends[i].tolist(), paid[i])

    envs, state, _, config = start("", NetConfig(), source=make)
    found = []
    for _ in range(3 * 60 // steps):
        found += collect(envs, state, config, steps=steps).episodes
    expected, running = [], []
    for own in paid:
        *finished, last = [(functools.reduce(operator.add, r, 0.0), len(r)) for r in own]
        expected += [(*episode, True) for episode in finished]  # terminated
        running.append(last)
    assert sorted(found) == sorted(expected)
    assert list(zip(state.envs.ret, state.envs.length, strict=True)) == running


def test_equal_returns_have_that_mean_and_reach_a_goal_of_that_size(tmp_path):
    class Pays(Countdown):
        def __init__(self):
            self.number, self.episode = 0, 0

        def step(self, action):
            return np.zeros(1, np.float32), 0.7, True, False, {}

    agent = train(
        Pays,
        PPO(epochs=1, minibatch_size=64),
        total_steps=4096,
        rollout=RolloutConfig(steps=64),
        run_config=RunConfig(stop_at=0.7, success_at=0.7, eval_episodes=3),
    )
    assert agent.result["stopped_by"] == "stop_at"
    assert agent.result["success_rate"] == 1
    assert agent.result["return_mean"] == 0.7
