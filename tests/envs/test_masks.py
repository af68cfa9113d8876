"""Action masks from every source and in every kind of env; what the critic alone sees."""

import itertools
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, TrainingError, UsageError, train
from proximo.collect import collect
from proximo.engines.torch import TorchEngine
from proximo.envs.base import SyncEnvs
from proximo.envs.make import make_env
from proximo.envs.testing.probes import Match
from proximo.envs.vector import VectorEnvs
from proximo.evaluation import evaluate_policy
from proximo.nets.actor_critic import ActorCritic
from proximo.spaces import MASK, flat_mask
from proximo.state import TrainState

PLAIN = PPO(gamma=0.9, epochs=2, minibatch_size=16)


def quick(source, *, env=None, **more):
    return train(
        env or source,
        more.pop("algorithm", PLAIN),
        rollout=RolloutConfig(steps=16),
        num_envs=None if env else 2,
        **{"net": NetConfig(hidden=(8,)), "total_steps": 96, "seed": 1} | more,
    )


# Where a mask comes from


class Told(Match):
    """Its masks stand where `source` says, and not in what it shows."""

    def __init__(self, source, done="discrete"):
        super().__init__("vector", done)
        self._masks, self.source = True, source

    def observe(self):
        return super().observe()["shown"]

    def _info(self):
        mask = self.legal()
        if self._done == "multi-discrete":  # as nested as the space is
            mask = (mask[:3], list(mask[3:]))
        return {MASK: mask} if self.source == "info" else {}

    def reset(self, **kwargs):
        seen, _ = super().reset(**kwargs)
        return seen, self._info()

    def step(self, action):
        *rest, _ = super().step(action)
        return (*rest, self._info())

    def action_masks(self):
        if self.source != "method":
            raise AssertionError("nobody asked for it")
        return self.legal()


@pytest.mark.parametrize("source", ["info", "method"])
@pytest.mark.parametrize("done", ["discrete", "multi-discrete"])
def test_a_mask_is_the_same_wherever_it_comes_from(source, done):
    """To the bit: rows of numbers are laid out alike, so are the networks."""
    kwargs = {"source": source, "done": done}
    told = train(
        EnvConfig(id=f"{__name__}:Told", kwargs=kwargs, num_envs=2, action_masks=source),
        PLAIN, rollout=RolloutConfig(steps=16), net=NetConfig(hidden=(8,)), total_steps=96, seed=1,
    )  # fmt: skip
    shown = quick(lambda: Match("vector", done, masks=True))
    assert told.policy.masked
    for a, b in zip(told.policy.parameters(), shown.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("info", "env.action_masks is info, but an env's info has no action_mask: it has nothing"),
        ("method", r"env.action_masks is method, but .* has no method action_masks\(\)"),
    ],
)
def test_a_mask_that_is_not_there_is_missed(source, message):
    with pytest.raises(UsageError, match=message):
        train(EnvConfig(id="CartPole-v1", action_masks=source), PLAIN, total_steps=64)


