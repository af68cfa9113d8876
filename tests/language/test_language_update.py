"""Rewards, advantages and gradients of tokens, against control's and against those by hand."""

import copy
import dataclasses
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from proximo.algorithms.ppo import PPO
from proximo.collect import collect
from proximo.envs.config import EnvConfig
from proximo.language import TOKEN_PPO, KLConfig, Sampling, TokenPPO, tiny
from proximo.language.engine import LanguageEngine, evaluate_old
from proximo.language.generate import generate
from proximo.language.model import Decoding, LanguagePolicy
from proximo.language.records import OldPolicy
from proximo.language.reward import shaped
from proximo.language.sequences import Sequences
from proximo.nets.actor_critic import Evaluation
from proximo.nets.config import NetConfig
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.config import Config, RolloutConfig, RunConfig
from proximo.run.control import make_session

FREE = {"critic": False, "normalize_advantage": "none"}
METHODS = {
    "rloo": {**FREE, "advantage": "rloo"},
    "grpo": {**FREE, "advantage": "grpo", "loss_mean": "sequences"},
    "dr-grpo": {**FREE, "advantage": "dr-grpo"},
    "reinforce++": {"critic": False, "advantage": "monte-carlo"},
    "gspo": {**FREE, "advantage": "grpo", "ratio": "sequence", "loss_mean": "sequences"},
}
TOKENS_THERE, LONGEST = 10, 6
WORTH = np.random.default_rng(0).normal(size=(TOKENS_THERE, TOKENS_THERE)).astype(np.float32)
PROMPTS = [[2], [3, 4, 5], [9, 8], [2, 2]] * 8


@pytest.fixture(scope="module")
def scene():
    """A policy, completions of it, and what the old policy made of them."""
    lm = tiny(["abcdefgh"], width=32, context=32, seed=3)
    decoding = Decoding(Sampling(max_tokens=9, temperature=0.8), (0,))
    policy = LanguagePolicy(lm, decoding)
    torch.nn.init.normal_(
        policy.value_head.weight, std=0.2, generator=torch.Generator().manual_seed(5)
    )
    drawn = generate(lm, PROMPTS, decoding, torch.Generator().manual_seed(1))
    reference = tiny(["abcdefgh"], width=32, context=32, seed=4)
    old = evaluate_old(policy, reference, drawn.sequences, 64, critic=True)
    return policy, drawn.sequences, old


def batch_of(scene, algorithm):
    _, sequences, old = scene
    score = torch.linspace(-1, 1, len(PROMPTS))
    ratio = torch.zeros(sequences.response.shape).masked_scatter(sequences.response, old.log_ratio)
    reward = shaped(score, torch.zeros_like(ratio), ratio, 0.1, sequences)
    return algorithm.token_batch(sequences, old, reward, 4)


def moved_from(policy):
    """Away from the old policy, so that ratios and clips matter."""
    moved = copy.deepcopy(policy)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
    return moved


def engine_of(policy, micro, kl=None):
    engine = LanguageEngine(policy, FlatOptimizer([], "sgd", 0.0, (0.0, 0.0)), micro, kl)
    engine.beta = 0.3
    return engine


def gradient(scene, algorithm, micro, kl=None, chosen=None):
    moved = moved_from(scene[0])
    engine = engine_of(moved, micro, kl)
    batch = batch_of(scene, algorithm)
    minibatch = batch if chosen is None else batch.select(chosen)
    terms = engine.add_gradient(algorithm, minibatch, algorithm.coefficients(0.0))
    gradients = torch.cat([p.grad.reshape(-1) for p in moved.parameters() if p.grad is not None])
    return gradients, terms


@pytest.mark.parametrize("normalize", ["batch", "minibatch", "episode", "none"])
@pytest.mark.parametrize(
    "kl", [KLConfig(), KLConfig(where="loss"), KLConfig(where="loss", estimator="k3")]
)
def test_micro_batches_change_nothing(scene, normalize, kl):
    algorithm = dataclasses.replace(
        TOKEN_PPO, normalize_advantage=normalize, entropy_coef=0.01, clip_high=0.3, dual_clip=3.0
    )
    whole, terms = gradient(scene, algorithm, 32, kl)
    assert whole.norm() > 0.01
    for micro in (1, 4, 7):
        parts, same = gradient(scene, algorithm, micro, kl)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
        for name, term in terms.items():
            torch.testing.assert_close(same[name], term, rtol=1e-5, atol=1e-5)


