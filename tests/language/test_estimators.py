"""Advantages without a critic, ratios of sequences, means of losses, and held-out prompts."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("transformers")

from language.test_language_update import METHODS
from language.test_stages import QUICK, SHORT, SMALL, count_a, rows_without_time, stop_after
from proximo import Schedule, UsageError
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    PTXConfig,
    Sampling,
    TokenPPO,
    TrainingConfig,
    load_model,
    ppo,
    sft,
    tiny,
)
from proximo.language.config import Stage, SupervisedRunConfig
from proximo.language.records import OldPolicy
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer
from proximo.run.checkpoint import Checkpoint

SEQUENCES = Sequences.join([[2], [2], [3], [3]], [[4, 5, 0], [6], [4], [5, 0]])
REWARD = torch.tensor([[0.1, 0.0, 1.0], [2.1, 0, 0], [1.0, 0, 0], [0.5, 0.3, 0]])


def advantages(**settings):
    value = torch.full((7,), 9.0)  # is not to be seen
    algorithm = TokenPPO(**settings)
    old = OldPolicy(value, value, value)
    return algorithm.token_batch(SEQUENCES, old, REWARD, 2).advantage


@pytest.mark.parametrize(
    ("method", "expected"),
    [  # returns: 1.1 and 2.1 of the first prompt, 1.0 and 0.8 of the second
        ("rloo", [-1, -1, -1, 1, 0.2, -0.2, -0.2]),
        ("dr-grpo", [-0.5, -0.5, -0.5, 0.5, 0.1, -0.1, -0.1]),
        ("grpo", [-1, -1, -1, 1, 1, -1, -1]),
    ],
)
def test_all_tokens_have_the_advantage_of_their_completion(method, expected):
    found = advantages(**METHODS[method])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_reinforce_plus_plus_is_the_return_to_go_over_the_batch():
    to_go = torch.tensor([1.1, 1.0, 1.0, 2.1, 1.0, 0.8, 0.3])
    expected = (to_go - to_go.mean()) / to_go.std(correction=0)
    torch.testing.assert_close(advantages(**METHODS["reinforce++"]), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_bandit_of_64_tokens_is_solved_without_a_critic(method):
    arms = [chr(0x4E00 + i) for i in range(64)]
    result = ppo(
        tiny(["?", *arms], layers=1, width=32, heads=2, context=4),
        ["?"],
        lambda completions: [float(text == arms[17]) for text in completions],
        updates=40,
        sampling=dataclasses.replace(SHORT, max_tokens=1),
        kl=KLConfig(coef=0, reference="none"),
        algorithm=dataclasses.replace(
            TOKEN_PPO,
            learning_rate=Schedule.parse("linear:3e-3:3e-4"),
            minibatch_size=64,
            **METHODS[method],
        ),
        run=TrainingConfig(sequences=64, completions_per_prompt=8),
    )
    assert sum(result.scores[-10:]) / 10 >= 0.99


def run(run_dir=None, *, resume=False, callbacks=(), **changes):
    settings = {"updates": 6, "sequences": 8, "micro_batch": 3, "seed": 5, **changes}
    more = {name: settings.pop(name) for name in ("algorithm", "kl", "ptx") if name in settings}
    return ppo(
        ModelConfig(**SMALL),
        ["ab", "c", "abc", "ba", "bc"],
        count_a,
        run=TrainingConfig(**settings),
        run_dir=run_dir,
        resume=resume,
        callbacks=callbacks,
        sampling=SHORT,
        **{"algorithm": QUICK, **more},
    )


@pytest.mark.parametrize("method", ["grpo", "gspo"])
def test_a_run_with_all_of_it_goes_on_exactly(tmp_path, method):
    settings = {
        "algorithm": dataclasses.replace(QUICK, **METHODS[method]),
        "kl": KLConfig(where="loss", estimator="k3"),
        "completions_per_prompt": 4,
        "eval_every": 2,
        "held_out": 0.4,
    }
    straight = run(tmp_path / "straight", **settings)
    run(tmp_path / "broken", callbacks=[stop_after(3)], **settings)
    resumed = run(tmp_path / "broken", resume=True, **settings)
    assert rows_without_time(resumed) == rows_without_time(straight)
    records = [
        Checkpoint(tmp_path / name / "checkpoints/last.safetensors").record
        for name in ("straight", "broken")
    ]
    assert records[0] == records[1]
    models = [(tmp_path / name / "best/model.safetensors") for name in ("straight", "broken")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert straight.final == resumed.final


def test_prompts_come_k_times_one_after_the_other():
    seen = []

    def reward(prompts, completions):
        seen.append(prompts)
        return count_a(completions)

    ppo(
        ModelConfig(**SMALL),
        ["ab", "c", "abc"],
        reward,
        updates=3,
        run=TrainingConfig(sequences=8, completions_per_prompt=4),
        algorithm=QUICK,
        sampling=SHORT,
    )
    for prompts in seen:
        assert [len(set(prompts[i : i + 4])) for i in (0, 4)] == [1, 1]
    first = [prompts[i] for prompts in seen for i in (0, 4)]
    assert sorted(first[:3]) == sorted(first[3:]) == ["ab", "abc", "c"]


def test_evaluations_change_nothing_in_training():
    every = run(eval_every=1, held_out=0.4)
    rare = run(eval_every=3, held_out=0.4)
    kept = [
        [
            {k: v for k, v in row.items() if "held" not in k and k != "best"}
            for row in rows_without_time(result)
        ]
        for result in (every, rare)
    ]
    assert kept[0] == kept[1]
    scores = [[row.get("held_out_score") for row in result.rows] for result in (every, rare)]
    assert None not in scores[0]
    assert scores[1] == [None, None, scores[0][2], None, None, scores[0][5]]
    assert every.final == {"best_held_out_score": max(scores[0])}
    ended = run(eval_every=1, held_out=0.4, callbacks=[stop_after(2)])
    assert ended.final == {"best_held_out_score": max(scores[0][:2])}
    assert all("held_out_kl" in row for row in every.rows)


def test_held_out_prompts_are_never_trained_on_and_the_best_model_is_kept(tmp_path):
    prompts = ["a", "b", "c", "ab", "ba"]
    seen, weights = [], []

    def reward(prompts, completions):
        seen.append(set(prompts))
        return count_a(completions)

    def look(state, rollout, row):
        weights.append((row["held_out_score"], state.lm.net.lm_head.weight.clone()))

    ppo(
        ModelConfig(**SMALL),
        prompts,
        reward,
        run=TrainingConfig(updates=5, sequences=16, eval_every=1, held_out=0.4),
        algorithm=QUICK,
        sampling=SHORT,
        run_dir=tmp_path / "run",
        callbacks=[look],
    )
    trained, held_out = set().union(*seen[::2]), set().union(*seen[1::2])
    assert len(held_out) == 2
    assert trained | held_out == set(prompts)
    assert not trained & held_out
    best = max(weights, key=lambda x: x[0])[1]
    assert torch.equal(load_model(tmp_path / "run" / "best").net.lm_head.weight, best)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"advantage": "rloo"}, "is rloo, which has no critic: turn off algorithm.critic"),
        ({**METHODS["rloo"], "gamma": 0.9}, "gamma is 0.9, but it does nothing where"),
        ({**METHODS["rloo"], "normalize_advantage": "episode"}, "which would become 0"),
        ({**METHODS["grpo"], "normalize_advantage": "batch"}, "normalised by its group"),
        (
            {**METHODS["rloo"], "normalize_advantage": "minibatch", "minibatches": "episodes"},
            "minibatches hold one completion each",
        ),
        (
            {**METHODS["rloo"], "normalize_advantage": "minibatch", "minibatch_size": 1},
            "minibatches hold one completion each",
        ),
        ({"ratio": "word"}, "must be one of token, sequence"),
        ({"loss_mean": "all"}, "must be one of tokens, sequences"),
        ({"advantage": "ppo"}, "must be one of gae, n-step"),
    ],
)
def test_algorithms_that_cannot_be(settings, said):
    with pytest.raises(UsageError, match=said):
        TokenPPO(**settings)


@pytest.mark.parametrize("section", ["algorithm", "kl", "sampling", "run"])
def test_a_class_of_ones_own_is_refused_a_run_folder(section, tmp_path):
    """It would be resumed as the class it was made from."""
    given = {"algorithm": QUICK, "sampling": SHORT, "kl": KLConfig(), "run": TrainingConfig()}
    kind = type(given[section])
    given[section] = type("Mine", (kind,), {})()
    with pytest.raises(UsageError, match=f"{section} is Mine, .* give {kind.__name__} itself"):
        ppo("tiny", ["ab"], count_a, run_dir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "tokens", "count", "said"),
    [
        ({"normalize_advantage": "batch", "minibatch_size": 1}, 1, 1, "an update has one token"),
        ({"normalize_advantage": "episode", "minibatch_size": 8}, 1, 8, "a completion has one"),
        ({"normalize_advantage": "minibatch", "minibatch_size": 1}, 1, 8, "a minibatch has one"),
        (
            {**METHODS["rloo"], "normalize_advantage": "minibatch", "minibatch_size": 7},
            *(4, 8, "the last minibatch has one"),
        ),
    ],
)
def test_an_advantage_that_is_standardised_alone_is_refused(settings, tokens, count, said):
    how = {
        "algorithm": TokenPPO(**settings),
        "sampling": Sampling(max_tokens=tokens),
        "run": TrainingConfig(sequences=count, completions_per_prompt=min(count, 2), updates=1),
    }
    with pytest.raises(UsageError, match=rf"{said}.* Use (batch, )?none, or more samples$"):
        ppo("tiny", ["ab", "ba"], lambda completions: [0.0] * len(completions), **how)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"completions_per_prompt": 3}, "sequences is 8, no multiple of"),
        ({"completions_per_prompt": 0}, "completions_per_prompt is 0: it must be at least 1"),
        ({"held_out": 1.0, "eval_every": 1}, "held_out is 1.0: it must be in \\[0, 1\\)"),
        ({"eval_every": 2}, "belong together"),
        ({"held_out": 0.5}, "belong together"),
        ({"held_out": 0.5, "eval_every": 3, "log_every": 2}, "no multiple of run.log_every"),
        ({"held_out": 0.1, "eval_every": 1}, "held_out is 0.1 of 5 examples, which is none"),
        ({"algorithm": TokenPPO(**METHODS["rloo"])}, "completions_per_prompt to at least 2"),
    ],
)
def test_runs_that_cannot_be(settings, said):
    with pytest.raises(UsageError, match=said):
        run(**settings)


def test_settings_of_a_critic_without_one_and_of_completions_without_any():
    algorithm = dataclasses.replace(QUICK, **METHODS["reinforce++"])
    for settings, said in (
        ({"critic": "separate"}, "model.critic is separate, .* algorithm.critic is off"),
        ({"critic_warmup": 2}, "model.critic_warmup is 2, .* algorithm.critic is off"),
    ):
        with pytest.raises(UsageError, match=said):
            ppo(ModelConfig(**settings), ["a"], count_a, algorithm=algorithm)
    with pytest.raises(UsageError, match=r"completions_per_prompt is 2, .* sft draws no"):
        SupervisedRunConfig(lm=Stage(stage="sft"), run=TrainingConfig(completions_per_prompt=2))


def test_other_texts_of_ptx_than_the_run_began_with_are_refused(tmp_path):
    file = tmp_path / "texts.jsonl"
    ptx = PTXConfig(coef=0.5, data=str(file))
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    run(tmp_path / "run", ptx=ptx, callbacks=[stop_after(2)])
    file.write_text(json.dumps({"prompt": "a", "completion": "c"}))
    with pytest.raises(UsageError, match="not those that this run began with"):
        run(tmp_path / "run", ptx=ptx, resume=True)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_padding_by_the_end_of_sequence_changes_nothing(stage):
    """The same weights to the bit, whatever the tokenizer calls its padding."""
    found = []
    for pad in (None, "<end>", "<unknown>"):
        lm = tiny(["abc"], **SMALL)
        lm.tokenizer.pad_token = pad
        assert (lm.tokenizer.pad_token_id == Tokenizer(lm.tokenizer).end) == (pad == "<end>")
        few = TrainingConfig(updates=3, sequences=8, seed=2)
        if stage == "sft":
            data = [{"prompt": "a" * n, "completion": "bc" * n} for n in (1, 2, 3)]
            result = sft(lm, data, run=few)
        else:
            result = ppo(lm, ["a", "bcc"], count_a, run=few, algorithm=QUICK, sampling=SHORT)
            assert 0 < result.rows[-1]["stopped"] < 1
        found.append(
            (rows_without_time(result), result.lm.state_dict(), result.generate(["cb"], SHORT))
        )
    for rows, weights, said in found[1:]:
        assert rows == found[0][0]
        assert all(torch.equal(x, found[0][1][name]) for name, x in weights.items())
        assert said == found[0][2]
