"""The textbook's order: the actor moves, the moved actor draws A', A' is done, the critic moves."""

import copy
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch

from proximo import NetConfig, QActorCritic, RolloutConfig, RunConfig, UsageError, train
from proximo.envs.testing import probes
from proximo.types import Transitions

KINDS = pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
NET = NetConfig(hidden=(8,), policy_gain=1.0)


class Walk(gym.Env):
    """Three steps to the end; remembers what was done."""

    def __init__(self, continuous=False, length=3):
        self.observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
        box = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.action_space = box if continuous else gym.spaces.Discrete(4)
        self.length, self.done = length, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.done.append(np.array(action).reshape(-1)[0])
        self.time += 1
        obs = np.array([self.time, float(self.done[-1])], np.float32)
        return obs, float(self.time), self.time == self.length, False, {}


def follow(monkeypatch, env, algorithm, steps, rollout=1, num_envs=1):
    """Every batch with the network before and after its update."""
    seen = []
    plain = QActorCritic.update

    def spy(algorithm, state, batch):
        before = copy.deepcopy(state.policy)
        metrics = plain(algorithm, state, batch)
        seen.append((before, batch, copy.deepcopy(state.policy), metrics))
        return metrics

    monkeypatch.setattr(QActorCritic, "update", spy)
    train(
        env,
        algorithm,
        total_steps=steps,
        num_envs=num_envs,
        rollout=RolloutConfig(steps=rollout),
        net=NET,
        seed=2,
    )
    return seen


@KINDS
def test_the_next_action_is_drawn_by_the_moved_actor_and_is_what_is_done(continuous, monkeypatch):
    algorithm = QActorCritic(learning_rate=0.5, critic_learning_rate=0.1, optimizer="sgd")
    seen = follow(monkeypatch, lambda: Walk(continuous), algorithm, 60)
    assert len(seen) == 60
    moved_differently = 0
    for (before, batch, after, _), (_, following, *_) in pairwise(seen):
        assert isinstance(batch, Transitions)
        assert batch.undecided.all()
        if batch.terminated.item():
            continue
        with torch.no_grad():
            drawn, _, _ = after.act(batch.next_obs, batch.noise)
            unmoved, _, _ = before.act(batch.next_obs, batch.noise)
        assert torch.equal(following.obs, batch.next_obs)
        torch.testing.assert_close(following.action, drawn)
        moved_differently += not torch.equal(drawn, unmoved)
    assert moved_differently  # the order shows


def test_the_steps_by_hand(monkeypatch):
    """One update with plain gradient steps, done again with PyTorch alone."""
    algorithm = QActorCritic(
        gamma=0.5,
        learning_rate=0.1,
        critic_learning_rate=0.2,
        optimizer="sgd",
        max_grad_norm=None,
    )
    seen = follow(monkeypatch, Walk, algorithm, 9)
    for before, batch, after, metrics in seen:
        policy = copy.deepcopy(before)
        q = policy.baseline(policy.critic(batch.obs))[0, batch.action.item()]
        logits = policy.logits(policy.actor(batch.obs))
        log_p = torch.log_softmax(logits, -1)[0, batch.action.item()]
        assert metrics["policy_loss"] == pytest.approx(-(log_p * q).item(), rel=1e-5)
        actor = policy.actor_parameters()
        for p, g in zip(actor, torch.autograd.grad(-log_p * q.detach(), actor), strict=True):
            p.data -= 0.1 * g
        with torch.no_grad():
            chosen = policy.act(batch.next_obs, batch.noise)[0].item()
            following = policy.baseline(policy.critic(batch.next_obs))[0, chosen]
            target = batch.reward + 0.5 * following * ~batch.terminated
        loss = (policy.baseline(policy.critic(batch.obs))[0, batch.action.item()] - target) ** 2
        assert metrics["value_loss"] == pytest.approx(loss.item(), rel=1e-5)
        critic = policy.critic_parameters()
        for p, g in zip(critic, torch.autograd.grad(loss.sum(), critic), strict=True):
            p.data -= 0.2 * g
        for mine, theirs in zip(policy.parameters(), after.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@KINDS
def test_in_longer_rollouts_the_next_action_is_what_was_done(continuous, monkeypatch):
    seen = follow(monkeypatch, lambda: Walk(continuous), QActorCritic(), 240, rollout=5, num_envs=2)
    ends = 0
    for _, batch, *_ in seen:
        # Laid out env after env: rows 0 to 4 and 5 to 9.
        for row in range(10):
            last, over = row % 5 == 4, batch.terminated[row].item()
            assert batch.undecided[row].item() == (last or over)
            ends += over
            if not (last or over):
                assert torch.equal(batch.next_action[row], batch.action[row + 1])
                assert torch.equal(batch.next_obs[row], batch.obs[row + 1])
            # The successor of a last step is its own, not the first state of the next episode.
            assert batch.next_obs[row, 0] == batch.obs[row, 0] + 1
    assert ends > 20


def test_where_a_time_limit_cuts_the_next_action_is_drawn_in_the_true_last_state(monkeypatch):
    def cut():
        return gym.wrappers.TimeLimit(Walk(length=99), 4)

    seen = follow(monkeypatch, cut, QActorCritic(), 96, rollout=6, num_envs=2)
    cuts = 0
    for _, batch, *_ in seen:
        assert not batch.terminated.any()
        final = batch.next_obs[:, 0] == 4
        cuts += int(final.sum())
        assert batch.undecided[final].all()
    assert cuts == 24


@KINDS
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_in_vector_envs_of_every_mode_what_follows_is_what_is_done(mode, continuous, monkeypatch):
    def envs():
        return gym.vector.SyncVectorEnv(
            [lambda: Walk(continuous)] * 3, autoreset_mode=gym.vector.AutoresetMode[mode]
        )

    try:
        vector = envs()
    except ValueError:
        pytest.skip(f"this Gymnasium has no {mode} for it")
    seen = follow(monkeypatch, vector, QActorCritic(), 120, rollout=2, num_envs=None)
    compared = 0
    for (_, batch, after, _), (_, following, *_) in pairwise(seen):
        # An episode has three states to act in; its true successors count on from them.
        assert torch.equal(batch.next_obs[:, 0], batch.obs[:, 0] + 1)
        assert torch.equal(batch.terminated, batch.next_obs[:, 0] == 3)
        with torch.no_grad():
            drawn, _, _ = after.act(batch.next_obs, batch.noise)
        last = batch.undecided & ~batch.terminated
        for row in last.nonzero().squeeze(-1):
            # It is done in the state that followed, unless no env stands there any more.
            same = (following.obs == batch.next_obs[row]).all(-1)
            if same.sum() == 1:
                torch.testing.assert_close(following.action[same][0], drawn[row])
                compared += 1
    assert compared > 5


def test_a_shared_trunk_is_refused_by_name():
    with pytest.raises(UsageError, match=r"net\.trunk is shared"):
        train(probes.BestAction, QActorCritic(), net=NetConfig(trunk="shared"))


def test_compiling_is_refused():
    with pytest.raises(UsageError, match=r"run\.engine is compile"):
        train(probes.BestAction, QActorCritic(), run_config=RunConfig(engine="compile"))
