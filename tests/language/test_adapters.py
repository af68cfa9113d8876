"""LoRA: only adapters learn and are kept, and a run is a plain model at its end. References."""

import dataclasses

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

from language.test_generation import make
from language.test_stages import (
    FEW,
    QUICK,
    SHORT,
    SMALL,
    count_a,
    rows_without_time,
    run_ppo,
    same_after_a_break,
    same_weights,
    stop_after,
)
from proximo import UsageError
from proximo.language import (
    KLConfig,
    ModelConfig,
    Sampling,
    SupervisedConfig,
    fit_reward,
    load_model,
    load_reward,
    ppo,
    sft,
    task,
    tiny,
)
from proximo.language.adapters import adapted, adapters_disabled, add_adapters, merged
from proximo.language.config import PPOConfig, Stage
from proximo.language.sequences import Sequences
from proximo.run.checkpoint import Checkpoint

LORA = ModelConfig(**SMALL, lora_rank=2)
DATA = [
    {"prompt": "a", "completion": c, "chosen": c, "rejected": c + "a"}
    for c in ("b", "cab", "ab", "bb", "ccc")
]
FAST = SupervisedConfig(learning_rate=5e-2, batch_size=4)
LIKELY = Sampling(max_tokens=8, top_k=1)
SEQUENCES = Sequences.join([[2], [3, 4]], [[4, 3, 2], [3, 0]])


@pytest.fixture
def lm():
    """A model with adapters that do something."""
    lm = tiny(["abc"], **SMALL)
    add_adapters(lm.net, dataclasses.replace(LORA, lora_alpha=3.0), 0)
    with torch.no_grad():
        for _, layer in adapted(lm.net):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    return lm


def logits(lm):
    with torch.no_grad():
        return lm.read(SEQUENCES)[0]


def plain(lm):
    """The weights that are no adapter's, under their own names."""
    named = lm.state_dict().items()
    return {n.replace("base_layer.", ""): x for n, x in named if "lora_" not in n}


def test_an_adapter_by_hand(lm):
    name, layer = adapted(lm.net)[0]
    assert name == "transformer.h.0.attn.c_attn"
    x = torch.randn(5, 16)
    a, b = (getattr(layer, f"lora_{which}")["default"].weight for which in "AB")
    base = layer.get_base_layer()  # of GPT-2, which holds W transposed
    expected = x @ base.weight + base.bias + 3.0 / 2 * (x @ a.t()) @ b.t()
    torch.testing.assert_close(layer(x), expected)


def test_adapters_change_nothing_at_first():
    lm = tiny(["abc"], **SMALL)
    before = logits(lm)
    add_adapters(lm.net, LORA, 0)
    torch.testing.assert_close(logits(lm), before)


def test_merged_and_adapters_disabled(lm):
    whole = logits(lm)
    with adapters_disabled(lm.net):
        without = logits(lm)
    assert (whole - without).abs().max() > 0.1
    torch.testing.assert_close(without, logits(tiny(["abc"], **SMALL)))
    torch.testing.assert_close(logits(lm), whole)  # on again
    assert all(p.requires_grad == ("lora_" in name) for name, p in lm.named_parameters())
    plain = lm.merged()
    torch.testing.assert_close(logits(plain), whole, rtol=1e-5, atol=1e-5)
    assert plain.state_dict().keys() == tiny(["abc"], **SMALL).state_dict().keys()
    assert merged(plain.net) is not plain.net


