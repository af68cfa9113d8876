"""Envs of text: what is the model's and what is the env's, in tokens, advantages and losses."""

import copy
import dataclasses

import gymnasium as gym
import pytest
import torch

pytest.importorskip("transformers")

from proximo import Schedule, TrainingError, UsageError
from proximo.envs.base import episode_seed
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    Sampling,
    ScoreConfig,
    TokenPPO,
    TrainingConfig,
    ppo,
    tiny,
)
from proximo.language.blueprint import Blueprint
from proximo.language.engine import LanguageEngine, evaluate_old
from proximo.language.envs import TextEnvs, joined
from proximo.language.generate import check_drawn
from proximo.language.model import Decoding, LanguagePolicy
from proximo.language.records import OldPolicy
from proximo.language.reward import shaped
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.checkpoint import Checkpoint

WORDS = gym.spaces.Text(12, charset="abcd?")
FREE = KLConfig(coef=0, reference="none")
QUICK = dataclasses.replace(TOKEN_PPO, learning_rate=1e-3, minibatch_size=4, epochs=2)
FEW = TrainingConfig(updates=6, sequences=8, micro_batch=3, seed=5)
SMALL = ModelConfig(layers=1, width=16, heads=2, context=40)


class Talk(gym.Env):
    """One to three turns of texts of one to four symbols; a reply earns its a's."""

    observation_space = action_space = WORDS

    def __init__(self):
        self.heard = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.heard.append((seed, options))
        self.left = int(self.np_random.integers(1, 4))
        return self.say(), {}

    def say(self):
        return "".join(self.np_random.choice(list("abcd"), self.np_random.integers(1, 5)))

    def step(self, action):
        self.left -= 1
        self.heard.append(action)
        return self.say(), float(action.count("a")), self.left == 0, False, {}


@pytest.fixture(scope="module")
def lm():
    model = tiny(["abcd?"], width=32, context=64)
    with torch.no_grad():  # far from uniform, so that every mistake shows
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def converse(lm, sampling, count=12, rows=None, made=Talk, numbers=range(12)):
    """The envs and their episodes."""
    envs, rows = [made() for _ in range(count)], rows or [{}] * len(numbers)
    together = TextEnvs(envs, Tokenizer(lm.tokenizer), sampling, lm.context, 7, rows)
    return envs, together.play(lm, numbers, rows, torch.Generator().manual_seed(0), 5)


@pytest.mark.parametrize("minimum", [0, 2])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_sampler_and_the_update_agree_over_one_to_three_turns(lm, minimum, temperature):
    sampling = Sampling(max_tokens=4, min_tokens=minimum, temperature=temperature)
    _, episodes = converse(lm, sampling)
    assert {len(e.rewards) for e in episodes} == {1, 2, 3}
    drawn = joined(episodes, lm.device)
    for micro in (1, 5, 64):
        old = evaluate_old(
            LanguagePolicy(lm, Decoding(sampling, (0,))), None, drawn.sequences, micro, critic=True
        )
        torch.testing.assert_close(drawn.log_prob, old.log_prob, rtol=1e-5, atol=1e-5)
        assert check_drawn(drawn.log_prob, old) < 1e-5


def test_a_conversation_holds_what_was_drawn_and_what_the_env_said(lm):
    sampling = Sampling(max_tokens=3)
    envs, episodes = converse(lm, sampling, rows=[{"level": i} for i in range(12)])
    tokenizer = Tokenizer(lm.tokenizer)
    for number, (env, episode) in enumerate(zip(envs, episodes, strict=True)):
        assert env.heard[-len(episode.rewards) - 1] == (
            episode_seed(7, 0, number),
            {"level": number},
        )
        replies = env.heard[-len(episode.rewards) :]
        assert episode.texts[1::2] == replies
        assert episode.rewards == [float(reply.count("a")) for reply in replies]
        assert tokenizer.text(episode.prompt) == episode.texts[0]
        assert tokenizer.text(episode.tokens) == "".join(episode.texts[1:])
        kept = [t for t, own in zip(episode.tokens, episode.response, strict=True) if not own]
        assert tokenizer.text(kept) == "".join(episode.texts[2::2])
        assert 0 not in kept
        assert sum(episode.response) == len(episode.log_prob)
        assert episode.response[-1]
        assert episode.terminated
    drawn = joined(episodes, "cpu")
    ends = drawn.sequences.reply_ends
    assert ends.sum(-1).tolist() == [len(e.rewards) for e in episodes]
    tokens = drawn.sequences.tokens[:, -ends.shape[1] :]
    assert torch.equal(tokens[ends] == 0, drawn.stopped)
    assert 0 < drawn.stopped.sum() < len(drawn.stopped)


