"""What is drawn: by the distribution that is judged later, whatever padding, cache and batches."""

import copy
import math

import pytest
import torch

pytest.importorskip("transformers")

from proximo.errors import TrainingError, UsageError
from proximo.language import LanguageModel, Sampling, load_model, tiny
from proximo.language.engine import evaluate_old
from proximo.language.generate import check_drawn, generate
from proximo.language.model import Decoding, LanguagePolicy
from proximo.language.sequences import Sequences
from proximo.language.tokenizer import Tokenizer

TEXT = "abcdefgh"
PROMPTS = [[2], [3, 4, 5], [9, 8, 7, 6, 5, 4], [2, 2], [4, 6, 8, 9, 3]]


@pytest.fixture(scope="module")
def lm():
    model = tiny([TEXT], width=32, context=32)
    with torch.no_grad():  # far from uniform, so that every mistake shows
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.net.transformer.wpe.weight.normal_(
            std=0.5, generator=torch.Generator().manual_seed(0)
        )
    return model


def draw(lm, sampling, prompts=PROMPTS, seed=0, micro=64):
    decoding = Decoding(sampling, Tokenizer(lm.tokenizer).stops)
    return generate(lm, prompts, decoding, torch.Generator().manual_seed(seed), micro)


def judged(lm, drawn, sampling, micro=64):
    policy = LanguagePolicy(lm, Decoding(sampling, Tokenizer(lm.tokenizer).stops))
    return evaluate_old(policy, None, drawn.sequences, micro, critic=True)


@pytest.mark.parametrize("micro", [1, 2, 64])
@pytest.mark.parametrize("minimum", [0, 3])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("longest", [4, 12])
def test_the_sampler_and_the_update_agree(lm, longest, temperature, minimum, micro):
    sampling = Sampling(max_tokens=longest, temperature=temperature, min_tokens=minimum)
    drawn = draw(lm, sampling)
    old = judged(lm, drawn, sampling, micro)
    torch.testing.assert_close(drawn.log_prob, old.log_prob, rtol=1e-5, atol=1e-5)
    assert check_drawn(drawn.log_prob, old) < 1e-4


def test_a_dropped_temperature_is_caught(lm):
    drawn = draw(lm, Sampling(temperature=0.7, max_tokens=8))
    with pytest.raises(TrainingError, match="differ by"):
        check_drawn(drawn.log_prob, judged(lm, drawn, Sampling()))


def test_a_dropped_minimum_is_caught(lm):
    drawn = draw(lm, Sampling(min_tokens=5, max_tokens=8))
    with pytest.raises(TrainingError, match="differ by"):
        check_drawn(drawn.log_prob, judged(lm, drawn, Sampling()))


@pytest.mark.parametrize("fault", ["positions", "cache", "mask"])
def test_a_faulty_model_is_caught(lm, fault):
    class Faulty(type(lm)):
        def forward(self, tokens, mask, positions, cache=None):
            if fault == "positions":  # those of the padded row, as a naive loop has them
                shift = mask.shape[1] - tokens.shape[1]
                positions = torch.arange(tokens.shape[1]).expand_as(tokens) + shift
            if fault == "cache" and cache not in (None, True):
                cache, mask = True, mask[:, -1:]  # what came before is forgotten
            if fault == "mask" and cache is not None:
                mask = torch.ones_like(mask)
            return super().forward(tokens, mask, positions, cache)

    broken = copy.deepcopy(lm)
    broken.__class__ = Faulty
    drawn = draw(broken, Sampling(max_tokens=8))
    with pytest.raises(TrainingError, match="differ by"):
        check_drawn(drawn.log_prob, judged(lm, drawn, Sampling(max_tokens=8)))


def test_cached_tokens_are_those_without_a_cache(lm):
    sampling = Sampling(max_tokens=10, temperature=0.8)
    stops = Tokenizer(lm.tokenizer).stops
    drawn = draw(lm, sampling, seed=5)
    noise = torch.rand(len(PROMPTS), 10, generator=torch.Generator().manual_seed(5))
    for prompt, numbers, completion in zip(PROMPTS, noise, drawn.ids, strict=True):
        row = list(prompt)
        for t in range(10):
            out = lm(
                torch.tensor([row]),
                torch.ones(1, len(row), dtype=torch.bool),
                torch.arange(len(row))[None],
            )
            choice = Decoding(sampling, stops).distribution(out.logits, torch.tensor([t]))
            row.append(int(choice.sample(numbers[t : t + 1])))
            if row[-1] in stops:
                break
        assert row[len(prompt) :] == completion