def test_a_minibatch_is_the_mean_over_its_own_tokens(scene):
    chosen = torch.tensor([5, 0, 17])
    whole, _ = gradient(scene, TOKEN_PPO, 32, chosen=chosen)
    lengths = scene[1].lengths[chosen]
    single = [gradient(scene, TOKEN_PPO, 1, chosen=chosen[i : i + 1])[0] for i in range(3)]
    expected = sum(n * g for n, g in zip(lengths, single, strict=True)) / lengths.sum()
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "of"),
    [
        ("k2", lambda policy, reference: 0.5 * (policy - reference) ** 2),
        # GRPO's: π_ref/π - log(π_ref/π) - 1, of samples of π.
        ("k3", lambda policy, reference: (reference - policy).exp() - (reference - policy) - 1),
    ],
)
def test_the_kl_in_the_loss_by_hand(scene, estimator, of):
    policy, sequences, old = scene
    with torch.no_grad():
        now = moved_from(policy).evaluate(sequences, entropy=False).log_prob
    of_token = of(now.double(), old.reference.double())
    length = torch.repeat_interleave(sequences.lengths, sequences.lengths)
    for mean, expected in (
        ("tokens", of_token.mean()),
        ("sequences", (of_token / length).sum() / len(PROMPTS)),
    ):
        algorithm = dataclasses.replace(TOKEN_PPO, loss_mean=mean)
        kl = KLConfig(where="loss", estimator=estimator)
        _, terms = gradient(scene, algorithm, 7, kl)
        assert float(terms["kl_loss"]) == pytest.approx(float(expected), rel=1e-5)
        plain = gradient(scene, algorithm, 7)[1]["loss"]
        assert float(terms["loss"] - plain) == pytest.approx(0.3 * float(expected), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kl", [KLConfig(), KLConfig(where="loss", estimator="k3")])
def test_micro_batches_change_nothing_without_a_critic(scene, method, kl):
    algorithm = TokenPPO(clip=0.1, clip_high=0.3, dual_clip=3.0, **METHODS[method])
    whole, terms = gradient(scene, algorithm, 32, kl)
    assert whole.norm() > 0.01
    for micro in (1, 4, 7):
        parts, same = gradient(scene, algorithm, micro, kl)
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
        for name, term in terms.items():
            torch.testing.assert_close(same[name], term, rtol=1e-5, atol=1e-5)


def test_a_mean_over_sequences_is_the_mean_of_each_alone(scene):
    algorithm = TokenPPO(**METHODS["gspo"], clip=0.02)
    kl, chosen = KLConfig(where="loss"), torch.tensor([5, 0, 17])
    assert len(set(scene[1].lengths[chosen].tolist())) > 1
    whole, terms = gradient(scene, algorithm, 32, kl, chosen)
    single = [gradient(scene, algorithm, 1, kl, chosen[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, sum(g for g, _ in single) / 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["loss"], sum(t["loss"] for _, t in single) / 3)


def test_the_share_beyond_the_clip_is_of_the_ratios_that_are_clipped(scene):
    policy, sequences, old = scene
    lengths = sequences.lengths
    # Tokens that move up and down in turn: each is beyond the clip, their mean moves little.
    ratio = 0.5 * (-1.0) ** torch.arange(len(old.log_prob))
    mean = torch.stack([part.mean() for part in ratio.split(lengths.tolist())])
    beyond = {
        "token": 1.0,
        "sequence": float(((mean.exp() - 1).abs() > 0.2).double() @ lengths.double()) / len(ratio),
    }
    assert 0 < beyond["sequence"] < 0.9
    for kind, share in beyond.items():
        algorithm = TokenPPO(ratio=kind, clip=0.2)
        batch = batch_of(scene, algorithm)
        moved, at = old.log_prob + ratio, algorithm.coefficients(0.0)
        new = Evaluation(moved, None, batch.value, None)
        found = algorithm.read(policy, new, batch, at)
        assert found["clip_fraction"] == pytest.approx(share)


def test_rows_of_sequences(scene):
    batch = batch_of(scene, TOKEN_PPO)
    rows = scene[1].rows_of(torch.tensor([3, 1, 4]))
    expected = [int(i) for s in (3, 1, 4) for i in (batch.episode == s).nonzero()]
    assert rows.tolist() == expected


@pytest.mark.parametrize("advantage", ["gae", "n-step", "td0", "monte-carlo"])
def test_masked_advantages_are_those_of_each_sequence_alone(scene, advantage):
    algorithm = dataclasses.replace(
        TOKEN_PPO, gamma=0.97, lam=0.9, advantage=advantage, n=3, normalize_advantage="none"
    )
    _, sequences, old = scene
    whole = batch_of(scene, algorithm)
    score = torch.linspace(-1, 1, len(PROMPTS))
    for i in range(len(PROMPTS)):
        own = whole.episode == i
        alone = sequences.select(torch.tensor([i]))
        part = OldPolicy(old.log_prob[own], old.value[own], old.reference[own])
        reward = shaped(score[i : i + 1], torch.zeros(1, 1), part.log_ratio[None], 0.1, alone)
        single = algorithm.token_batch(alone, part, reward)
        torch.testing.assert_close(whole.advantage[own], single.advantage)
        torch.testing.assert_close(whole.target[own], single.target)


def test_rewards_and_gae_by_hand():
    sequences = Sequences.join([[2], [2, 3]], [[4, 5, 0], [6]])
    ratio = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]])
    reward = shaped(torch.tensor([1.0, -1.0]), torch.zeros(2, 3), ratio, 0.5, sequences)
    expected = torch.tensor([[-0.05, -0.1, 0.85], [-1.2, 0.0, 0.0]])
    torch.testing.assert_close(reward, expected)
    value = torch.tensor([0.5, 0.2, 0.1, -0.3])
    algorithm = TokenPPO(gamma=0.9, lam=0.8, normalize_advantage="none")
    batch = algorithm.token_batch(sequences, OldPolicy(value, value, value), reward)
    d = [-0.05 + 0.9 * 0.2 - 0.5, -0.1 + 0.9 * 0.1 - 0.2, 0.85 - 0.1]
    a1 = d[1] + 0.72 * d[2]
    expected = torch.tensor([d[0] + 0.72 * a1, a1, d[2], -1.2 + 0.3])
    torch.testing.assert_close(batch.advantage, expected)
    assert batch.action.tolist() == [4, 5, 0, 6]


