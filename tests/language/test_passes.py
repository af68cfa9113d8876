"""Passes through the model that save memory: layers computed again, and in bfloat16."""

import copy
import dataclasses

import pytest
import torch

pytest.importorskip("transformers")

from language.test_generation import PROMPTS, draw, judged, make
from language.test_stages import FEW, SMALL, run_ppo, same_after_a_break
from proximo import Schedule, UsageError
from proximo.errors import TrainingError
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    Sampling,
    SupervisedConfig,
    TrainingConfig,
    ppo,
    sft,
    tiny,
)
from proximo.language.generate import ROUNDING, check_drawn
from proximo.language.model import Decoding, LanguagePolicy
from proximo.language.sequences import Sequences

AGAIN = TrainingConfig(gradient_checkpointing=True)
HALF = TrainingConfig(dtype="bfloat16")
SEQUENCES = Sequences.join(PROMPTS, [[3, 4, 0], [5], [6, 7, 8, 9], [2, 0], [3]])
KINDS = [
    ("GPT2", {}),
    ("Llama", {"num_key_value_heads": 2}),
    ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}),
    ("GPTNeoX", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
]


@pytest.fixture(scope="module")
def lm():
    model = tiny(["abcdefgh"], layers=2, width=32, context=32)
    with torch.no_grad():  # far from uniform
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def of_kind(lm, kind, more):
    return copy.deepcopy(lm) if kind == "GPT2" else make(kind, lm, **more)


def set_up(lm, run):
    return copy.deepcopy(lm).set_up(ModelConfig(), run)