# 1 block of width 16: 16 -> 48, 16 -> 16, 16 -> 64, 64 -> 16; of each in + out numbers a rank.
ADAPTERS = 2 * (64 + 32 + 80 + 80)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_only_adapters_and_heads_are_trained_and_kept(tmp_path, critic):
    start = tiny(["abc"], **SMALL)
    found = []
    result = ppo(
        start,
        ["ab", "c"],
        count_a,
        algorithm=QUICK,
        sampling=SHORT,
        run=FEW,
        callbacks=[lambda state, *_: found.append(state)],
        run_dir=tmp_path / "run",
        critic=critic,
        lora_rank=2,
    )
    trained = sum(flat.numel() for flat in found[0].optimizer.flats)
    assert trained == ADAPTERS * (1 if critic == "shared" else 2) + 17
    now = plain(result.lm)
    assert all(torch.equal(now[name], x) for name, x in start.state_dict().items())
    assert not same_weights(result.lm.merged(), start)
    first, last = (
        Checkpoint(tmp_path / f"run/checkpoints/{name}.safetensors").tensors
        for name in ("update-0", "last")
    )
    kept = {name for name in last if name.startswith("policy.")}
    assert all("lora_" in name or "value_head" in name for name in kept)
    assert any("base_layer" in name for name in first)


@pytest.mark.parametrize("stage", [sft, fit_reward])
def test_fitting_adapters_after_a_break_is_the_same_to_the_bit(tmp_path, stage):
    def fit(name, **more):
        return stage(LORA, DATA, run=FEW, algorithm=FAST, run_dir=tmp_path / name, **more)

    straight = fit("straight")
    fit("broken", callbacks=[stop_after(3)])
    resumed = fit("broken", resume=True)
    assert rows_without_time(resumed) == rows_without_time(straight)
    assert same_weights(resumed.lm, straight.lm)


def test_adapters_learn_what_the_model_did_not_know():
    base = sft(
        ModelConfig(**SMALL),
        [{"prompt": "a", "completion": "abcabc"}],
        updates=60,
        algorithm=FAST,
    )
    other = [{"prompt": "a", "completion": "cbacba"}]
    tuned = sft(base, other, updates=40, algorithm=FAST, lora_rank=4)
    assert tuned.rows[0]["loss"] > 2
    assert tuned.rows[-1]["loss"] < 0.1
    assert tuned.generate(["a"], LIKELY) == ["cbacba"]
    with adapters_disabled(tuned.lm.net):
        assert tuned.generate(["a"], LIKELY) == base.generate(["a"], LIKELY) == ["abcabc"]


def test_a_finished_run_is_a_plain_model(tmp_path):
    import transformers

    result = sft(LORA, DATA, updates=5, algorithm=FAST, run_dir=tmp_path / "run")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert same_weights(read, result.lm.merged().net)
    torch.testing.assert_close(
        logits(load_model(tmp_path / "run")), logits(result.lm), rtol=1e-5, atol=1e-5
    )


KINDS = {
    "Mixtral": {"num_local_experts": 2, "num_key_value_heads": 2},
    "Qwen3Moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    | {"num_key_value_heads": 2, "head_dim": 8},
    "Llama4Text": {"num_local_experts": 2, "num_key_value_heads": 2, "head_dim": 8}
    | {"intermediate_size_mlp": 32},  # its router is a linear layer that returns two things
    "FalconH1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64}
    | {"mamba_n_groups": 1, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_with_experts_are_plain_models_at_the_end(tmp_path, kind):
    """Fused experts have two tensors, and an adapter of one stands in the adapter of the other."""
    import transformers

    pytest.importorskip("transformers", "5")  # earlier ones keep a module for each expert
    pytest.importorskip("peft", "0.19")
    start = make(kind, tiny(["abcdefgh"], **SMALL), **KINDS[kind])

    def fit(name, **more):
        more |= {"algorithm": FAST, "run": FEW, "lora_rank": 2}
        return sft(start, DATA, run_dir=tmp_path / name, **more)

    result = fit("run")
    fit("broken", callbacks=[stop_after(3)])
    assert rows_without_time(fit("broken", resume=True)) == rows_without_time(result)
    read, resumed = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name / "model")
        for name in ("run", "broken")
    )
    assert same_weights(read, resumed)
    assert read.state_dict().keys() == start.net.state_dict().keys()
    whole = logits(result.lm)
    assert (whole - logits(start)).abs().max() > 0.01
    torch.testing.assert_close(logits(load_model(tmp_path / "run")), whole, rtol=1e-4, atol=1e-5)