def test_more_episodes_than_envs(lm):
    _, episodes = converse(lm, Sampling(max_tokens=3), count=5)
    assert [e.seed for e in episodes] == [episode_seed(7, 0, number) for number in range(12)]
    first = converse(lm, Sampling(max_tokens=3), count=5, numbers=range(5))[1]
    assert [e.texts for e in first] == [e.texts for e in episodes[:5]]


def test_what_is_said_does_not_depend_on_when_others_are_over(lm):
    whole = converse(lm, Sampling(max_tokens=3))[1]
    first = next(i for i, e in enumerate(whole) if len(e.rewards) > 1)
    made = [Impatient() if i == first else Talk() for i in range(12)]
    beside = converse(lm, Sampling(max_tokens=3), made=iter(made).__next__)[1]
    assert len(beside[first].rewards) == 1
    same = [i for i in range(12) if i != first]
    assert [whole[i].texts for i in same] == [beside[i].texts for i in same]


SEQUENCES = Sequences.join(
    [[2, 3], [4]],
    [[5, 0, 2, 3, 4, 6, 7, 0], [5, 6, 0]],
    response=[[True, True, False, False, False, True, True, True], [True] * 3],
)


def test_rewards_and_gae_of_turns_by_hand():
    """Two turns of 2 and 3 tokens with an env's 3 between them, beside a single one."""
    response = SEQUENCES.response
    score = torch.tensor([1.0, -1.0, 0.5])  # of the first episode's turns, then the second's
    ratio = torch.full(response.shape, 0.2)
    reward = shaped(score, torch.zeros(response.shape), ratio, 0.5, SEQUENCES)
    expected = torch.zeros(2, 8)
    expected[0, [0, 1, 5, 6, 7]] = torch.tensor([-0.1, 0.9, -0.1, -0.1, -1.1])
    expected[1, :3] = torch.tensor([-0.1, -0.1, 0.4])
    torch.testing.assert_close(reward, expected)
    value = torch.tensor([0.5, 0.2, 0.1, -0.3, 0.4, 0.6, -0.2, 0.3])
    algorithm = TokenPPO(gamma=0.9, lam=0.8, normalize_advantage="none")
    batch = algorithm.token_batch(SEQUENCES, OldPolicy(value, value, value), reward)
    # One step of γ and λ from the first turn's last token to the second turn's first.
    d = [
        -0.1 + 0.9 * 0.2 - 0.5,
        0.9 + 0.9 * 0.1 - 0.2,
        -0.1 + 0.9 * -0.3 - 0.1,
        -0.1 + 0.9 * 0.4 + 0.3,
        -1.1 - 0.4,
    ]
    advantage = [sum(0.72 ** (j - i) * d[j] for j in range(i, 5)) for i in range(5)]
    torch.testing.assert_close(batch.advantage[:5], torch.tensor(advantage))
    assert batch.action.tolist() == [5, 0, 6, 7, 0, 5, 6, 0]
    assert batch.episode.tolist() == [0] * 5 + [1] * 3
    assert batch.obs.tolist() == [2, 3, 7, 8, 9, 1, 2, 3]  # positions count what the env said


@pytest.mark.parametrize("advantage", ["gae", "n-step", "monte-carlo"])
def test_advantages_of_turns_are_those_of_a_loop_over_all_pairs(lm, advantage):
    gamma, lam = 0.95, 0.7
    algorithm = TokenPPO(gamma=gamma, lam=lam, normalize_advantage="none", advantage=advantage, n=3)
    drawn = joined(converse(lm, Sampling(max_tokens=4))[1], "cpu")
    draw = torch.Generator().manual_seed(1)
    response, count = drawn.sequences.response, len(drawn.log_prob)
    value = torch.randn(count, generator=draw, dtype=torch.float64)
    reward = torch.randn(response.shape, generator=draw, dtype=torch.float64)
    batch = algorithm.token_batch(drawn.sequences, OldPolicy(value, value, value), reward)
    place = 0
    for row, own in zip(reward, response, strict=True):
        r = row[own]
        v = torch.cat([value[place : place + len(r)], torch.zeros(1, dtype=torch.float64)])
        for i in range(len(r)):
            reach = {"gae": lam, "n-step": 1.0, "monte-carlo": 1.0}[advantage]
            last = min(i + 3, len(r)) if advantage == "n-step" else len(r)
            expected = sum(
                (gamma * reach) ** (j - i) * (r[j] + gamma * v[j + 1] - v[j])
                for j in range(i, last)
            )
            torch.testing.assert_close(batch.advantage[place + i], expected)
        place += len(r)
    assert place == count