def gradient(lm):
    """Of a loss on values and probabilities; how often the layers ran, and how much was kept."""
    assert lm.packs == (lm.net.config.model_type != "gemma2")  # tried out before the count
    policy = LanguagePolicy(lm, Decoding(Sampling(), (0,)))
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(1))
    calls, kept = [], []
    norms = [m for n, m in lm.net.named_modules() if n.endswith(("0.ln_1", "0.input_layernorm"))]
    hook = norms[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        found = policy.evaluate(SEQUENCES, entropy=True)
    (found.log_prob.sum() + found.value.square().sum() + found.entropy.mean()).backward()
    hook.remove()
    return torch.cat([p.grad.reshape(-1) for p in lm.parameters()]), len(calls), sum(kept)


@pytest.mark.parametrize(("kind", "more"), KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_layers_that_are_computed_again_give_the_same_gradient(lm, kind, more, half):
    other = of_kind(lm, kind, more)
    run = dataclasses.replace(HALF if half else FEW)
    expected, once, much = gradient(set_up(other, run))
    found, twice, little = gradient(
        set_up(other, dataclasses.replace(run, gradient_checkpointing=True))
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert expected.norm() > 0.1
    assert (once, twice) == (1, 2)
    assert little < 0.5 * much


def test_sampling_computes_nothing_again(lm):
    sampling = Sampling(max_tokens=10)
    own = set_up(lm, AGAIN)
    drawn, calls = draw(lm, sampling), []
    assert own.select  # tried out before the count
    hook = own.net.transformer.h[0].ln_1.register_forward_hook(lambda *_: calls.append(1))
    again = draw(own, sampling)
    hook.remove()
    assert drawn.ids == again.ids
    assert len(calls) == max(map(len, drawn.ids))  # once a token, the first with the prompts
    torch.testing.assert_close(drawn.log_prob, again.log_prob)
    assert not any("forward" in vars(m) for m in own.net.modules())  # all is as it was


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_runs_that_compute_layers_again_are_the_same(lora_rank):
    model = ModelConfig(**SMALL, lora_rank=lora_rank)
    plain, again = (
        run_ppo(None, model=model, run=dataclasses.replace(FEW, gradient_checkpointing=on)).rows
        for on in (False, True)
    )
    for key in ("score", "kl", "policy_loss", "grad_norm"):
        one, other = (torch.tensor([row[key] for row in rows]) for rows in (plain, again))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more"), [*KINDS, ("Mistral", {"num_key_value_heads": 2, "sliding_window": 9})]
)
@pytest.mark.parametrize("window", [None, 40])
def test_sequences_that_share_a_row_do_not_see_each_other(lm, kind, more, window):
    """Whatever the model: those whose layers mix neighbours otherwise have a row for each."""
    if "sliding_window" in more and window:
        more = {**more, "sliding_window": window}
    other = of_kind(lm, kind, more)
    rows = []
    other.net.register_forward_pre_hook(
        lambda net, given, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    together, hidden = other.read(SEQUENCES)
    alone = [other.read(SEQUENCES.select(torch.tensor([i]))) for i in range(5)]
    torch.testing.assert_close(together, torch.cat([x for x, _ in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, torch.cat([x for _, x in alone]), rtol=1e-4, atol=1e-5)
    shares = kind != "Gemma2" and (kind != "Mistral" or window)
    assert (rows[-6] < 5) == bool(shares)


def test_a_model_that_mixes_neighbours_is_found_out(lm):
    """A convolution over a row, as some models have beside attention."""
    other = copy.deepcopy(lm)
    assert other.packs
    del other.packs
    other.net.transformer.h[0].register_forward_pre_hook(
        lambda block, given: (given[0] + 0.1 * given[0].roll(1, 1), *given[1:])
    )
    assert not other.packs


def test_a_model_too_small_to_try_it_out_has_a_row_for_each():
    small = tiny(["a"], layers=1, width=8, heads=1, context=2)
    assert not small.packs
    assert small.read(Sequences.join([[2], [1]], [[0], [2]]))[0].shape == (2, 3)


def test_a_head_that_has_a_forward_of_its_own_keeps_it(lm):
    other, calls = copy.deepcopy(lm), []
    head = other.net.lm_head
    own = head.forward
    head.forward = lambda x: calls.append(len(x)) or own(x)
    for _ in range(2):
        other.read(SEQUENCES)
    draw(other, Sampling(max_tokens=1))
    assert calls[-3:] == [11, 11, 5]


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_after_a_break_they_are_the_same_to_the_bit(tmp_path, change):
    same_after_a_break(tmp_path, run=dataclasses.replace(FEW, **change))


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_in_bfloat16_layers_are_rounded_and_logits_are_not(lm, kind, more):
    other = of_kind(lm, kind, more)
    half = set_up(other, HALF)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert half.packs == (kind != "Gemma2")  # tried out before anything is seen
    seen = []
    for name, module in half.net.named_modules():
        if name.endswith(("c_fc", "up_proj", "dense_h_to_4h")):
            module.register_forward_hook(lambda m, given, out: seen.append(out.dtype))
    logits, hidden = half.read(SEQUENCES)
    assert set(seen) == {torch.bfloat16}
    assert logits.dtype == hidden.dtype == torch.float32
    exact, _ = other.read(SEQUENCES)
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    if kind != "Gemma2":  # which squeezes its logits
        torch.testing.assert_close(logits, hidden @ half.net.get_output_embeddings().weight.t())


@pytest.mark.parametrize(("kind", "more"), KINDS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_in_bfloat16_the_sampler_and_the_update_agree_on_average(lm, kind, more, temperature):
    half = set_up(of_kind(lm, kind, more), HALF)
    sampling = Sampling(max_tokens=12, temperature=temperature)
    drawn = draw(half, sampling, PROMPTS * 4)
    old = judged(half, drawn, sampling, 7)
    check_drawn(drawn.log_prob, old, "bfloat16")
    assert (drawn.log_prob - old.log_prob).abs().mean() < 0.2 * ROUNDING


def test_what_is_no_rounding_is_caught_in_bfloat16(lm):
    half = set_up(lm, HALF)
    drawn = draw(half, Sampling(temperature=0.7, max_tokens=8))
    with pytest.raises(TrainingError, match=r"nats on average: if float32 \(run.dtype\)"):
        check_drawn(drawn.log_prob, judged(half, drawn, Sampling()), "bfloat16")


def test_fine_tuning_learns_in_bfloat16():
    result = sft(
        ModelConfig(**SMALL),
        [{"prompt": "a", "completion": "cbacba"}],
        algorithm=SupervisedConfig(learning_rate=1e-2, batch_size=4),
        run=dataclasses.replace(HALF, updates=60),
    )
    assert result.rows[-1]["loss"] < 0.05
    assert result.generate(["a"], Sampling(max_tokens=8, top_k=1)) == ["cbacba"]


def test_a_bandit_is_solved_in_bfloat16():
    arms = [chr(0x4E00 + i) for i in range(8)]
    result = ppo(
        tiny(["?", *arms], layers=1, width=32, heads=2, context=4),
        ["?"],
        lambda completions: [float(text == arms[5]) for text in completions],
        sampling=Sampling(max_tokens=1),
        kl=KLConfig(coef=0, reference="none"),
        algorithm=dataclasses.replace(
            TOKEN_PPO, learning_rate=Schedule.parse("linear:3e-3:3e-4"), minibatch_size=32
        ),
        run=dataclasses.replace(HALF, updates=25, sequences=32, seed=1),
    )
    assert sum(result.scores[-5:]) / 5 >= 0.98


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_numbers_that_the_device_does_not_have_are_refused_by_name(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UsageError, match="bfloat16, which the Tesla T4 has not: use float32"):
        run_ppo(None, run=dataclasses.replace(HALF, device=device))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"run.device is cuda, but PyTorch finds none here"):
        run_ppo(None, run=dataclasses.replace(FEW, device="cuda"))


def test_a_model_whose_layers_cannot_be_computed_again_is_refused(lm, monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.modeling_layers, "GradientCheckpointingLayer", torch.nn.Bilinear
    )
    with pytest.raises(UsageError, match="a GPT2LMHeadModel has no layers that can be computed"):
        set_up(lm, AGAIN)