class Workshop(gym.Env):
    """Tool and gear, of which one each is legal: told in another order than the space has."""

    observation_space = spaces.Dict(
        {"seen": spaces.Box(-1, 1, (2,)), "secret": spaces.Box(-1, 1, (1,))}
    )
    action_space = spaces.Dict(
        {"tool": spaces.Discrete(3), "gear": spaces.Discrete(3), "power": spaces.Box(0, 1, (1,))}
    )

    def _answer(self):
        self.tool, self.gear = (int(k) for k in self.np_random.integers(3, size=2))
        seen = {"seen": np.ones(2, np.float32), "secret": np.ones(1, np.float32)}
        return seen, {MASK: self.action_masks()}

    def action_masks(self):
        return {"tool": np.eye(3)[self.tool], "gear": np.eye(3)[self.gear].tolist()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._answer()

    def step(self, action):
        assert (action["tool"], action["gear"]) == (self.tool, self.gear)
        seen, info = self._answer()
        return seen, 0.0, bool(self.np_random.random() < 0.2), False, info


class Wrapped(gym.Wrapper):
    """Where the masks of an env that knows none come from its wrapper."""

    def action_masks(self):
        return np.array([1, 0])


@pytest.mark.parametrize("source", ["info", "method"])
def test_a_nested_mask_is_laid_by_its_keys_and_joins_a_dict(source):
    """What the critic alone sees keeps its name."""
    env = EnvConfig(id=f"{__name__}:Workshop", num_envs=2, action_masks=source)
    agent = quick(None, env=env, net=NetConfig(hidden=(8,), privileged=("secret",)))
    assert list(agent.obs_space.spaces) == [MASK, "secret", "seen"]
    seen = {"seen": np.zeros(2), "secret": np.zeros(1), MASK: [0, 0, 1, 1, 0, 0]}
    assert (agent.act(seen)["gear"], agent.act(seen)["tool"]) == (2, 0)


def test_a_wrapper_may_have_the_masks():
    env = EnvConfig(id="CartPole-v1", wrappers=(f"{__name__}:Wrapped",), action_masks="method")
    agent = quick(None, env=env)
    assert agent.act({"observation": np.zeros(4), MASK: [0, 1]}) == 1


HYBRID = spaces.Dict(
    {"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.Box(0, 1), spaces.MultiDiscrete([2, 3])])}
)


@pytest.mark.parametrize(
    "mask",
    [
        [1, 0, 1, 1, 0, 0, 1],
        np.array([1, 0, 1, 1, 0, 0, 1], bool),
        {"b": (0, 1), "a": [1, 0, 1, 1, 0]},
        {"b": [0, 1], "a": (None, [1, 0, 1, 1, 0])},
        {"b": np.array([False, True]), "a": (None, ([1, 0], np.array([1, 1, 0]))), "c": None},
        ([1, 0], [1, 1, 0], [0, 1]),
    ],
)
def test_every_way_to_write_a_mask(mask):
    assert flat_mask(mask, HYBRID).tolist() == [1, 0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "an env's action_mask is None: give 0 or 1 for each of the 7 choices"),
        ([1, 1], r"an env's action_mask is \[1, 1\]: give 0 or 1 for each of the 7"),
        ({"a": [1] * 5}, "an env's action_mask has no key 'b', .* it has a$"),
        ({"a": [1] * 5, "b": [1]}, r"an env's action_mask/b is \[1\]: give .* of the 2 choices"),
        ({"a": ([1], [1]), "b": [1, 1]}, r"action_mask/a/1 is \[1\]: give .* of the 5 choices"),
        ("all", "action_mask is 'all': give"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, message):
    with pytest.raises(UsageError, match=message):
        flat_mask(mask, HYBRID)


def masked_policy(masks, actions=HYBRID):
    shown = spaces.Dict({"seen": spaces.Box(-1, 1, (2,)), MASK: masks})
    return ActorCritic(shown, actions, NetConfig(hidden=(4,)))


def test_masks_in_an_observation_lie_as_the_actions_do():
    bits = spaces.MultiBinary
    both = spaces.Tuple([bits(2), bits(3)])
    for masks in (
        bits(7),
        spaces.Tuple([bits(5), bits(2)]),
        spaces.Dict({"b": bits(2), "a": bits(5)}),
        spaces.Dict({"b": bits(2), "a": both}),
    ):
        masked_policy(masks)
    ordered = OrderedDict(b=bits(2), a=bits(5))
    message = "the action_mask has the keys b, a, but what there is to choose has a, b: give the"
    with pytest.raises(UsageError, match=message):
        masked_policy(spaces.Dict(ordered))
    with pytest.raises(UsageError, match=r"the action_mask/a has 2 entries, but Tuple.* has 5"):
        masked_policy(spaces.Dict({"a": bits(2), "b": bits(5)}))
    with pytest.raises(UsageError, match=r"the action_mask has 5 entries, but .* has 7 things"):
        masked_policy(bits(5))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("Pendulum-v1", {}, r"env.action_masks is info, but Box.* nothing to choose from"),
        (
            "proximo.envs.testing.probes:Match",
            {"masks": True},
            r"Match.* have the key action_mask already",
        ),
    ],
)
def test_masks_that_make_no_sense(name, kwargs, message):
    with pytest.raises(UsageError, match=message):
        make_env(EnvConfig(id=name, kwargs=kwargs, action_masks="info"))


