"""The three stages learn what they should, are the same after a break, and refuse early."""

import dataclasses
import itertools
import json
import math
import random
from typing import ClassVar

import pytest
import torch

pytest.importorskip("transformers")

from proximo import PPO, Schedule, UsageError
from proximo.errors import TrainingError
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    PTXConfig,
    Sampling,
    ScoreConfig,
    SupervisedConfig,
    TokenPPO,
    TrainingConfig,
    fit_reward,
    load_model,
    load_reward,
    ppo,
    sft,
    tiny,
)
from proximo.language.blueprint import Blueprint
from proximo.language.config import read_stage
from proximo.language.sequences import Sequences
from proximo.run.checkpoint import Checkpoint

SMALL = {"layers": 1, "width": 16, "heads": 2, "context": 16}
SHORT = Sampling(max_tokens=4)
FEW = TrainingConfig(updates=6, sequences=8, micro_batch=3, seed=5)
QUICK = dataclasses.replace(TOKEN_PPO, learning_rate=1e-3, minibatch_size=4, epochs=2)


def count_a(completions):
    return [text.count("a") for text in completions]


def rows_without_time(result):
    timed = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timed} for row in result.rows]


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(n == m and torch.equal(x, y) for (n, x), (m, y) in pairs)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_bandit_of_64_tokens_is_solved_in_100_updates(seed):
    arms = [chr(0x4E00 + i) for i in range(64)]
    lm = tiny(["?", *arms], layers=1, width=32, heads=2, context=4, seed=seed)
    result = ppo(
        lm,
        ["?"],
        lambda completions: [float(text == arms[17]) for text in completions],
        updates=100,
        seed=seed,
        sampling=Sampling(max_tokens=1),
        kl=KLConfig(coef=0, reference="none"),
        algorithm=dataclasses.replace(
            TOKEN_PPO, learning_rate=Schedule.parse("linear:3e-3:3e-4"), minibatch_size=64
        ),
        run=TrainingConfig(sequences=64),
    )
    assert sum(result.scores[-10:]) / 10 >= 0.99


WORDS = {"bad": -1, "poor": -1, "grim": -1, "good": 1, "fine": 1, "glad": 1, "so": 0, "was": 0}


def sentence(draw):
    return " ".join(draw.choices(list(WORDS), k=5))


def worth(text):
    return sum(WORDS.get(word, 0) for word in text.split())


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [{"prompt": "it", "completion": " " + sentence(draw)} for _ in range(300)]


@pytest.fixture(scope="module")
def base(texts):
    model = ModelConfig(layers=1, width=32, heads=2, context=32, symbols="words")
    return sft(
        model,
        texts,
        updates=150,
        seed=1,
        algorithm=SupervisedConfig(learning_rate=5e-3, held_out=0.1),
    )


@pytest.fixture(scope="module")
def judge(base):
    draw, pairs = random.Random(1), []
    while len(pairs) < 600:
        one, other = sentence(draw), sentence(draw)
        if worth(one) != worth(other):
            chosen, rejected = sorted((one, other), key=worth, reverse=True)
            pairs.append({"prompt": "it", "chosen": " " + chosen, "rejected": " " + rejected})
    algorithm = SupervisedConfig(learning_rate=3e-3, held_out=0.2)
    return fit_reward(base, pairs, updates=120, seed=1, algorithm=algorithm)


def test_fine_tuning_reaches_the_entropy_of_the_texts(base):
    # 5 words of 8, each as likely, and 11 tokens: spaces and the end are certain.
    assert base.final["held_out_loss"] == pytest.approx(5 * math.log(8) / 11, abs=0.1)
    assert base.rows[0]["loss"] > 2
    said = base.generate(["it"] * 50, Sampling(max_tokens=16))
    assert sum(len(text.split()) == 5 for text in said) > 40


def test_a_reward_model_tells_most_held_out_pairs_apart(judge):
    assert judge.final["held_out_accuracy"] >= 0.85


