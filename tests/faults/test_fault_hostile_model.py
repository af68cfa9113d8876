"""A folder with a language model, or a run of one, that somebody made to do harm."""

import io
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from commands.command_line import proximo, refusal, result, succeeded
from faults.test_fault_hostile import ESCAPE, TRICKS, evil, plant, unharmed, victim
from proximo.language import load_model, tiny

__all__ = ["evil", "unharmed", "victim"]
pytestmark = pytest.mark.timeout(120)

WRITTEN = [
    *("samples.jsonl", "log", "metrics.jsonl", "result.json", "model.new", "nonfinite"),
    *(".samples.jsonl.partial", "model/generation_config.json", "checkpoints/last-2.safetensors"),
]
REFUSED = {"nonfinite", "samples.jsonl", "metrics.jsonl"}
"""Those that may end it at its beginning, so that it does not come to the others."""
RESUME = ("lm", "resume", "r", "--updates", "3", "--quiet")
GENERATE = ("lm", "generate", "r", "--prompt", "a", "--sampling.max-tokens", "2")
ENDLESS = ["pipe", "link to a device", "link to a file without end", "sparse", "hollow"]
FILES = ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "x.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of two updates."""
    place = tmp_path_factory.mktemp("made")
    texts = [{"prompt": "a", "completion": c} for c in ("bc", "cab", "e", "eb")]
    (place / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    small = ["--model", "tiny", "--model.layers", "1", "--model.width", "16", "--model.heads", "2"]
    small += ["--model.context", "16", "--algorithm.batch-size", "2", "--updates", "2", "--quiet"]
    succeeded(
        proximo("lm", "sft", *small, "--data", place / "texts.jsonl", "--run-dir", place / "r")
    )
    return place / "r"


@pytest.mark.parametrize("trick", TRICKS)
def test_a_run_writes_nothing_out_of_its_folder(here, made, unharmed, trick):
    for names in (WRITTEN, [name for name in WRITTEN if name not in REFUSED]):
        shutil.copytree(made, here / "r")
        plant(here / "r", names, trick)
        unharmed(proximo(*RESUME))
        shutil.rmtree(here / "r")


@pytest.mark.parametrize("trick", ["link", "dangling link", "link to a folder", "pipe"])
def test_a_model_is_written_into_no_other_folder(here, made, unharmed, trick):
    shutil.copytree(made, here / "r")
    (here / "r/model").rename(here / "r/real")
    plant(here / "r", ["model", "best"], trick)
    unharmed(proximo(*RESUME))
    (here / "r/model").unlink()
    (here / "r/model").symlink_to("real")  # it is read, and not written through
    ended = proximo(*RESUME)
    unharmed(ended)
    assert ended.code == 1
    model = here / "r/model"
    assert f"{model} could not be written ({model} is a link or no folder)" in ended.err


@pytest.mark.parametrize("trick", TRICKS)
def test_no_file_of_a_model_hangs_or_fills_the_memory(here, made, unharmed, trick):
    for file in FILES if trick in ENDLESS else FILES[:1]:
        shutil.copytree(made, here / "r")
        plant(here / "r/model", [file], trick)
        unharmed(proximo(*GENERATE))
        if trick in ENDLESS[:3]:
            assert "no regular file" in refusal(proximo(*GENERATE))
        shutil.rmtree(here / "r")


def test_data_that_a_run_names_are_read_from_files_alone(here, made, unharmed):
    shutil.copytree(made, here / "r")
    os.mkfifo(here / "pipe")
    config = (here / "r/config.toml").read_text()
    for data in ("/dev/zero", "/proc/self/pagemap", here / "pipe", here):
        path = str(made.parent / "texts.jsonl")
        assert path in config
        (here / "r/config.toml").write_text(config.replace(path, str(data)))
        ended = proximo(*RESUME)
        unharmed(ended)
        assert "no regular file" in refusal(ended)


def change(folder, file, **settings):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture
def model(here, monkeypatch):
    """A tiny model in a folder; whoever is asked says yes."""
    tiny(["abc"], layers=1, width=8, heads=1, context=16).save(here / "m")
    (here / "evil.py").write_text("open('ran', 'w').close()\n")
    shutil.copy(here / "evil.py", here / "m")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.syspath_prepend(str(here))
    return here / "m"


CODE = {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B", "AutoTokenizer": ["evil.C", None]}


@pytest.mark.parametrize("kind", ["gpt2", "another"])
def test_custom_code_is_never_asked_for_and_never_run(here, model, kind):
    change(model, "config.json", model_type=kind, auto_map=CODE)
    change(model, "tokenizer_config.json", auto_map=CODE, tokenizer_class="Evil")
    (model / "custom_generate").mkdir()
    shutil.copy(here / "evil.py", model / "custom_generate/generate.py")
    ended = proximo("lm", "generate", "m", "--prompt", "ab", "--sampling.max-tokens", "2")
    assert (ended.code, "[y/N]" in ended.out + ended.err) == (0 if kind == "gpt2" else 2, False)
    assert not (here / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_implementation": "some/evil"}, "names code to fetch"),
        ({"text_config": {"_attn_implementation": "some/evil"}}, "names code to fetch"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"transformers_weights": "../x.bin"}, "cannot be loaded"),
        ({"n_embd": ESCAPE}, "there is no model"),
        ({"model_type": ESCAPE}, "there is no model"),
        ({"model_type": []}, "there is no model"),
        ({"n_layer": {}}, "there is no model"),
        ({"vocab_size": 1}, "the model only 1"),
    ],
)
def test_a_configuration_that_does_harm_is_refused(here, model, settings, message):
    change(model, "config.json", **settings)
    ended = proximo("lm", "generate", "m", "--prompt", "ab")
    assert message in refusal(ended)
    assert "\x1b[2K" not in ended.out + ended.err


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[" * 10**5, "{}", "[]", "null", "1" * 5000, "\xff", ""])
def test_a_file_of_a_model_that_is_forged_is_refused_in_one_line(model, file, text):
    (model / file).write_text(text, encoding="latin-1")
    ended = proximo("lm", "generate", model, "--prompt", "a", "--sampling.max-tokens", "1")
    assert ended.code in (0, 2), ended.err
    assert len(ended.err) < 1000
    assert ended.err.count("\n") <= 1


def test_names_of_weights_reach_the_terminal_as_text(model, capfd):
    weights = load_file(model / "model.safetensors")
    save_file({**weights, ESCAPE: torch.zeros(2)}, model / "model.safetensors", {"format": "pt"})
    load_model(model)
    assert "\x1b[2K" not in "".join(capfd.readouterr())


@pytest.fixture
def adapter(model):
    """That of peft beside the model; returns the logits of both together."""
    import transformers
    from peft import LoraConfig, get_peft_model

    net = transformers.AutoModelForCausalLM.from_pretrained(model)
    settings = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft uses of transformers
        net = get_peft_model(net, settings).eval()
    with torch.no_grad():
        for name, x in net.named_parameters():
            x.normal_() if "lora_" in name else None
        logits = net(torch.tensor([[1, 2, 3]])).logits
    net.save_pretrained("adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(Path("adapter") / file, model)
    return logits


def test_a_lora_adapter_is_merged_into_its_model(model, adapter):
    net = load_model(model).net
    with torch.no_grad():
        torch.testing.assert_close(net(torch.tensor([[1, 2, 3]])).logits, adapter)
    assert not hasattr(net, "peft_config")
    assert all(x.requires_grad for x in net.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config"),
        ({"peft_type": "PROMPT_TUNING"}, "only LORA"),
        ({"peft_type": ["evil"]}, "only LORA"),
        ({"bias": "all"}, "only LORA"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["nothing"]}, "cannot be loaded"),
        ({"rank_pattern": {"(a+)+$": 1}}, "rank_pattern"),
        ({"rank_pattern": {"c_attn": 60_000}}, "see r"),
        ({"r": 60_000}, "see r"),
        ({"r": 1}, "does not fit its model"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"evil": "evil"}, "evil"),
        ({ESCAPE: 1}, "which is not read"),
    ],
)
def test_another_adapter_is_refused_before_peft_reads_it(here, model, adapter, settings, message):
    change(model, "adapter_config.json", auto_mapping={"parent_library": "evil"}, **settings)
    ended = proximo("lm", "generate", "m", "--prompt", "ab")
    assert message in refusal(ended)
    assert not (here / "ran").exists()
    assert "\x1b" not in ended.err