def test_whitening_leaves_padding_out(scene):
    advantage = batch_of(scene, TOKEN_PPO).advantage
    assert abs(float(advantage.mean())) < 1e-6
    assert float(advantage.std(correction=0)) == pytest.approx(1, abs=1e-4)


class Bigrams(gym.Env):
    """The token env: one sees the last token, and says the next; 0 ends it, and so does time."""

    observation_space = gym.spaces.Box(0, 1, (TOKENS_THERE,), np.float32)
    action_space = gym.spaces.Discrete(TOKENS_THERE)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.last, self.time = int(self.np_random.integers(1, TOKENS_THERE)), 0
        return self.see(), {}

    def see(self):
        return np.eye(TOKENS_THERE, dtype=np.float32)[self.last]

    def step(self, action):
        reward = float(WORTH[self.last, action])
        self.last, self.time = int(action), self.time + 1
        return self.see(), reward, action == 0 or self.time == LONGEST, False, {}


class Bigram(torch.nn.Module):
    """Control's network as a language model that looks at the last token alone."""

    def __init__(self, control):
        super().__init__()
        self.control = control
        self.width = control.baseline.in_features

    def read(self, sequences):
        last = sequences.tokens[:, :-1][:, -sequences.response.shape[-1] :]
        seen = torch.eye(TOKENS_THERE)[last[sequences.response]]
        features = self.control.actor(seen)
        return self.control.logits(features), features


@pytest.mark.parametrize("normalize", ["minibatch", "batch", "none"])
def test_a_token_env_gives_the_gradient_of_the_same_env_in_control(normalize):
    tokens = TokenPPO(
        gamma=0.9, lam=0.8, entropy_coef=0.02, normalize_advantage=normalize, clip_high=0.3
    )
    algorithm = PPO(**{field.name: getattr(tokens, field.name) for field in fields(PPO)})
    config = Config(
        algorithm=algorithm,
        rollout=RolloutConfig(episodes=12),
        env=EnvConfig(num_envs=3, check=False),
        net=NetConfig(hidden=(8,), trunk="shared", policy_gain=1.0),
        run=RunConfig(engine="torch", seed=2),
    )
    with make_session(config, source=Bigrams) as session:
        state = session.state
        rollout = collect(session.task.envs, state, config.env, steps=256, episodes=12)
        batch = algorithm.prepare(state, rollout)
        control = copy.deepcopy(state.policy)
    policy = LanguagePolicy(Bigram(copy.deepcopy(control)), Decoding(Sampling(), ()))
    policy.value_head = policy.lm.control.baseline

    rows = [(batch.episode == i).nonzero().view(-1) for i in range(12)]
    seen = batch.obs.argmax(-1)
    sequences = Sequences.join(
        [[5] * i + [int(seen[r[0]])] for i, r in enumerate(rows)],  # what stood before is no matter
        [batch.action[r].tolist() for r in rows],
    )
    assert len(set(sequences.lengths.tolist())) > 2
    worth = torch.zeros(sequences.response.shape)
    worth[sequences.response] = torch.tensor(WORTH)[seen, batch.action]
    with torch.no_grad():
        old = policy.evaluate(sequences, entropy=False)
        judged = OldPolicy(old.log_prob, old.value, old.log_prob)
    own = tokens.token_batch(sequences, judged, worth)
    for name in ("action", "log_prob", "value", "advantage", "target", "episode"):
        torch.testing.assert_close(getattr(own, name), getattr(batch, name))

    with torch.no_grad():  # by the same way from the old policy, in both
        for one, other in zip(control.parameters(), policy.lm.control.parameters(), strict=True):
            step = 0.2 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
            one.add_(step)
            other.add_(step)
    for parameter in control.parameters():
        parameter.grad = None
    coefficients = algorithm.coefficients(0.0)
    loss, _ = algorithm.loss(control, batch, coefficients)
    loss.backward()
    engine = engine_of(policy, 5, KLConfig(coef=0))
    terms = engine.add_gradient(tokens, own, coefficients)
    torch.testing.assert_close(terms["loss"], loss.detach())
    gradients = {name: p.grad for name, p in control.named_parameters()}
    for name, parameter in policy.lm.control.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])
    assert gradients["logits.weight"].norm() > 0.01