def test_the_loss_is_over_the_models_tokens_only(lm):
    """As that of sequences made by hand, one for each reply, with all before it as the prompt."""
    sampling = Sampling(max_tokens=4, min_tokens=1, temperature=0.8)
    _, episodes = converse(lm, sampling)
    drawn = joined(episodes, "cpu")
    policy = LanguagePolicy(lm, Decoding(sampling, (0,)))
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(1))
    prompts, replies = [], []
    for e in episodes:
        row, begin = e.prompt + e.tokens, len(e.prompt)
        own = [False] * begin + e.response
        for end in range(begin, len(row)):
            if own[end] and not own[end - 1]:
                prompts.append(row[:end])
                replies.append([])
            if own[end]:
                replies[-1].append(row[end])
    by_hand = Sequences.join(prompts, replies)
    assert len(prompts) > len(episodes)
    old = evaluate_old(policy, None, drawn.sequences, 64, critic=True)
    reward = torch.zeros(drawn.sequences.response.shape)
    reward[drawn.sequences.reply_ends] = torch.linspace(-1, 1, len(drawn.stopped))
    batch = TOKEN_PPO.token_batch(drawn.sequences, old, reward)
    reply = torch.arange(len(replies)).repeat_interleave(torch.tensor(list(map(len, replies))))
    algorithm = dataclasses.replace(TOKEN_PPO, entropy_coef=0.01)
    found = []
    for own in (batch, dataclasses.replace(batch, sequences=by_hand, episode=reply)):
        moved = copy.deepcopy(policy)
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
        optimizer = FlatOptimizer([], "sgd", 0.0, (0.0, 0.0))
        engine = LanguageEngine(moved, optimizer, 5, KLConfig(where="loss"))
        engine.beta = 0.3
        terms = engine.add_gradient(algorithm, own, algorithm.coefficients(0.0))
        grads = [p.grad.reshape(-1) for p in moved.parameters() if p.grad is not None]
        found.append((torch.cat(grads), terms))
    (one, terms), (other, same) = found
    assert one.norm() > 0.01
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, term in terms.items():
        torch.testing.assert_close(same[name], term, rtol=1e-4, atol=1e-5)


class Once(gym.Env):
    """A single reply to the row's prompt, which earns its b's."""

    observation_space = action_space = WORDS

    def reset(self, *, seed=None, options=None):
        return options["prompt"], {}

    def step(self, action):
        return "", float(action.count("b")), True, False, {}


def test_an_env_of_one_turn_is_the_plain_reward_to_the_bit():
    lm = tiny(["abcd?"], layers=1, width=16, heads=2, context=16)
    settings = {
        "algorithm": QUICK,
        "run": FEW,
        "sampling": Sampling(max_tokens=4),
        "score": ScoreConfig(clip=1.5, missing_eos_penalty=0.3),
    }
    prompts = ["ab", "c", "dd?"]
    plain = ppo(lm, prompts, lambda completions: [t.count("b") for t in completions], **settings)
    env = ppo(lm, prompts, env=Once, **settings)
    for one, other in zip(plain.rows, env.rows, strict=True):
        timed = {"seconds": 0, "tokens_per_second": 0}
        assert {k: v for k, v in other.items() if k in one} | timed == one | timed
        assert other["turns"] == 1
        assert other["truncated"] == 0
    states = zip(plain.lm.state_dict().values(), env.lm.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in states)


class Remember(gym.Env):
    """Two symbols are said, one in each turn; the last reply should say both: 1/2 for each."""

    observation_space = action_space = WORDS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = "".join(self.np_random.choice(list("abcd"), 2))
        self.first = True
        return self.said[0], {}

    def step(self, action):
        if self.first:
            self.first = False
            return self.said[1], 0.0, False, False, {}
        right = sum(a == b for a, b in zip(self.said, action, strict=False))
        return "?", right / 2, True, False, {}


def test_what_was_said_in_both_turns_is_learned_in_200_updates():
    scores = []

    def learned(state, rollout, row):
        scores.append(row["score"])
        return len(scores) >= 10 and sum(scores[-10:]) / 10 >= 0.95

    result = ppo(
        ModelConfig(layers=1, width=32, heads=2, context=16),
        env=Remember,
        updates=200,
        seed=2,
        sampling=Sampling(max_tokens=2),
        kl=FREE,
        algorithm=dataclasses.replace(
            TOKEN_PPO, learning_rate=Schedule.parse("linear:5e-3:0"), minibatch_size=32, epochs=2
        ),
        run=TrainingConfig(sequences=64, micro_batch=64),
        callbacks=[learned],
    )
    assert sum(result.scores[-10:]) / 10 >= 0.95
    assert {row["turns"] for row in result.rows} == {2.0}