@pytest.mark.parametrize("trick", ["pipe", "hollow", "link to a device", "folder"])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_read_from_regular_files(here, model, adapter, victim, file, trick):
    plant(model, [file], trick)
    refusal(proximo("lm", "generate", "m", "--prompt", "ab"))


def test_a_model_is_saved_through_no_link(here, model, victim):
    (here / "out").mkdir()
    (here / "out/config.json").symlink_to(victim / "config.json")
    load_model(model).save(here / "out")
    assert (victim / "config.json").read_text() == "keep me\n"
    assert {path.name for path in (here / "out").iterdir()} >= {"config.json", "model.safetensors"}
    assert load_model(here / "out").context == 16


def test_a_run_goes_on_as_before(here, made):
    shutil.copytree(made, here / "r")
    succeeded(proximo(*RESUME))
    assert result("r")["updates"] == 3
    assert not list((here / "r").rglob("*.partial"))
    assert "a | " in succeeded(proximo(*GENERATE)).out


@pytest.mark.parametrize(
    "claims",
    [
        {"n_layer": 10**6},
        {"n_layer": 10**30},
        {"num_labels": 10**9},
        {"n_layer": -1},
        {"n_head": 0},
        {"n_embd": 2**20},
        {"vocab_size": 2**30},
        {"n_positions": 2**30},
    ],
)
def test_sizes_that_a_model_claims_take_neither_time_nor_memory(here, made, unharmed, claims):
    shutil.copytree(made, here / "r")
    change(here / "r/model", "config.json", **claims)
    for words in (GENERATE, RESUME):
        ended = proximo(*words)
        unharmed(ended)
        refusal(ended)