def test_scores_of_the_fitted_data_have_mean_0_and_deviation_1(judge):
    assert float(judge.reward.std) > 0.1  # what was learned, before
    tokenizer = judge.lm.tokenizer
    draw = random.Random(2)
    ids = [tokenizer(" " + sentence(draw))["input_ids"] + [0] for _ in range(400)]
    with torch.no_grad():
        scores = judge.reward(Sequences.join([tokenizer("it")["input_ids"]] * 400, ids))
    assert abs(float(scores.mean())) < 0.3
    assert float(scores.std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("critic", ["shared", "reward"])
def test_ppo_raises_the_hidden_score_near_the_model_that_it_began_as(base, judge, critic):
    before = [worth(text) for text in base.generate(["it"] * 200, Sampling(max_tokens=14))]
    spread = torch.tensor(before, dtype=torch.float64).std()
    result = ppo(
        base,
        ["it"],
        judge,
        updates=25,
        seed=1,
        sampling=Sampling(max_tokens=14),
        kl=KLConfig(coef=0.05),
        score=ScoreConfig(missing_eos_penalty=1.0),
        critic=critic,
        algorithm=dataclasses.replace(
            TOKEN_PPO, learning_rate=Schedule.parse("linear:1e-3:0"), minibatch_size=32
        ),
        run=TrainingConfig(sequences=64, micro_batch=64),
    )
    after = [worth(text) for text in result.generate(["it"] * 200)]
    gain = torch.tensor(after, dtype=torch.float64).mean() - sum(before) / 200
    assert gain > 1.5 * spread
    assert result.rows[-1]["kl"] < 10
    assert sum(row["stopped"] for row in result.rows[-5:]) / 5 > 0.9


def run_ppo(run_dir, *, updates=6, resume=False, callbacks=(), run=FEW, **changes):
    settings = {
        "model": ModelConfig(**SMALL, critic="separate"),
        "prompts": ["ab", "c", "abc"],
        "reward": count_a,
        "algorithm": QUICK,
        "sampling": SHORT,
        "kl": KLConfig(coef=0.1, target=0.5, horizon=20),
        "score": ScoreConfig(normalize=True, clip=2.0, missing_eos_penalty=0.5),
        "ptx": PTXConfig(),
        **changes,
    }
    return ppo(
        run=dataclasses.replace(run, updates=updates),
        run_dir=run_dir,
        resume=resume,
        callbacks=callbacks,
        **settings,
    )


def test_what_the_score_becomes():
    seen = []

    def keep(prompts, completions, completion_ids):
        seen.append([ids[-1] == 0 for ids in completion_ids])
        return [float(len(text)) for text in completions]

    settings = {"reward": keep, "kl": KLConfig(coef=0.0), "updates": 1}
    plain = run_ppo(None, **settings, score=ScoreConfig()).rows[0]
    (ended,) = seen
    assert 0 < sum(ended) < len(ended)
    fined = run_ppo(None, **settings, score=ScoreConfig(missing_eos_penalty=0.5)).rows[0]
    assert fined["score"] == plain["score"] == plain["reward"]
    fine = 0.5 * (1 - sum(ended) / len(ended))
    assert fined["reward"] == pytest.approx(plain["reward"] - fine)


def stop_after(updates):
    return lambda state, rollout, row: state.updates == updates


@pytest.mark.parametrize("ptx", [False, True])
def test_ppo_after_a_break_is_the_same_to_the_bit(tmp_path, ptx):
    changes = {}
    if ptx:
        file = tmp_path / "texts.jsonl"
        file.write_text(json.dumps({"prompt": "a", "completion": "bc"}) + "\n")
        changes["ptx"] = PTXConfig(coef=0.5, data=str(file))
    straight = same_after_a_break(tmp_path, **changes)
    assert straight.rows[0]["beta"] == 0.1
    assert straight.rows[-1]["beta"] != 0.1


def same_after_a_break(tmp_path, **changes):
    """Train straight and with a break, and compare all that is left; returns the result."""
    straight = run_ppo(tmp_path / "straight", **changes)
    run_ppo(tmp_path / "broken", callbacks=[stop_after(3)], **changes)
    resumed = run_ppo(tmp_path / "broken", resume=True, **changes)
    assert rows_without_time(resumed) == rows_without_time(straight)
    assert len(straight.rows) == 6
    one, other = (
        Checkpoint(tmp_path / name / "checkpoints/last.safetensors")
        for name in ("straight", "broken")
    )
    assert one.record == other.record
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("straight", "broken")]
    assert samples[0] == samples[1]
    return straight