def test_a_reward_model_of_adapters_scores_the_same_from_its_folder(tmp_path):
    fitted = fit_reward(LORA, DATA, updates=20, algorithm=FAST, run_dir=tmp_path / "run").reward
    read = load_reward(tmp_path / "run")
    assert not adapted(read.lm.net)
    with torch.no_grad():
        torch.testing.assert_close(read(SEQUENCES), fitted(SEQUENCES), rtol=1e-4, atol=1e-5)
    # A critic that begins as it gives its scores as values, and has adapters of its own.
    found = []
    ppo(
        dataclasses.replace(LORA, critic="reward"),
        DATA,
        read,
        updates=1,
        algorithm=dataclasses.replace(QUICK, learning_rate=0.0),
        run=FEW,
        sampling=SHORT,
        callbacks=[lambda state, *_: found.append(state.policy)],
    )
    (policy,) = found
    assert len(adapted(policy.critic.net)) == 4


def test_other_first_weights_than_the_run_began_with_are_refused(tmp_path):
    first = [tmp_path / name / "checkpoints/update-0.safetensors" for name in ("run", "same", "no")]
    run_ppo(tmp_path / "run", model=LORA, callbacks=[stop_after(2)])
    run_ppo(tmp_path / "same", model=LORA, updates=1)
    run_ppo(tmp_path / "no", model=LORA, updates=1, run=dataclasses.replace(FEW, seed=9))
    assert first[0].read_bytes() != first[1].read_bytes()  # of another horizon
    for other in first[1:]:
        first[0].write_bytes(other.read_bytes())
        with pytest.raises(UsageError, match="not the checkpoint that this run began with"):
            run_ppo(tmp_path / "run", model=LORA, resume=True)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("c_attn", "q_proj"), r"has 'q_proj', which this model lacks; it has: c_attn, c_fc"),
        (("lm_head",), "share their weights"),
        (("wte",), "share their weights"),
        (("ln_1",), "cannot have adapters"),
    ],
)
def test_targets_that_cannot_be(targets, said):
    with pytest.raises(UsageError, match=said):
        sft(dataclasses.replace(LORA, lora_targets=targets), DATA, updates=1)


def test_targets_by_name():
    model = dataclasses.replace(LORA, lora_targets=("c_attn", "mlp.c_proj"))
    found = adapted(sft(model, DATA, updates=1).lm.net)
    assert [name for name, _ in found] == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.mlp.c_proj",
    ]