def test_vector_envs_show_their_masks_themselves():
    env = EnvConfig(id="CartPole-v1", num_envs=2, backend="vector", action_masks="info")
    with pytest.raises(UsageError, match=r"env.action_masks is info, but .* observation"):
        train(env, PLAIN, total_steps=64)
    many = EnvConfig(id="CartPole-v1", num_envs=32, action_masks="info")
    with pytest.raises(UsageError, match="an env's info has no action_mask"):  # not vector, then
        train(many, PLAIN, total_steps=64)


# A mask that allows nothing


class Stuck(Match):
    """The mask of one of the envs allows nothing in a certain step."""

    def __init__(self, at, done):
        super().__init__("vector", done, masks=True)
        self.at, self.env_action = at, -1

    def reset(self, **kwargs):
        self.env_action += 1
        return super().reset(**kwargs)

    def step(self, action):
        seen, *rest = super().step(action)
        return {**seen, MASK: 0 * seen[MASK]}, *rest  # the state in which it ended may have one

    def legal(self):
        mask = super().legal()
        if self.env_action == self.at:
            mask[-3:] = 0
        return mask


@pytest.mark.parametrize("done", ["discrete", "multi-discrete", "hybrid"])
@pytest.mark.parametrize(
    ("at", "error", "where"),
    [
        (0, UsageError, "step 0 of update 1"),
        (5, UsageError, "step 5 of update 1"),
        (16 + 3, TrainingError, "step 3 of update 2"),
    ],
)
def test_one_that_allows_nothing_is_named_with_env_and_step(done, at, error, where):
    """For a MultiDiscrete, one that leaves one of the choices without any."""
    numbers = itertools.count()
    message = f"an env failed at {where}: the {MASK} of env 1 allows no action: one must be"
    with pytest.raises(error, match=message):
        quick(lambda: Stuck(at if next(numbers) % 2 else None, done))


def test_one_that_allows_nothing_is_no_way_to_act():
    agent = quick(lambda: Match("vector", "hybrid", masks=True))
    env = Stuck(1, "hybrid")
    with pytest.raises(UsageError, match="allows no action at step 0 of an episode: one must be"):
        evaluate_policy(agent.policy, env, episodes=3, seed=0)
    assert env.env_action == 1
    with pytest.raises(ValueError, match="the action_mask of the observation allows no action"):
        agent.act({"shown": np.zeros(3), MASK: np.zeros(3)})


def test_the_state_in_which_an_episode_ended_may_allow_nothing():
    assert quick(lambda: Stuck(None, "hybrid")).result["steps"] == 96


# What only the critic sees


def secretive(**net):
    torch.manual_seed(0)
    space = spaces.Dict({"seen": spaces.Box(-1, 1, (2,)), "secret": spaces.Box(-1, 1, (2,))})
    return ActorCritic(space, spaces.Discrete(3), NetConfig(privileged=("secret",), **net))


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_the_policy_does_not_see_what_only_the_critic_sees(recurrent):
    policy = secretive(recurrent=recurrent, policy_gain=1.0)
    rows = torch.randn(6, 4)
    other = rows.clone()
    other[:, :2] += 1
    assert policy.observations.leaves[0].name == "secret"
    recurrent_state = torch.zeros(6, policy.state_size)
    with torch.no_grad():
        first, second = (policy.act(x, None, recurrent_state)[1].parameters for x in (rows, other))
        assert torch.equal(first, second)
        seen = rows.clone()
        seen[:, 2:] += 1
        assert not torch.equal(policy.act(seen, None, recurrent_state)[1].parameters, first)
        if recurrent == "none":
            values = policy.value(rows), policy.value(other)
            assert (values[0] != values[1]).all()


