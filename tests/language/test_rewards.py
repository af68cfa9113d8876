"""Rewards: what they are handed, what they may return, and where a score is read."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from proximo import UsageError
from proximo.language import RewardModel, tiny
from proximo.language.examples import Examples
from proximo.language.records import Completions
from proximo.language.reward import RewardSum, find_reward, scores_of
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer

ROWS = [{"prompt": "a", "goal": 1}, {"prompt": "bb", "goal": 2}]
EXAMPLES = Examples.read(ROWS, "prompt")


@pytest.fixture(scope="module")
def lm():
    return tiny(["abcd"], width=16, heads=2, context=16)


def completions(prompts):
    ids = [[4, 5, 0], [3]]
    stopped = torch.tensor([True, False])
    return Completions(Sequences.join(prompts, ids), torch.zeros(4), stopped, ids)


def weigh(lm, *rewards, weights=()):
    prompts = EXAMPLES.prompts(Tokenizer(lm.tokenizer))
    drawn = completions(prompts)
    return RewardSum(rewards, weights, EXAMPLES)(ROWS, prompts, drawn, ["cd", "b"], 1, UsageError)


def test_a_reward_is_handed_texts_ids_and_columns(lm):
    seen = {}

    def reward(**given):
        seen.update(given)
        return [1.0, 2]

    score, dense = weigh(lm, reward)
    assert seen == {
        "prompts": ["a", "bb"],
        "completions": ["cd", "b"],
        "prompt_ids": [[2], [3, 3]],
        "completion_ids": [[4, 5, 0], [3]],
        "goal": [1, 2],
        "prompt": ["a", "bb"],
    }
    assert score.tolist() == [1.0, 2.0]
    assert not dense.any()


def test_a_reward_may_use_up_what_it_is_handed(lm):
    def spoils(prompts, prompt_ids, completion_ids, tags):
        for given in (*prompt_ids, *completion_ids, *tags, prompts, completion_ids):
            given.clear()
        return [0, 0]

    def looks(prompt_ids, completion_ids, tags):
        return [float(len(ids) + len(tag)) for ids, tag in zip(completion_ids, tags, strict=True)]

    rows = [{**row, "tags": ["x"]} for row in ROWS]
    tokenizer = Tokenizer(lm.tokenizer)
    examples = Examples.read(rows, "prompt")
    prompts = examples.prompts(tokenizer)
    drawn = completions(prompts)
    score, _ = RewardSum([spoils, looks], (), examples)(rows, prompts, drawn, ["cd", "b"], 1)
    assert score.tolist() == [4.0, 2.0]
    assert prompts == examples.prompts(tokenizer) == [[2], [3, 3]]
    assert [row["tags"] for row in rows] == [["x"], ["x"]]


def test_a_reward_takes_what_it_names(lm):
    score, _ = weigh(lm, lambda completions, goal, other=3: [g * other for g in goal])
    assert score.tolist() == [3.0, 6.0]


def test_a_column_that_is_not_there_is_refused(lm):
    with pytest.raises(UsageError, match=r"wants 'truth', but there are: prompts, .*goal"):
        weigh(lm, lambda completions, truth: [0, 0])


def test_rewards_per_token_and_weights(lm):
    score, dense = weigh(
        lm,
        lambda completion_ids: [[0.5] * len(ids) for ids in completion_ids],
        lambda goal: torch.tensor(goal).double(),
        weights=[2.0, -1.0],
    )
    assert score.tolist() == [-1.0, -2.0]
    assert dense.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([1.0], "returned 1 numbers for 2 completions"),
        ([1.0, float("nan")], r"nan for the completion 'b' of 'bb': it must be finite"),
        ([1.0, "good"], r"'good' for the completion 'b' of 'bb': it must be a number"),
        ([[0.1, 0.2], 1.0], r"2 numbers for the completion 'cd' of 'a', which has 3 tokens"),
        (None, "the reward failed: TypeError"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_completion(lm, found, said):
    with pytest.raises(UsageError, match=said):
        weigh(lm, lambda completions: found)


def test_weights_are_one_each(lm):
    with pytest.raises(UsageError, match="2 rewards and 1 weights"):
        weigh(lm, lambda goal: goal, lambda goal: goal, weights=[1.0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "neither a run folder nor module:function"),
        ("no_such_module:f", "importing the module 'no_such_module' failed: ModuleNotFoundError"),
        ("math:flor", "math has no 'flor'. Did you mean floor?"),
        ("math:pi", "it must be a function"),
    ],
)
def test_names_of_rewards_that_are_none(name, said):
    with pytest.raises(UsageError, match=said):
        find_reward(name)


def test_a_score_is_read_at_the_actual_last_token(lm):
    model = RewardModel(copy.deepcopy(lm))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    prompts, answers = [[2], [3, 4, 5], [2, 2]], [[3, 4, 0], [5], [4, 0]]
    together = model(Sequences.join(prompts, answers))
    for prompt, answer, score in zip(prompts, answers, together, strict=True):
        out = model.lm.net(torch.tensor([prompt + answer]), output_hidden_states=True)
        found = model.head(out.hidden_states[-1][0, -1])[0]
        torch.testing.assert_close(found, score, rtol=1e-5, atol=1e-5)
    one_by_one = scores_of(model, Sequences.join(prompts, answers), 1)
    torch.testing.assert_close(one_by_one, together, rtol=1e-5, atol=1e-5)


def test_a_reward_model_of_another_tokenizer_is_refused(lm):
    judge = RewardSum([RewardModel(tiny(["xyz"], width=8, heads=1))], (), EXAMPLES)
    with pytest.raises(UsageError, match="another tokenizer"):
        judge.check(Tokenizer(lm.tokenizer))