def rows_without_time(result):
    timed = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timed} for row in result.rows]


def run_talk(run_dir, *, resume=False, callbacks=(), env=Talk, prompts=None, **changes):
    settings = {
        "algorithm": QUICK,
        "run": FEW,
        "sampling": Sampling(max_tokens=3),
        "score": ScoreConfig(missing_eos_penalty=0.1),
        **changes,
    }
    return ppo(
        SMALL,
        prompts,
        env=env,
        run_dir=run_dir,
        resume=resume,
        callbacks=callbacks,
        **settings,
    )


@pytest.mark.parametrize("prompts", [None, [{"level": 1}, {"level": 2}, {"level": 3}]])
def test_a_run_after_a_break_is_the_same_to_the_bit(tmp_path, prompts):
    straight = run_talk(tmp_path / "straight", prompts=prompts)
    stop = [lambda state, rollout, row: state.updates == 3]
    run_talk(tmp_path / "broken", prompts=prompts, callbacks=stop)
    resumed = run_talk(tmp_path / "broken", prompts=prompts, resume=True)
    assert rows_without_time(resumed) == rows_without_time(straight)
    one, other = (
        Checkpoint(tmp_path / name / "checkpoints/last.safetensors")
        for name in ("straight", "broken")
    )
    assert one.record == other.record
    assert all(torch.equal(x, other.tensors[name]) for name, x in one.tensors.items())
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("straight", "broken")]
    assert samples[0] == samples[1]


def test_an_env_may_use_up_its_options_and_they_may_have_any_name(tmp_path):
    class Dealt(Talk):
        def reset(self, *, seed=None, options=None):
            self.card = options["prompt"].pop()
            return super().reset(seed=seed)

        def step(self, action):
            text, _, *rest = super().step(action)
            return text, self.card, *rest

    prompts = [{"prompt": [1, 2, 3]}, {"prompt": [4, 5]}]
    straight = run_talk(None, env=Dealt, prompts=prompts)
    stop = [lambda state, rollout, row: state.updates == 3]
    run_talk(tmp_path / "run", env=Dealt, prompts=prompts, callbacks=stop)
    resumed = run_talk(tmp_path / "run", env=Dealt, prompts=prompts, resume=True)
    assert rows_without_time(resumed) == rows_without_time(straight)
    assert prompts == [{"prompt": [1, 2, 3]}, {"prompt": [4, 5]}]


def test_episodes_that_are_compared_begin_alike_and_held_out_ones_apart():
    seeds = []

    class Noted(Talk):
        def reset(self, *, seed=None, options=None):
            seeds.append((seed, options))
            return super().reset(seed=seed, options=options)

    result = run_talk(
        None,
        env=Noted,
        prompts=[{"level": i} for i in range(10)],
        kl=FREE,
        algorithm=TokenPPO(
            advantage="rloo", critic=False, normalize_advantage="none", minibatch_size=4
        ),
        run=dataclasses.replace(
            FEW, updates=2, completions_per_prompt=4, held_out=0.3, eval_every=1
        ),
    )
    begun, seeds = seeds[1:], [seed for seed, _ in seeds[1:]]  # the first one is only looked at
    of = [episode_seed(5, 0, number) for number in range(4)]
    held_out = [episode_seed(5, 0, -number) for number in (1, 2, 3)]
    assert seeds == [of[0]] * 4 + [of[1]] * 4 + held_out + [of[2]] * 4 + [of[3]] * 4 + held_out
    assert begun[8:11] == begun[19:]
    assert all(begun[4 * i] == begun[4 * i + 3] for i in (0, 1))
    assert all("held_out_score" in row for row in result.rows)


def test_envs_are_closed_whatever_happens(tmp_path):
    made = []

    class Counted(Talk):
        closed = 0

        def __init__(self):
            super().__init__()
            made.append(self)

        def close(self):
            self.closed += 1

    class Failing(Counted):
        def step(self, action):
            raise RuntimeError("no more words")

    run_talk(None, env=Counted)
    with pytest.raises(UsageError, match=r"Failing, in turn 1 of episode 0 .* no more words"):
        run_talk(tmp_path / "run", env=Failing)
    assert not (tmp_path / "run").exists()
    assert [env.closed for env in made] == [1] * 16