BEGIN = {
    "adapter": KLConfig(coef=0.1, reference="adapter"),
    "copy": KLConfig(coef=0.1),
    "ema": KLConfig(coef=0.1, reference="ema", ema_decay=0.8),
}


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        (LORA, "adapter"),
        (LORA, "copy"),
        (LORA, "ema"),
        (dataclasses.replace(LORA, critic="separate"), "adapter"),
        (dataclasses.replace(LORA, critic="separate"), "ema"),
        (ModelConfig(**SMALL), "ema"),
    ],
)
def test_ppo_with_adapters_and_averages_goes_on_to_the_bit(tmp_path, model, reference):
    same_after_a_break(tmp_path, model=model, kl=BEGIN[reference])


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_disabled_adapters_are_the_copy(monkeypatch, where):
    start = sft(LORA, DATA, updates=10, algorithm=FAST)  # has adapters itself
    seen = {}
    judge = task.evaluate_old

    def watched(*given, **more):
        old = judge(*given, **more)
        seen[reference].append((old.reference, old.log_prob))
        return old

    monkeypatch.setattr(task, "evaluate_old", watched)
    gradients = {}

    def look(state, *_):
        gradients[reference].append(state.optimizer.flats[0].grad.clone())

    for reference in ("copy", "adapter"):
        seen[reference], gradients[reference] = [], []
        kl = dataclasses.replace(BEGIN[reference], where=where)
        run_ppo(None, model=start, lora_rank=3, kl=kl, callbacks=[look])
    assert len(seen["copy"]) == len(gradients["copy"]) == 6
    for one, other in zip(seen["copy"], seen["adapter"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    first, last = seen["adapter"][0], seen["adapter"][-1]
    torch.testing.assert_close(*first, rtol=1e-5, atol=1e-5)  # as the run begins
    assert (last[0] - last[1]).abs().max() > 1e-3
    for one, other in zip(gradients["copy"], gradients["adapter"], strict=True):
        assert one.norm() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [ModelConfig(**SMALL), LORA])
def test_a_moving_average_by_hand(tmp_path, model):
    weights, means = [], []
    name = "net.transformer.h.0.mlp.c_fc." + (
        "lora_A.default.weight" if model is LORA else "weight"
    )

    def look(state, *_):
        weights.append(dict(state.lm.named_parameters())[name].double().clone())
        means.append(state.reference.moving[name].double().clone())

    run_ppo(tmp_path / "run", model=model, updates=3, kl=BEGIN["ema"], callbacks=[look])
    first = Checkpoint(tmp_path / "run/checkpoints/update-0.safetensors").tensors
    begin = first[f"policy.lm.{name}"].double()
    assert torch.equal(first[f"reference.{name}"].double(), begin)
    expected = 0.512 * begin + 0.128 * weights[0] + 0.16 * weights[1] + 0.2 * weights[2]
    torch.testing.assert_close(means[2], expected, rtol=1e-6, atol=1e-7)
    assert (means[2] - weights[2]).abs().max() > 1e-4


def test_an_average_moves_only_what_is_its_own():
    found = []
    run_ppo(
        None,
        model=LORA,
        kl=BEGIN["ema"],
        updates=1,
        callbacks=[lambda state, *_: found.append(state)],
    )
    (state,) = found
    own = dict(state.lm.named_parameters())
    for name, x in state.reference.lm.named_parameters():
        assert (x is own[name]) == ("lora_" not in name)  # frozen weights are there once
        assert x.requires_grad is False


def test_averages_that_a_run_does_not_have(tmp_path):
    run_ppo(tmp_path / "run", callbacks=[stop_after(2)])
    with pytest.raises(UsageError, match="was not begun with it"):
        run_ppo(tmp_path / "run", kl=BEGIN["ema"], resume=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ModelConfig(lora_rank=-1), "model.lora_rank is -1: it must be at least 0"),
        (lambda: ModelConfig(lora_alpha=4.0), "model.lora_alpha is 4.0, .* there are no adapters"),
        (lambda: ModelConfig(lora_rank=4, lora_alpha=0.0), "model.lora_alpha is 0.0"),
        (lambda: ModelConfig(lora_targets=("x",)), "model.lora_targets is .* there are no"),
        (lambda: KLConfig(estimator="k3"), "estimator is k3, .* kl.where is reward"),
        (lambda: KLConfig(horizon=20.0), r"horizon is 20.0, .* kl\.target is none"),
        (lambda: KLConfig(reference="ema"), "is ema: give kl.ema_decay"),
        (lambda: KLConfig(ema_decay=0.9), "ema_decay is 0.9, .* kl.reference is copy"),
        (lambda: KLConfig(reference="ema", ema_decay=1.0), r"ema_decay is 1.0: .* in \[0, 1\)"),
        (
            lambda: PPOConfig(lm=Stage(stage="ppo"), kl=BEGIN["adapter"]),
            "kl.reference is adapter, but there are no adapters to switch off",
        ),
    ],
)
def test_settings_that_mean_nothing(make, said):
    with pytest.raises(UsageError, match=said):
        make()