def test_neither_micro_batches_nor_the_others_change_what_is_drawn(lm):
    sampling = Sampling(max_tokens=10)
    whole = draw(lm, sampling)
    assert draw(lm, sampling, micro=2).ids == whole.ids
    generator = torch.Generator().manual_seed(0)
    stops = Tokenizer(lm.tokenizer).stops
    generate(lm, PROMPTS, Decoding(sampling, stops), generator)
    used = generator.get_state()
    generator.manual_seed(0)
    colder = Decoding(Sampling(max_tokens=10, temperature=0.1), stops)
    generate(lm, [[3]] * len(PROMPTS), colder, generator)
    assert torch.equal(used, generator.get_state())  # whatever the lengths


def test_the_amount_of_padding_does_not_matter(lm):
    policy = LanguagePolicy(lm, Decoding(Sampling(), (0,)))
    torch.nn.init.normal_(policy.value_head.weight)
    completions = [[3, 4, 0], [5], [6, 7, 8, 9], [2, 0], [3]]
    plain = Sequences.join(PROMPTS, completions)
    wide = Sequences(
        *(torch.nn.functional.pad(x, (7, 5)) for x in plain[:2]),
        torch.nn.functional.pad(plain.response, (0, 5)),
    )
    filled = wide._replace(tokens=torch.where(wide.mask, wide.tokens, 5))
    expected = policy.evaluate(plain, entropy=True)
    for padded in (wide, filled, wide.select(torch.arange(5))):
        found = policy.evaluate(padded, entropy=True)
        for name in ("log_prob", "value", "entropy"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5
            )
    alone = [
        policy.evaluate(Sequences.join([p], [c]), entropy=False).log_prob
        for p, c in zip(PROMPTS, completions, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), expected.log_prob, rtol=1e-5, atol=1e-5)


def test_frequencies_are_the_probabilities(lm):
    sampling = Sampling(max_tokens=1, temperature=1.5)
    drawn = draw(lm, sampling, [[3, 4]] * 4000)
    found = torch.bincount(torch.tensor(drawn.ids).view(-1), minlength=10) / 4000
    out = lm(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]]))
    expected = (out.logits[0] / 1.5).softmax(-1)
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_a_completion_ends_with_its_stop_token_and_says_so(lm):
    drawn = draw(lm, Sampling(max_tokens=12, temperature=2.0), PROMPTS * 8)
    for ids, stopped in zip(drawn.ids, drawn.stopped.tolist(), strict=True):
        assert stopped == (ids[-1] == 0)
        assert 0 not in ids[:-1]
        assert stopped or len(ids) == 12
    assert 0 < drawn.stopped.sum() < len(drawn.stopped)


def test_no_stop_comes_before_the_minimum(lm):
    drawn = draw(lm, Sampling(max_tokens=12, min_tokens=4, temperature=2.0), PROMPTS * 8)
    assert min(map(len, drawn.ids)) == 5


def test_other_stop_tokens(lm):
    stops = Tokenizer(lm.tokenizer, ["c"]).stops
    generator = torch.Generator().manual_seed(0)
    decoding = Decoding(Sampling(max_tokens=12, temperature=2), stops)
    drawn = generate(lm, PROMPTS * 8, decoding, generator)
    ends = {ids[-1] for ids, stopped in zip(drawn.ids, drawn.stopped, strict=True) if stopped}
    assert ends == {0, 4}


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=2), 2),
        (Sampling(top_p=0.5), 1),  # .64, .24, .09, .03
        (Sampling(top_p=0.7), 2),
        (Sampling(top_p=0.7, top_k=1), 1),
        (Sampling(top_k=9), 4),
    ],
)
def test_truncation_by_hand(sampling, kept):
    p = Decoding(sampling, ()).distribution(LOGITS, torch.tensor([0])).log_p.exp()
    expected = torch.zeros(1, 4)
    expected[:, :kept] = LOGITS[:, :kept].softmax(-1)
    torch.testing.assert_close(p, expected)


def test_dropout_stays_off(lm):
    policy = LanguagePolicy(copy.deepcopy(lm), Decoding(Sampling(), (0,))).train()
    assert not any(m.training for m in policy.lm.modules())
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in policy.lm.modules())