class Endless(Talk):
    """Goes on for as long as it may."""

    def step(self, action):
        super().step(action)
        return "ab", 1.0, False, False, {}


class Impatient(Endless):
    def step(self, action):
        return *super().step(action)[:3], True, {}


@pytest.mark.parametrize(
    ("made", "context", "turns"), [(Endless, 64, 4), (Endless, 14, 2), (Impatient, 64, 1)]
)
def test_limits_end_an_episode(made, context, turns):
    """That of turns, the env's own, and the model's: 4 said + 3 drawn + 2 + 3 + 2 + 3 > 14."""
    lm = tiny(["abcd?"], layers=1, width=16, heads=2, context=context)
    sampling = Sampling(max_tokens=3, min_tokens=2, stop=(), max_turns=4)
    _, episodes = converse(lm, sampling, made=made)
    longest = max(episodes, key=lambda e: len(e.prompt) + len(e.tokens))
    assert len(longest.prompt) + len(longest.tokens) <= context
    assert min(len(e.rewards) for e in episodes) == turns
    for e in episodes:
        assert e.truncated
        assert not e.terminated
        assert e.response[-1]
        assert len(e.texts) == 2 * len(e.rewards)


class Boxed(gym.Env):
    observation_space = gym.spaces.Box(0, 1)
    action_space = WORDS


class Numbered(gym.Env):
    observation_space = WORDS
    action_space = gym.spaces.Discrete(2)


def opening(answer):
    class Opening(Talk):
        def reset(self, *, seed=None, options=None):
            return answer

    return Opening


ONE = Talk()


@pytest.mark.parametrize(
    ("env", "changes", "said"),
    [
        (Boxed, {}, "has the observation_space Box.*both spaces are gymnasium.spaces.Text"),
        (Numbered, {}, r"has the action_space Discrete\(2\)"),
        (opening(("", {})), {}, "at the start of episode 0 .*says '', which has no tokens"),
        (opening((3, {})), {}, "says 3: it must be text"),
        (opening("ab"), {}, r"returned 'ab': it must be \(text, info\)"),
        (opening(("xyz", {})), {}, "says 'xyz', which is not in its observation_space"),
        (opening(("a" * 12, {})), {"sampling": Sampling(max_tokens=30)}, "12 tokens and 30 to be"),
        (lambda: ONE, {}, "one and the same env twice"),
        (lambda: 1 / 0, {}, "cannot be made: ZeroDivisionError"),
        (Talk, {"score": ScoreConfig(normalize=True)}, "score.normalize is set"),
        (Talk, {"reward": lambda completions: [1.0]}, "an env and a reward"),
        (Talk, {"score": ScoreConfig(reward=("m:f",))}, "an env and a reward"),
        (Talk, {"score": ScoreConfig(weights=(2.0,))}, "score.weights is .* an env"),
        (Talk, {"run": dataclasses.replace(FEW, held_out=0.5, eval_every=1)}, "which is none"),
        (None, {}, "there are no prompts"),
    ],
)
def test_envs_with_which_one_cannot_talk(monkeypatch, tmp_path, env, changes, said):
    def build(self, seed, *, random=False):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Blueprint, "build", build)
    with pytest.raises(UsageError, match=said):
        run_talk(tmp_path / "run", env=env, **changes)
    assert not (tmp_path / "run").exists()


def test_of_an_env_only_the_characters_are_known():
    with pytest.raises(UsageError, match=r"model\.symbols is words"):
        ppo(ModelConfig(symbols="words"), env=Talk, updates=1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (("a", float("nan"), False, False, {}), "rewards '.*' by nan: it must be finite"),
        (("a", "much", False, False, {}), "rewards '.*' by 'much': it must be a number"),
        (("a", 1.0, False, {}), "returned .*: it must be .*truncated, info"),
        ((None, 1.0, False, False, {}), "says None: it must be text"),
        (("", 1.0, False, False, {}), "says '', which has no tokens"),
    ],
)
def test_an_env_that_fails_later_is_named_with_its_turn_and_the_run_kept(tmp_path, answer, said):
    class Late(Talk):
        bad = True

        def step(self, action):
            known = super().step(action)
            return answer if self.bad and len(self.heard) > 4 and self.left else known

    with pytest.raises(
        TrainingError, match=rf"Late, in turn 1 of episode \d+ \(seed \d+\), {said}"
    ):
        run_talk(tmp_path / "run", env=Late)
    Late.bad = False
    assert run_talk(tmp_path / "run", env=Late, resume=True).rows[-1]["update"] == 6