@pytest.mark.parametrize(
    ("keys", "settings", "message"),
    [
        (("secrets",), {}, "names 'secrets', but the observations have: secret, seen"),
        (("seen", "secret"), {}, "leaves the policy nothing to see"),
        (("secret",), {"trunk": "shared"}, "net.privileged .* net.trunk is shared"),
        (("secret", MASK), {}, f"names '{MASK}', which is never shown to the networks"),
    ],
)
def test_keys_that_will_not_do(keys, settings, message):
    box, mask = spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3)
    space = spaces.Dict({"seen": box, "secret": box} | ({MASK: mask} if MASK in keys else {}))
    with pytest.raises(UsageError, match=message):
        ActorCritic(space, spaces.Discrete(3), NetConfig(privileged=keys, **settings))


# Vector envs


ENVS, STEPS = 3, 40


def script(env, episode, step):
    """An action that depends on nothing but (env, episode, step), and its mask beside it."""
    choice = (env + 2 * episode + step) % 3
    return choice, np.array([(choice + 1) % 3 != i for i in range(3)], np.int8)


class Scripted(gym.Env):
    """Episodes of changing length; every third is truncated, the others terminate."""

    observation_space = spaces.Dict(
        {
            MASK: spaces.MultiBinary(3),
            "count": spaces.Tuple([spaces.Discrete(99), spaces.Box(-99, 99, (2,), np.float32)]),
            "parity": spaces.MultiBinary(1),
        }
    )
    action_space = spaces.Discrete(3)

    def __init__(self, env):
        self.env, self.episode = env, -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.time, self.total = self.episode + 1, 0, 0
        return self.see(), {}

    def see(self):
        over = self.time >= 2 + (self.env + 2 * self.episode) % 5
        mask = script(self.env, self.episode, self.time)[1]
        place = np.array([self.env, self.episode], np.float32)
        return {
            MASK: 0 * mask if over else mask,
            "count": (self.time, place),
            "parity": np.array([self.total % 2], np.int8),
        }

    def step(self, action):
        assert script(self.env, self.episode, self.time)[1][action]
        self.total += int(action)
        reward = float(self.total + self.time)
        self.time += 1
        over = self.time >= 2 + (self.env + 2 * self.episode) % 5
        cut = over and self.episode % 3 == 2
        return self.see(), reward, over and not cut, cut, {}


class ScriptedPolicy(ActorCritic):
    """Acts by the script, whatever its noise."""

    def act(self, obs, noise=None, recurrent_state=None):
        _, distribution, recurrent_state = super().act(obs, noise, recurrent_state)
        leaves = {leaf.name: obs[:, leaf.begin : leaf.end] for leaf in self.observations.leaves}
        times, places = leaves["count/0"].argmax(-1), leaves["count/1"].long()
        action = [
            script(*map(int, place), int(t))[0] for place, t in zip(places, times, strict=True)
        ]
        return torch.tensor(action), distribution, recurrent_state


def scripted(envs, steps, normalize=False):
    torch.manual_seed(0)
    net = NetConfig(normalize_returns=normalize)
    policy = ScriptedPolicy(envs.obs_space, envs.action_space, net).double()
    state = TrainState(
        policy=policy,
        optimizer=None,
        engine=TorchEngine(policy, None),
        envs=envs.start(),
        collecting=torch.Generator(),
        shuffling=torch.Generator(),
        horizon=1,
    )
    rollout = collect(envs, state, EnvConfig(), steps=steps)
    algorithm = PPO(gamma=0.9, lam=0.8, normalize_advantage="none")
    return rollout, algorithm.prepare(state, rollout), state


def vector(mode):
    makers = [lambda env=env: Scripted(env) for env in range(ENVS)]
    return VectorEnvs(SyncVectorEnv(makers, autoreset_mode=mode), seed=0)


every_mode = pytest.mark.parametrize(
    "mode", list(AutoresetMode), ids=lambda mode: mode.name.lower()
)


