"""Generalized state-dependent exploration: its density, and how long its noise is kept."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from proximo import PPO, EnvConfig, NetConfig, QActorCritic, RolloutConfig, UsageError, train
from proximo.collect import collect
from proximo.engines.torch import TorchEngine
from proximo.envs.make import make_envs
from proximo.evaluation import EpisodePolicy
from proximo.functional.distributions import Gaussian, gsde_log_std, gsde_noise
from proximo.functional.kl import kl_divergence
from proximo.loop import run_control
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Checkpoint
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.state import TrainState

ACTIONS = spaces.Box(-1, 1, (2,))


def policy(action_space=ACTIONS, **net):
    torch.manual_seed(1)
    net = {"std": "gsde", "hidden": (6,), "policy_gain": 1.0} | net
    return ActorCritic(spaces.Box(-9, 9, (3,)), action_space, NetConfig(**net)).double()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The density


def test_the_deviation_by_hand():
    """Variances 3² 1² + 4² 2² = 73 and 3² 0.5² + 4² 0.1² = 2.41."""
    log_scale = torch.tensor([[1.0, 0.5], [2.0, 0.1]], dtype=torch.float64).log()
    found = gsde_log_std(torch.tensor([3.0, 4.0], dtype=torch.float64), log_scale)
    expected = torch.tensor([73 + 1e-6, 2.41 + 1e-6], dtype=torch.float64).sqrt().log()
    torch.testing.assert_close(found, expected)


def test_what_is_drawn_is_theta_times_the_features():
    """A - μ = Σ_j θ_j σ_j φ_j, but for the 0.001 that is always there."""
    features, log_scale, theta = normal(5, 4), normal(4, 2, seed=1), normal(5, 10, seed=2)
    log_std = gsde_log_std(features, log_scale)
    noise = log_std.exp() * gsde_noise(features, log_scale, theta)
    theta = theta.reshape(5, 5, 2)
    expected = torch.einsum("bj,jd,bjd->bd", features, log_scale.exp(), theta[:, 1:])
    torch.testing.assert_close(noise, expected + 1e-3 * theta[:, 0])


@pytest.mark.parametrize("action", ["clip", "squash"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_draws_have_the_density_that_they_are_judged_by(action, scale):
    """By the integrals of p and of its powers, and by the share of draws below each of 9 places."""
    net = policy(spaces.Box(-1, 1, (1,)), action=action)
    features = scale * torch.tanh(normal(6, seed=3))
    count = 40_000
    generator = torch.Generator().manual_seed(4)
    theta = net.head.noise(generator, (8 * count,))[::8].double()  # one of each eight that are held
    rows = features.expand(count, 6)
    d = net.head.distribution(net.logits(rows), None, rows)
    one = net.head.distribution(net.logits(rows[:1]), None, rows[:1])
    std = one.log_std.exp().item()
    assert std == pytest.approx(
        math.sqrt((features.square() @ (2 * net.head.log_scale).exp()).item() + 1e-6)
    )
    axis = one.mean + torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None] * std
    density = net.head.distribution(
        net.logits(rows[:1]).expand(4001, -1), None, rows[:1].expand(4001, -1)
    ).log_prob(axis)
    if action == "squash":  # of the env's units, back to those of the axis
        density = density + (1 - axis.tanh().square()).log().squeeze(-1)
    p = density.exp()
    assert torch.trapezoid(p, axis[:, 0]).item() == pytest.approx(1, abs=1e-6)
    drawn = d.sample(net.head.effective_noise(theta, rows))[:, 0]
    below = torch.cumulative_trapezoid(p, axis[:, 0])
    for z in torch.linspace(-2, 2, 9):
        place = (one.mean + z * std).item()
        expected = below[(axis[1:, 0] <= place + 1e-12).sum() - 1].item()
        assert (drawn <= place).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_kl_and_entropy_are_those_of_the_gaussian():
    net, other, rows = policy(), policy(log_std=-1.0), normal(7, 3)
    d, e = net.distribution(rows), other.distribution(rows)
    assert isinstance(d, Gaussian)
    of = [torch.distributions.Normal(x.mean, x.log_std.exp()) for x in (d, e)]
    torch.testing.assert_close(d.entropy(), of[0].entropy().sum(-1))
    torch.testing.assert_close(kl_divergence(d, e), torch.distributions.kl_divergence(*of).sum(-1))
    torch.testing.assert_close(net.head.restore(d.parameters).entropy(), d.entropy())


def test_the_deviation_is_bounded_away_from_0_and_infinity():
    net, rows = policy(), 1e3 * normal(7, 3)
    for log_scale, bound in ((-1e4, 1e-3), (1e4, math.exp(2))):
        net.head.log_scale.data.fill_(log_scale)
        d = net.distribution(rows)
        found = d.log_std.exp()
        torch.testing.assert_close(found, torch.full_like(found, bound), rtol=0.01, atol=0)
        net.zero_grad()
        d.log_prob(d.mean + 0.1).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_the_features_do_not_learn_from_the_deviation():
    net = policy()
    net.distribution(normal(7, 3)).entropy().sum().backward()
    assert net.head.log_scale.grad.abs().min() > 0
    assert all(p.grad is None for p in net.actor.parameters())


def test_with_features_of_size_1_the_deviation_begins_at_log_std():
    net = policy(log_std=-0.7)
    log_std = gsde_log_std(torch.ones(6, dtype=torch.float64), net.head.log_scale)
    torch.testing.assert_close(
        log_std, torch.full((2,), -0.7, dtype=torch.float64), atol=1e-5, rtol=0
    )


# How long the noise is kept


class Still(gym.Env):
    """Shows the same for ever; every episode has 7 steps."""

    observation_space = spaces.Box(-9, 9, (3,), np.float32)
    action_space = ACTIONS

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.array([1, -2, 0.5], np.float32), {}

    def step(self, action):
        self.time += 1
        return np.array([1, -2, 0.5], np.float32), 0.0, self.time == 7, False, {}


class Hybrid(Still):
    action_space = spaces.Dict({"place": ACTIONS, "tool": spaces.Discrete(5)})


def rollouts(env, steps, count=2, **net):
    envs = make_envs(EnvConfig(num_envs=3), 0, env)
    acting = policy(envs.action_space, **net)
    optimizer = PPO().make_optimizer(acting)
    state = TrainState(
        policy=acting,
        optimizer=optimizer,
        engine=TorchEngine(acting, optimizer),
        envs=envs.start(),
        collecting=torch.Generator().manual_seed(0),
        shuffling=torch.Generator(),
        horizon=1,
    )
    return [collect(envs, state, EnvConfig(), steps=steps).action for _ in range(count)]


@pytest.mark.parametrize("hold", [1, 4])
def test_the_same_state_has_the_same_noise_until_it_is_drawn_anew(hold):
    first, second = rollouts(Still, 10, gsde_steps=hold)
    blocks = [block for actions in (first, second) for block in actions.split(hold)]
    assert [len(block) for block in blocks] == 2 * [4, 4, 2] if hold == 4 else 20 * [1]
    for block in blocks:
        assert (block == block[0]).all()
    means = torch.stack([block[0] for block in blocks]).reshape(-1, 2)  # of envs and blocks
    assert len(means.unique(dim=0)) == len(means)


def test_another_state_has_the_noise_of_the_same_theta():
    net = policy()
    theta = net.head.noise(torch.Generator().manual_seed(0), (1, 1))[0].double()
    rows = normal(40, 3)
    with torch.no_grad():
        action, d, _ = net.act(rows, theta.expand(40, -1))
        features = net.actor(rows)
    apart = action - d.mean
    solved = torch.linalg.lstsq(features, apart - 1e-3 * theta[:, :2]).solution
    torch.testing.assert_close(features @ solved, apart - 1e-3 * theta[:, :2])


def test_what_a_critic_of_actions_draws_is_what_is_done():
    net = policy()
    theta, rows = net.head.noise(torch.Generator().manual_seed(0), (5,)).double(), normal(5, 3)
    with torch.no_grad():
        assert torch.equal(net.draw(rows, theta), net.act(rows, theta)[0])


def test_beside_it_other_parts_of_an_action_are_drawn_at_every_step():
    (actions,) = rollouts(Hybrid, 64, count=1, gsde_steps=64)
    assert (actions[..., :2] == actions[0, :, :2]).all()
    assert all(len(tools.unique()) == 5 for tools in actions[..., 2].T)


def learn(folder, stop=None):
    """Every rollout of a critic of actions, which draws the first action of the next one ahead."""
    found = []

    def keep(state, rollout, metrics):
        found.append(rollout.action)
        return state.updates == stop

    train(
        EnvConfig(id=f"{__name__}:Hybrid", num_envs=3),
        QActorCritic(),
        total_steps=4 * 3 * 20,
        rollout=RolloutConfig(steps=20),
        net=NetConfig(std="gsde", hidden=(6,), gsde_steps=8),
        run_dir=folder,
        callbacks=[keep],
    )
    return found


def test_noise_that_was_drawn_ahead_is_kept_as_long_as_other_noise(tmp_path):
    rollouts = learn(tmp_path / "run")
    assert len(rollouts) == 4
    for actions in rollouts:
        for block in actions.split(8):
            assert (block[..., :2] == block[0, :, :2]).all()
        assert all(len(tools.unique()) > 1 for tools in actions[:8, :, 2].T)


def test_noise_that_was_drawn_ahead_is_kept_after_a_break(tmp_path):
    learn(tmp_path / "straight")
    learn(tmp_path / "parts", stop=2)
    folder = RunFolder.open(tmp_path / "parts")
    saved = Checkpoint(folder.checkpoint("last"))
    assert saved.tensors["ahead"].shape == (1, 3, 7 * 2 + 1)
    run_control(make_session(folder.read_config(), folder=folder, resume=saved))
    straight, parts = (RunFolder(tmp_path / n).checkpoint("last") for n in ("straight", "parts"))
    assert straight.read_bytes() == parts.read_bytes()


def test_a_player_keeps_it_too():
    player, generator = EpisodePolicy(policy(gsde_steps=3)), torch.Generator().manual_seed(0)
    seen = np.array([1, -2, 0.5], np.float32)
    env_action = np.array([player.act(seen, generator) for _ in range(6)])
    assert (env_action[:3] == env_action[0]).all()
    assert (env_action[3:] == env_action[3]).all()
    assert (env_action[0] != env_action[3]).all()
    likely = [player.act(seen) for _ in range(2)]
    assert (likely[0] == likely[1]).all()


# Within a run


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"gsde_steps": 0}, "net.gsde_steps is 0"),
        ({"action": "beta"}, "gsde, but net.action is beta"),
    ],
)
def test_what_does_not_fit_is_refused(net, message):
    with pytest.raises(UsageError, match=message):
        NetConfig(std="gsde", **net)