@pytest.mark.parametrize("stage", [sft, fit_reward])
def test_fitting_after_a_break_is_the_same_to_the_bit(tmp_path, stage):
    data = [
        {"prompt": "a", "completion": c, "chosen": c, "rejected": c + "a"}
        for c in ("b", "cab", "ab", "bb", "ccc")
    ]
    algorithm = SupervisedConfig(
        batch_size=2, held_out=0.2, learning_rate=Schedule.parse("linear:1e-2:0")
    )

    def run(name, **more):
        return stage(
            ModelConfig(**SMALL),
            data,
            run=FEW,
            algorithm=algorithm,
            run_dir=tmp_path / name,
            **more,
        )

    straight = run("straight")
    run("broken", callbacks=[stop_after(3)])
    resumed = run("broken", resume=True)
    assert rows_without_time(resumed) == rows_without_time(straight)
    assert resumed.final == straight.final
    assert same_weights(resumed.lm, straight.lm)


def test_other_data_than_the_run_began_with_are_refused(tmp_path):
    run_ppo(tmp_path / "run", callbacks=[stop_after(2)])
    same = {"run": FEW, "algorithm": QUICK, "sampling": SHORT}
    with pytest.raises(UsageError, match="not those that this run began with"):
        ppo("tiny", ["ab"], count_a, run_dir=tmp_path / "run", resume=True, **same)


def test_the_same_seed_gives_the_same_and_another_does_not():
    one, other = run_ppo(None), run_ppo(None)
    assert rows_without_time(one) == rows_without_time(other)
    assert same_weights(one.lm, other.lm)
    third = ppo(
        ModelConfig(**SMALL),
        ["ab", "c", "abc"],
        count_a,
        run=FEW,
        seed=6,
        algorithm=QUICK,
        sampling=SHORT,
    )
    assert third.scores != one.scores


def test_a_model_is_left_as_it_was():
    lm = tiny(["abc"], **SMALL)
    before = {name: x.clone() for name, x in lm.state_dict().items()}
    result = ppo(lm, ["a"], count_a, algorithm=QUICK, sampling=SHORT, run=FEW)
    assert all(torch.equal(x, before[name]) for name, x in lm.state_dict().items())
    assert not same_weights(lm, result.lm)


def test_what_a_run_leaves_can_be_loaded(tmp_path):
    import transformers

    result = run_ppo(tmp_path / "run")
    again = load_model(tmp_path / "run")
    assert same_weights(again, result.lm)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert same_weights(plain, result.lm.net)
    result.save(tmp_path / "saved")
    assert same_weights(load_model(tmp_path / "saved"), result.lm)
    config = read_stage(tmp_path / "run" / "config.toml")
    assert config == result.config
    kept = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["score"] for row in kept] == result.scores
    data = [{"prompt": "a", "chosen": "b", "rejected": "a"}]
    judge = fit_reward(tmp_path / "run", data, updates=2, run_dir=tmp_path / "judge")
    assert same_weights(load_reward(tmp_path / "judge"), judge.reward)
    with pytest.raises(UsageError, match="no run of proximo lm reward"):
        load_reward(tmp_path / "run")
    with pytest.raises(UsageError, match="has no model to begin with"):
        load_model(tmp_path / "judge")


def test_at_an_enormous_kl_the_policy_stays():
    lm = tiny(["abc"], **SMALL)
    free, held = (
        ppo(
            lm,
            ["a", "b"],
            count_a,
            updates=15,
            algorithm=QUICK,
            sampling=SHORT,
            kl=KLConfig(coef=coef, where=where),
            run=dataclasses.replace(FEW, sequences=32),
        ).rows[-1]["kl"]
        for coef, where in ((0.001, "reward"), (20.0, "loss"))
    )
    assert free > 5 * abs(held)


def test_ptx_keeps_what_was_known(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "bcbc"}) + "\n")
    losses = [
        run_ppo(None, updates=20, ptx=PTXConfig(coef=coef, data=str(file))).rows
        for coef in (1e-6, 1.0)
    ]
    without, with_it = ([row["ptx_loss"] for row in rows] for rows in losses)
    assert with_it[-1] < 0.8 * with_it[0]
    assert with_it[-1] < without[-1] - 0.1