@every_mode
def test_nested_observations_with_masks_are_those_of_single_envs(mode):
    """Rows, what was allowed, true successors and all that is computed from them."""
    found, batch, _ = scripted(vector(mode), STEPS)
    single, by_one, _ = scripted(SyncEnvs([Scripted(i) for i in range(ENVS)], 0), STEPS)
    ghosts = mode is AutoresetMode.NEXT_STEP
    assert bool((~found.mask).any()) == ghosts
    assert torch.isfinite(batch.log_prob).all()
    assert (batch.log_prob > -20).all()  # what was done was legal
    names = ("obs", "action", "reward", "terminated")
    for i in range(ENVS):
        real = found.mask[:, i]
        count = int(real.sum())
        for name in names:
            here, there = getattr(found, name)[:, i][real], getattr(single, name)[:count, i]
            assert torch.equal(here, there), name
    # True successors: of each episode its last state, with the time that it took.
    leaves = {leaf.name: (leaf.begin, leaf.end) for leaf in vector(mode).observations.leaves}
    (a, b), (c, d) = leaves["count/0"], leaves["count/1"]
    times, places = found.final_obs[:, a:b].argmax(-1), found.final_obs[:, c:d].long()
    assert len(times) > 20
    assert times.tolist() == [2 + (env + 2 * episode) % 5 for env, episode in places.tolist()]
    assert (found.final_obs[:, leaves[MASK][0] :] == 0).all()
    if not ghosts:
        for name in ("advantage", "target", "value"):
            torch.testing.assert_close(getattr(batch, name), getattr(by_one, name))
    else:  # all but the last episodes, which are cut elsewhere
        known = {tuple(o.tolist()): x for o, x in zip(by_one.obs, by_one.advantage, strict=True)}
        end = found.boundary & found.mask
        last = torch.tensor([int(end[:, i].nonzero().max()) for i in range(ENVS)])
        whole = (torch.arange(STEPS)[:, None] <= last) & found.mask
        keep = whole.t()[found.mask.t()]
        assert keep.sum() > 80
        for obs, advantage in zip(batch.obs[keep], batch.advantage[keep], strict=True):
            torch.testing.assert_close(advantage, known[tuple(obs.tolist())])


@every_mode
def test_values_are_standardised_by_real_steps_alone(mode):
    """The moments are those of the targets of real steps; V stays what it was when they move."""
    rollout, batch, state = scripted(vector(mode), STEPS, normalize=True)
    moments, policy = state.return_moments, state.policy
    assert int(moments.number) == int(rollout.mask.sum()) == len(batch)
    torch.testing.assert_close(moments.mean, batch.target.mean().double())
    torch.testing.assert_close(moments.var, batch.target.var(correction=0).double())
    assert policy.return_scale.item() == pytest.approx(float(moments.var.sqrt()))
    torch.testing.assert_close(policy.value(batch.obs), batch.value)


@pytest.mark.parametrize("done", ["discrete", "multi-discrete"])
def test_standardised_values_are_right_behind_masks(done):
    agent = train(
        lambda: Match("dict", done, masks=True),
        PPO(gamma=0.9, learning_rate="linear:5e-3:0", epochs=4, minibatch_size=64),
        total_steps=6_144,
        num_envs=4,
        rollout=RolloutConfig(steps=64),
        net=NetConfig(hidden=(32,), normalize_obs=True, normalize_returns=True),
        seed=1,
    )
    rows = torch.as_tensor(agent.policy.observations.examples(64))
    env, symbols = Match("dict", done, masks=True), set()
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        symbols.add(env._symbol)
        np.testing.assert_array_equal(agent.act(obs), env.right(env._symbol))
        row = torch.as_tensor(agent.policy.observations.row(obs))[None]
        with torch.no_grad():
            value = agent.policy.value(row).item()
        assert value == pytest.approx(env.worth(env._symbol), abs=0.15)
    assert symbols == {0, 1, 2}
    assert torch.isfinite(agent.policy.value(rows)).all()