SIZES = {
    "vocab_size": 10,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def make(kind, lm, **more):
    """A small model of another architecture, with a tokenizer that fits it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **more)
    return LanguageModel(transformers.AutoModelForCausalLM.from_config(config), lm.tokenizer)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
        ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}),
        ("GPTNeoX", {}),
    ],
)
def test_other_architectures_agree_too(lm, kind, more):
    other = make(kind, lm, **more)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2.0)
    sampling = Sampling(max_tokens=12, temperature=0.7)
    drawn = draw(other, sampling)
    old = judged(other, drawn, sampling, 2)
    torch.testing.assert_close(drawn.log_prob, old.log_prob, rtol=1e-5, atol=1e-5)


def test_a_model_that_reads_what_comes_later_is_refused(lm, tmp_path):
    """The folder of a masked model: transformers takes it for a causal one, with a warning."""
    make("Bert", lm).save(tmp_path)
    with pytest.raises(UsageError, match="is a BertLMHeadModel that reads later tokens too"):
        load_model(tmp_path)


def test_a_model_that_takes_no_positions_is_refused(lm):
    with pytest.raises(UsageError, match="BloomForCausalLM takes no position_ids"):
        make("Bloom", lm)


LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
HYBRIDS = [
    ("Qwen3Next", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16}),
    ("Qwen3_5Text", LINEAR),
    ("Lfm2", {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}),
    (
        "Lfm2Moe",
        {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, **EXPERTS}
        | {"num_key_value_heads": 2},
    ),
    ("FalconH1", {**MAMBA, "num_key_value_heads": 2, "head_dim": 8}),
    ("Bamba", {**MAMBA, "num_key_value_heads": 2, "attn_layer_indices": [1]}),
    (
        "GraniteMoeHybrid",
        {
            **MAMBA,
            "layer_types": ["mamba", "attention"],
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    (
        "Jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
        | {"num_key_value_heads": 2},
    ),
    (
        "Gemma3Text",
        {
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 8,
        },
    ),
    ("OpenAIGPT", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),  # keeps no cache
]


def ends_apart(lm, select):
    """Completions that end at different times are those that a plain pass gives, each alone."""
    with torch.no_grad():  # far from uniform
        for name, parameter in lm.net.named_parameters():
            parameter.mul_(20.0 if "embed" in name else 3.0 if parameter.dim() > 1 else 1.0)
    assert lm.select == select
    heat = 40.0 if lm.net.config.tie_word_embeddings else 1.0  # which says the same word again
    stops, generator = (1, 3, 5), torch.Generator().manual_seed(3)
    sampling = Sampling(max_tokens=16, temperature=heat)
    drawn = generate(lm, PROMPTS * 2, Decoding(sampling, stops), generator)
    lengths = [len(ids) for ids in drawn.ids]
    assert len(set(lengths)) > 2
    found = []
    for prompt, ids in zip(PROMPTS * 2, drawn.ids, strict=True):
        with torch.no_grad():
            logits = lm.net(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
        log_p = (logits[len(prompt) - 1 : -1] / heat).log_softmax(-1)
        found.append(log_p.gather(-1, torch.tensor(ids)[:, None])[:, 0])
    torch.testing.assert_close(drawn.log_prob, torch.cat(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "more"), HYBRIDS)
def test_completions_of_hybrid_models_may_end_at_different_times(lm, kind, more):
    pytest.importorskip("transformers", "5")  # earlier ones lack some of these kinds
    ends_apart(make(kind, lm, **more), "" if kind == "OpenAIGPT" else "reorder_cache")


@pytest.mark.parametrize("fault", ["missing", "half", "all"])
def test_rows_stay_where_a_cache_cannot_select_them(lm, fault, monkeypatch):
    """As in transformers 5.23, whose layers of two kinds select half of what they hold."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    def half(self, rows):
        self.keys = self.keys[rows]

    def wrong(self, rows):
        self.keys, self.values = self.keys[rows], self.values[rows.flip(0)]

    other = make("Llama", lm)
    if fault == "missing":
        monkeypatch.delattr(DynamicCache.__mro__[1], "reorder_cache")
    if fault == "half":
        monkeypatch.setattr(DynamicLayer, "reorder_cache", half)
    if fault == "all":
        monkeypatch.setattr(DynamicLayer, "reorder_cache", half)
        monkeypatch.setattr(DynamicLayer, "batch_select_indices", wrong)
    ends_apart(other, "" if fault == "all" else "batch_select_indices")
