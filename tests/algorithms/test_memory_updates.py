"""What an update by stretches sees is what the policy saw step by step."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo import PPO, EnvConfig, NetConfig, QActorCritic
from proximo.algorithms.q_actor_critic import next_action_value
from proximo.collect import collect
from proximo.envs.make import make_envs
from proximo.envs.testing.probes import Remember
from proximo.nets.actor_critic import ActorCritic
from states import new_state

ENVS, STEPS, LIMIT = 3, 11, 5


class Counting(Remember):
    """Episodes that a time limit cuts after five steps, with something new to see in each."""

    length = 2**62

    def observe(self):
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def reward(self, action):
        return 1.0


def set_up(algorithm, **net):
    """A rollout of a policy with a memory that is trained through 3 steps; what it is stored in."""
    env = EnvConfig(num_envs=ENVS, max_episode_steps=LIMIT)
    envs = make_envs(env, 0, Counting)
    torch.manual_seed(0)
    settings = NetConfig(**{"hidden": (6,), "recurrent_size": 4, "bptt_steps": 3} | net)
    spaces = envs.obs_space, envs.action_space
    policy = ActorCritic(*spaces, settings, q_critic=algorithm.q_critic)
    state = new_state(policy, algorithm, envs)
    prepared = []
    for _ in range(2):  # the second one begins in the middle of episodes
        rollout = collect(envs, state, env, steps=STEPS)
        begin = rollout.initial_state.clone()
        prepared.append((rollout, begin, algorithm.prepare(state, rollout)))
    envs.close()
    return policy, state, prepared


def recurrent_states(policy, rollout, begin):
    """Before and behind every row, [T][N] rows of [1, C], step by step through both memories."""
    before, after = [], []
    recurrent_state = begin.clone()
    own = policy.actor_recurrent.state_size
    for t in range(STEPS):
        before.append(recurrent_state.clone())
        x = policy.inputs(rollout.obs[t])
        moved = [policy.actor_recurrent.step(policy.actor(x), recurrent_state[:, :own])[1]]
        if policy.critic_recurrent:
            moved.append(
                policy.critic_recurrent.step(policy.critic(x), recurrent_state[:, own:])[1]
            )
        recurrent_state = torch.cat(moved, -1)
        after.append(recurrent_state.clone())
        recurrent_state[rollout.boundary[t]] = 0
    return before, after, recurrent_state


def value(policy, obs, recurrent_state):
    x, own = policy.inputs(obs), policy.actor_recurrent.state_size
    if policy.critic_recurrent:
        features = policy.critic_recurrent.step(policy.critic(x), recurrent_state[:, own:])[0]
    else:
        features = policy.actor_recurrent.step(policy.actor(x), recurrent_state)[0]
    return policy.baseline(features).squeeze(-1)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
@torch.no_grad()
def test_values_and_log_probabilities_are_those_of_single_steps(kind, trunk):
    algorithm = PPO(gamma=0.9, lam=0.0, epochs=1, minibatch_size=8, normalize_advantage="none")
    policy, _, prepared = set_up(algorithm, recurrent=kind, trunk=trunk)
    for rollout, begin, batch in prepared:
        before, after, _last = recurrent_states(policy, rollout, begin)
        found, targets = [], []
        for t in range(STEPS):
            found.append(value(policy, rollout.obs[t], before[t]))
            # With lambda = 0 the target is r + γ V(s'), s' judged by what was remembered there.
            following = rollout.obs[t + 1] if t + 1 < STEPS else rollout.last_obs
            following = following.clone()
            for f, index in enumerate(rollout.final_index.tolist()):
                if index // ENVS == t:
                    following[index % ENVS] = rollout.final_obs[f]
            targets.append(rollout.reward[t] + 0.9 * value(policy, following, after[t]))
        for name, rows in (("value", found), ("target", targets)):
            expected = torch.stack(rows).t().flatten()
            torch.testing.assert_close(getattr(batch, name), expected, rtol=1e-5, atol=1e-6)
    assert len(prepared[0][0].final_index) == ENVS * 2


@torch.no_grad()
def test_the_next_rollout_begins_with_what_is_remembered():
    policy, state, prepared = set_up(PPO(), recurrent="lstm")
    for k, (rollout, begin, _) in enumerate(prepared):
        last = recurrent_states(policy, rollout, begin)[2]
        following = prepared[1][1] if k == 0 else state.recurrent_state
        torch.testing.assert_close(following, last, rtol=1e-5, atol=1e-6)
        assert last.abs().sum() > 0


@torch.no_grad()
def test_stretches_end_with_episodes_and_after_memory_steps():
    _, _, prepared = set_up(PPO(), recurrent="gru")
    lengths = torch.bincount(prepared[0][2].segment_id).view(ENVS, -1)
    assert (lengths == torch.tensor([3, 2, 3, 2, 1])).all()
    # The second rollout begins one step into an episode of five.
    lengths = torch.bincount(prepared[1][2].segment_id).view(ENVS, -1)
    assert (lengths == torch.tensor([3, 1, 3, 2, 2])).all()
    first = torch.bincount(prepared[0][2].episode).view(ENVS, -1)
    assert (first == torch.tensor([5, 5, 1])).all()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@torch.no_grad()
def test_q_of_what_comes_next_remembers_what_came_before(kind):
    policy, _, prepared = set_up(QActorCritic(gamma=0.9), recurrent=kind)
    rollout, begin, batch = prepared[1]
    _, after, _ = recurrent_states(policy, rollout, begin)
    found = next_action_value(policy, batch).view(ENVS, STEPS).t()
    noise, undecided = (x.view(ENVS, STEPS).t() for x in (batch.noise, batch.undecided))
    own = policy.actor_recurrent.state_size
    for t in range(STEPS):
        obs = batch.next_obs.view(ENVS, STEPS, -1)[:, t]
        x = policy.inputs(obs)
        seen = policy.actor_recurrent.step(policy.actor(x), after[t][:, :own])[0]
        drawn = policy.head.distribution(policy.logits(seen), None, seen).sample(noise[t])
        taken = rollout.action[min(t + 1, STEPS - 1)]
        action = torch.where(undecided[t], drawn, taken)
        judged = policy.critic_recurrent.step(policy.critic(x), after[t][:, own:])[0]
        expected = policy.baseline(judged).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(found[t], expected, rtol=1e-5, atol=1e-6)
    assert undecided[-1].all()


@given(size=st.integers(1, 40), seed=st.integers(0, 99))
def test_minibatches_hold_whole_stretches_and_every_row_once(size, seed):
    algorithm = PPO(minibatch_size=size, epochs=2)
    lengths = torch.randint(1, 6, (9,), generator=torch.Generator().manual_seed(seed))
    segment_id = torch.arange(9).repeat_interleave(lengths)

    class Fake:
        segments = True

        def __len__(self):
            return len(segment_id)

    batch = Fake()
    batch.episode = batch.segment_id = segment_id
    layout = algorithm.layout(batch, torch.Generator().manual_seed(seed))
    assert layout.steps == sum(len(bounds) - 1 for bounds in layout.bounds)
    for order, bounds in zip(layout.orders, layout.bounds, strict=True):
        assert sorted(order.tolist()) == list(range(len(segment_id)))
        assert bounds[0] == 0
        assert bounds[-1] == len(segment_id)
        parts = [segment_id[order[a:b]] for a, b in itertools.pairwise(bounds)]
        assert all(len(part) for part in parts)
        for part in parts:
            for number in part.unique():
                where = (part == number).nonzero().squeeze(-1)
                assert len(where) == lengths[number]  # whole
                assert (where.diff() == 1).all()  # and in order
        assert max(map(len, parts)) <= size + 6  # a lone segment of 1 joins on either side
    if len(segment_id) > 5:
        assert layout.orders[0].tolist() != layout.orders[1].tolist() or len(lengths) < 3