def test_an_update_ends_early_by_the_kl():
    algorithm = dataclasses.replace(QUICK, learning_rate=0.03, target_kl=1e-4, epochs=5)
    rows = run_ppo(None, algorithm=algorithm).rows
    assert {row["epochs"] for row in rows} == {1}


@pytest.fixture
def unloaded(monkeypatch):
    """A model, after which none can be made."""
    lm = tiny(["abc"], **SMALL)

    def build(self, seed, *, random=False):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Blueprint, "build", build)
    return lm


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": Sampling(top_k=3)}, "sampling.top_k is 3, but PPO needs"),
        ({"sampling": Sampling(top_p=0.9)}, "sampling.top_p is 0.9, but PPO needs"),
        ({"sampling": Sampling(max_tokens=15)}, "row 1 .* 2 tokens and 15 to be drawn"),
        ({"sampling": Sampling(stop=("zz",))}, "no single token"),
        ({"sampling": Sampling(max_turns=2)}, "max_turns is 2, .* there is no env"),
        ({"score": ScoreConfig(weights=(1.0, 2.0))}, "1 rewards and 2 weights"),
        ({"algorithm": TokenPPO(normalize_reward=True)}, "use score.normalize"),
        ({"algorithm": TokenPPO(desired_kl=0.1)}, "use target_kl"),
        ({"algorithm": TokenPPO(outer_momentum=0.5)}, "outer_momentum is 0.5, .* tokens"),
        ({"algorithm": TokenPPO()}, "minibatch_size is 16, but an update has only 8"),
        ({"algorithm": PPO()}, "change proximo.language.TOKEN_PPO by dataclasses.replace"),
        ({"ptx": PTXConfig(coef=1.0)}, "belong together"),
        ({"ptx": PTXConfig(coef=1.0, data="none.jsonl")}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(unloaded, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        run_ppo(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_tokenizers_that_do_not_serve_are_refused_before_a_model_is_loaded(unloaded, tmp_path):
    endless = unloaded.tokenizer
    endless.eos_token = None
    penalty = ScoreConfig(missing_eos_penalty=1.0)
    with pytest.raises(UsageError, match="missing_eos_penalty is set, but the tokenizer has no"):
        ppo(unloaded, ["a"], count_a, score=penalty, sampling=SHORT)
    with pytest.raises(UsageError, match="row 1 of the data: the tokenizer has no end of sequence"):
        sft(unloaded, [{"prompt": "a", "completion": "b"}])
    unloaded.save(tmp_path, weights=False)
    endless.add_tokens([f"<{i}>" for i in range(9)])
    endless.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tokenizer has 14 tokens, the model only 5"):
        ppo(str(tmp_path), ["a"], count_a, sampling=SHORT)


@pytest.mark.parametrize(
    ("stage", "data", "said"),
    [
        (sft, [{"prompt": "a"}], "has no 'completion'"),
        (fit_reward, [{"prompt": "a", "chosen": "b"}], "has no 'rejected'"),
        (sft, [{"prompt": "a", "completion": "b" * 20}], "has 22 tokens, but the model reads 16"),
    ],
)
def test_missing_columns_and_long_texts(stage, data, said):
    with pytest.raises(UsageError, match=said):
        stage(ModelConfig(**SMALL), data, updates=1)


def test_a_reward_that_fails_later_keeps_the_run(tmp_path):
    calls = []

    def reward(completions):
        calls.append(1)
        return [float("nan") if len(calls) == 3 else 0.0 for _ in completions]

    def run(name, **more):
        return ppo(
            ModelConfig(**SMALL),
            ["a"],
            reward,
            run=FEW,
            algorithm=QUICK,
            sampling=SHORT,
            run_dir=tmp_path / name,
            **more,
        )

    with pytest.raises(TrainingError, match="must be finite"):
        run("run")
    assert run("run", resume=True).rows[-1]["update"] == 6
    calls[:] = [1, 1]
    with pytest.raises(UsageError, match="must be finite"):
        run("other")
    assert not (tmp_path / "other").exists()
    # A run that was stopped before its first update is still there to go on with.
    calls[:] = [1] * 10
    run("early")
    for name in ("update-0", "last"):
        first = (tmp_path / "early/checkpoints/update-0.safetensors").read_bytes()
        (tmp_path / f"early/checkpoints/{name}.safetensors").write_bytes(first)
    calls[:] = [1, 1]
    with pytest.raises(UsageError, match="must be finite"):
        run("early", resume=True)
    assert run("early", resume=True).rows[-1]["update"] == 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoilt(TokenPPO):
    """In the third update, the first micro-batch has no loss."""

    spoilt: ClassVar[list[bool]] = []

    def loss_of(self, policy, new, batch, coefficients):
        loss, terms = super().loss_of(policy, new, batch, coefficients)
        if coefficients["third"] and not self.spoilt:
            self.spoilt.append(True)
            loss = loss * torch.nan
        return loss, terms

    def coefficients(self, progress, beta=None):
        return {**super().coefficients(progress, beta), "third": float(progress == 2 / 6)}


def test_a_minibatch_that_is_not_finite_is_left_out_counted_and_kept(tmp_path, monkeypatch):
    # A run folder that may hold an algorithm which is made up here.
    monkeypatch.setattr("proximo.run.folder.check_storable", lambda *_, **__: None)
    Spoilt.spoilt.clear()
    result = run_ppo(tmp_path / "run", algorithm=Spoilt(**vars(QUICK)))
    assert [row.get("skipped_steps") for row in result.rows] == [None] * 2 + [1] * 4
    assert [row["gradient_steps"] for row in result.rows] == [4, 4, 3, 4, 4, 4]
    assert all(torch.isfinite(p).all() for p in result.lm.parameters())
    kept = Checkpoint(tmp_path / "run/nonfinite/update-3.safetensors")
    assert kept.record["what"] == "the loss is nan"
    assert kept.record["where"] == "update 3, epoch 1, minibatch 1"
    assert {"sequences.tokens", "batch.advantage", "batch.reference"} < set(kept.tensors)
    Spoilt.spoilt.clear()
    strict = Spoilt(**vars(QUICK) | {"skip_budget": 0})
    with pytest.raises(TrainingError, match=r"the loss is nan in update 3, .*skip_budget is 0"):
        run_ppo(tmp_path / "strict", algorithm=strict)


def test_a_stage_without_a_critic_is_given_none(tmp_path):
    data = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(UsageError, match=r"model\.critic is separate, .* sft has no critic"):
        sft(ModelConfig(critic="separate"), data)
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    with pytest.raises(UsageError, match=r"model\.critic_warmup is 3, .* reward has no critic"):
        fit_reward(ModelConfig(critic_warmup=3), pairs)


def test_models_that_are_not_there(tmp_path):
    data = [{"prompt": "a", "completion": "b"}]
    with pytest.raises(UsageError, match=r"there is no model 'nowhere' \(no such folder,"):
        sft("nowhere", data, updates=1)
    with pytest.raises(UsageError, match=r"there is no model .*config\.json"):
        sft(tmp_path, data, updates=1)
    with pytest.raises(UsageError, match="critic is reward, but no reward"):
        ppo(ModelConfig(critic="reward"), ["a"], count_a, updates=1)


def test_a_run_of_another_stage_does_not_go_on(tmp_path):
    run_ppo(tmp_path / "run", callbacks=[stop_after(1)])
    with pytest.raises(UsageError, match="is a run of ppo, not of sft"):
        sft("tiny", [{"prompt": "a", "completion": "b"}], run_dir=tmp_path / "run", resume=True)


def test_beta_follows_the_kl_of_completions():
    rows = run_ppo(None, updates=3).rows  # 8 completions an update, target 0.5, horizon 20
    for before, after in itertools.pairwise(rows):
        error = max(-0.2, min(0.2, before["kl"] / 0.5 - 1))
        assert after["beta"] == pytest.approx(before["beta"] * (1 + error * 8 / 20), rel=1e-12)


def test_rewards_of_a_program_are_weighted_and_those_that_are_named_are_found():
    twice = {"reward": [count_a, count_a], "score": ScoreConfig(weights=(1.0, 2.0))}
    one, three, named = (
        run_ppo(None, updates=1, **changes).scores[0]
        for changes in (
            {},
            twice,
            {"reward": (), "score": ScoreConfig(reward=(f"{__name__}:count_a",))},
        )
    )
    assert one > 0
    assert three == pytest.approx(3 * one)
    assert named == one


def test_texts_that_are_mixed_in_are_symbols_of_a_tiny_model(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "xyz"}))
    result = run_ppo(None, updates=1, ptx=PTXConfig(coef=1.0, data=str(file)))
    assert set("abcxyz") <= set(result.lm.tokenizer.get_vocab())


def test_the_kl_is_measured_at_beta_0_and_without_a_reference_it_is_not():
    measured = run_ppo(None, kl=KLConfig(coef=0)).rows[-1]
    assert abs(measured["kl"]) > 1e-4
    bare = run_ppo(None, kl=KLConfig(coef=0, reference="none")).rows[-1]
    assert "kl" not in bare
    assert bare["score"] == measured["score"]
    with pytest.raises(UsageError, match=r"kl.reference is none, but kl.coef is 0.1"):
        KLConfig(coef=0.1, reference="none")


def test_fitting_does_not_depend_on_micro_batches():
    data = [{"prompt": "a" * n, "completion": "bc" * n} for n in range(1, 6)]
    runs = [
        sft(ModelConfig(**SMALL), data, run=dataclasses.replace(FEW, micro_batch=size))
        for size in (1, 32)
    ]
    losses = [torch.tensor([row["loss"] for row in run.rows]) for run in runs]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_values_begin_at_0():
    seen = []
    run_ppo(None, updates=1, callbacks=[lambda *given: seen.append(given[2])], score=ScoreConfig())
    (row,) = seen
    assert row["explained_variance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_warmup_moves_the_critic_alone(critic):
    seen = []

    def look(state, rollout, row):
        policy = state.policy
        seen.append([policy.value_head.weight.clone(), policy.lm.net.lm_head.weight.clone()])

    ppo(
        ModelConfig(**SMALL, critic=critic, critic_warmup=2),
        ["ab"],
        count_a,
        run=dataclasses.replace(FEW, updates=3),
        algorithm=QUICK,
        sampling=SHORT,
        callbacks=[look],
    )
    heads, models = zip(*seen, strict=True)
    assert heads[0].norm() > 0
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[1], models[2])


def test_rows_over_the_limit_are_left_out_and_stay_out(tmp_path, capsys):
    texts = [{"prompt": "a", "completion": "b" * n} for n in (1, 2, 9, 3, 40)]
    run = TrainingConfig(updates=4, max_length=8, overlong="drop", seed=3)
    options = {"algorithm": SupervisedConfig(batch_size=2), "run": run}
    model = ModelConfig(**SMALL)
    straight = sft(model, texts, run_dir=tmp_path / "straight", **options)
    assert "2 of the 5 rows" in capsys.readouterr().err
    short = [text for text in texts if len(text["completion"]) < 7]
    assert same_weights(straight.lm, sft(model, short, **options).lm)
    broken = {"run_dir": tmp_path / "broken", **options}
    sft(model, texts, callbacks=[stop_after(2)], **broken)
    for other in (4, 0):  # other rows would be left out
        changed = dataclasses.replace(run, max_length=other)
        with pytest.raises(UsageError, match="not those that this run began with"):
            sft(model, texts, resume=True, **broken | {"run": changed})
    assert same_weights(sft(model, texts, resume=True, **broken).lm, straight.lm)
    with pytest.raises(
        UsageError, match=r"row 3 .* has 11 tokens, but run.max_length is 8: .* drop"
    ):
        sft(model, texts, run=TrainingConfig(max_length=8))
    prompts = ["a" * n for n in (1, 9, 3, 40)]
    found = ppo(
        model,
        prompts,
        count_a,
        sampling=SHORT,
        algorithm=QUICK,
        run=dataclasses.replace(FEW, updates=2, overlong="drop"),
        callbacks=[lambda state, rollout, row: not set(rollout.prompts) <= {0, 1, 2}],
    )
    assert len(found.rows) == 2
