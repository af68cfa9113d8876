"""Where a text begins and ends: of a model with several ends, its chat template, its tokenizer."""

import copy
import json
import math

import pytest
import torch

pytest.importorskip("transformers")

from commands.command_line import proximo, refusal, succeeded
from language.test_stages import stop_after
from proximo import UsageError
from proximo.language import (
    LanguageModel,
    Sampling,
    SupervisedConfig,
    TrainingConfig,
    fit_reward,
    load_model,
    ppo,
    sft,
)
from proximo.language.blueprint import read_blueprint
from proximo.language.examples import Examples
from proximo.language.generate import generate
from proximo.language.model import Decoding
from proximo.language.stages import complete
from proximo.language.tokenizer import Tokenizer

SPECIAL = ["<eos>", "<unknown>", "<bos>", "<start>", "<turn>"]
EOS, BOS, TURN = 0, 2, 4
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start>{{ m.role }}\n{{ m.content }}<turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
SETTINGS = {"eos_token_id": [EOS, TURN], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
HELLO = [{"role": "user", "content": "hello"}]
BYE = [{"role": "assistant", "content": "bye"}]


@pytest.fixture(scope="module")
def lm():
    """As Gemma's: every text begins by BOS, and turns end by another token than texts."""
    import tokenizers
    import transformers
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(0)
    letters = list("abcdefghijklmnopqrstuvwxyz \n.")
    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIAL, *letters])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<eos>",
        unk_token="<unknown>",
        bos_token="<bos>",
        additional_special_tokens=["<start>", "<turn>"],
    )
    tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    net = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(20.0)
    return LanguageModel(net, tokenizer)


def saved(lm, folder, **settings):
    """A folder with these settings in its generation_config.json; without any it has none."""
    lm.save(folder)
    file = folder / "generation_config.json"
    file.unlink()
    if settings:
        file.write_text(json.dumps(settings))
    return folder


def test_a_model_ends_where_transformers_ends_it(lm, tmp_path):
    import transformers

    ids = lm.tokenizer("hello")["input_ids"]
    likely = Sampling(max_tokens=12, top_k=1)
    plain = load_model(saved(lm, tmp_path / "plain"))

    def said(lm, stops):
        drawn = generate(lm, [ids], Decoding(likely, stops), torch.Generator())
        return drawn.ids[0], drawn.stopped.tolist()

    whole, _ = said(plain, ())
    ends = sorted({whole[3], whole[7]})
    folder = saved(lm, tmp_path / "ends", eos_token_id=ends)
    ended = load_model(folder)
    found, stopped = said(ended, Tokenizer(ended.tokenizer, ends=ended.ends).stops)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=EOS
    )
    assert found == theirs[0, len(ids) :].tolist() == whole[: whole.index(found[-1]) + 1]
    assert len(found) <= 4
    assert stopped == [True]
    assert set(read_blueprint(folder).ends) == set(ended.ends) == set(ends)
    for model in (str(folder), ended):  # by its name, or as it is
        states = []
        ppo(
            model,
            ["hello"],
            lambda completions: [0.0] * len(completions),
            updates=1,
            sampling=Sampling(max_tokens=4, stop=("a",)),
            run=TrainingConfig(sequences=16),
            callbacks=[lambda state, *_, to=states: to.append(state)],
        )
        stops = {EOS, TURN, *ends, lm.tokenizer("a")["input_ids"][-1]}
        assert set(states[0].policy.decoding.stops) == stops


@pytest.mark.parametrize("declared", [None, EOS, [EOS], [TURN, EOS], [EOS, TURN, 999]])
def test_an_answer_ends_by_the_end_of_its_turn(lm, tmp_path, declared):
    """Declared or not: it is what the template writes, and where a completion stops."""
    settings = {} if declared is None else {"eos_token_id": declared}
    found = read_blueprint(saved(lm, tmp_path / "model", **settings))
    tokenizer = Tokenizer(found.tokenizer, ends=found.ends)
    assert tokenizer.stops == (EOS, TURN)
    answer = tokenizer.answer(HELLO, BYE)
    assert answer == tokenizer.plain("bye<turn>")
    assert tokenizer.text(answer) == "bye"
    assert tokenizer.answer("hello", "bye") == tokenizer.plain("bye<eos>")


def test_a_number_that_only_a_class_has_is_no_end(lm, tmp_path):
    """A LlamaConfig has eos_token_id 2 unless it is told another: here any letter."""
    import transformers

    folder = saved(lm, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    letter = lm.tokenizer("a")["input_ids"][-1]
    for own, ends in ((letter, []), ([letter, TURN], [letter, TURN])):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": own}))
        assert read_blueprint(folder).ends == load_model(folder).ends == ends
    net = transformers.AutoModelForCausalLM.from_pretrained(folder)
    net.generation_config = transformers.GenerationConfig(eos_token_id=letter)
    assert LanguageModel(net, lm.tokenizer).ends == [letter]  # somebody's word


@pytest.mark.parametrize(
    "text", ["[", "[1]", "3", '{"eos_token_id": "x"}', '{"eos_token_id": [[4], 3]}', "\x00"]
)
def test_a_file_of_ends_that_cannot_be_read_is_refused(lm, tmp_path, text):
    folder = saved(lm, tmp_path / "model")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UsageError, match=r"generation_config\.json cannot be read"):
        read_blueprint(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bye", "bye<eos>"),
        ("bye<eos>", "bye<eos>"),
        ("bye<turn>", "bye<turn>"),
        ("bye<turn>\n", "bye<turn>"),
        ("bye<turn>\n<eos>", "bye<turn>"),
        ("bye\n", "bye\n<eos>"),
        ("a<turn>\nb", "a<turn>\nb<eos>"),
        ("", "<eos>"),
        ("<eos>", "<eos>"),
    ],
)
def test_an_answer_has_one_end(lm, text, expected):
    tokenizer = Tokenizer(lm.tokenizer)
    assert tokenizer.answer("hello", text) == tokenizer.plain(expected)


def test_a_prompt_has_one_beginning(lm):
    tokenizer = Tokenizer(lm.tokenizer)
    written = lm.tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert written.startswith("<bos>")
    assert tokenizer.prompt(written) == tokenizer.prompt(HELLO)
    assert tokenizer.prompt(HELLO).count(BOS) == 1
    assert tokenizer.prompt("hello") == [BOS, *tokenizer.plain("hello")]
    assert tokenizer.prompt("a<bos>") == [BOS, *tokenizer.plain("a<bos>")]


def test_a_prompt_that_ends_by_an_assistants_words_goes_on_with_them(lm):
    tokenizer = Tokenizer(lm.tokenizer)
    begun = [*HELLO, {"role": "assistant", "content": "i say"}]
    assert tokenizer.prompt(begun) == [*tokenizer.prompt(HELLO), *tokenizer.plain("i say")]
    assert tokenizer.answer(begun, [{"role": "assistant", "content": " bye"}]) == tokenizer.plain(
        " bye<turn>"
    )


def test_tools_and_settings_of_a_row_reach_the_template(lm):
    inner = copy.deepcopy(lm.tokenizer)
    inner.chat_template = (
        "{% for t in tools or [] %}{{ t.name }}.{% endfor %}{{ mood or 'calm' }}" + TEMPLATE
    )
    tokenizer = Tokenizer(inner)
    rows = [
        {"prompt": HELLO},
        {"prompt": HELLO, "tools": [{"name": "clock"}], "chat_template_kwargs": {"mood": "gay"}},
        {"prompt": HELLO, "tools": '[{"name": "clock"}]', "chat_template_kwargs": None},
        {"prompt": HELLO, "tools": None, "chat_template_kwargs": '{"mood": "sad"}'},
        {"prompt": HELLO, "tools": math.nan, "chat_template_kwargs": math.nan},  # of a table
        {"prompt": "calm", "tools": "hammer", "chat_template_kwargs": 3},  # columns of a reward
    ]
    found = [tokenizer.text(ids) for ids in Examples.read(rows, "prompt").prompts(tokenizer)]
    assert [text.partition("user")[0] for text in found] == [
        "calm",
        "clock.gay",
        "clock.calm",
        "sad",
        "calm",
        "calm",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": "hammer"}, "its 'tools' is 'hammer': give a list"),
        ({"tools": {"name": "clock"}}, "its 'tools' is .*: give a list"),
        ({"chat_template_kwargs": [1]}, "its 'chat_template_kwargs' is .*: give a dict"),
        ({"chat_template_kwargs": {"tokenize": True}}, "its .* have 'tokenize', which is"),
    ],
)
def test_what_no_template_can_be_given_is_refused_with_its_row(lm, options, said):
    with pytest.raises(UsageError, match=f"^row 1 of the data: {said}"):
        Examples.read([{"prompt": HELLO, **options}], "prompt").prompts(Tokenizer(lm.tokenizer))


CHATS = [{"prompt": HELLO, "completion": BYE, "chosen": BYE, "rejected": HELLO}] * 4


def generation(folder):
    return json.loads((folder / "model/generation_config.json").read_text())


@pytest.mark.parametrize("settings", [SETTINGS, {}, {"eos_token_id": EOS, "temperature": 0.6}])
def test_a_resumed_run_keeps_how_the_model_is_drawn_from(lm, tmp_path, settings):
    """And what it is drawn to its end by elsewhere: it has learned no other end of a turn.

    The last ones lack do_sample: transformers loads such settings, and does not write them.
    """
    folder = saved(lm, tmp_path / "model", **settings)

    def fit(name, **more):
        options = {"updates": 3, "algorithm": SupervisedConfig(batch_size=2), "seed": 1}
        return sft(str(folder), CHATS, run_dir=tmp_path / name, **options, **more)

    fit("whole")
    fit("broken", callbacks=[stop_after(1)])
    fit("broken", resume=True)
    whole, resumed = generation(tmp_path / "whole"), generation(tmp_path / "broken")
    assert resumed == whole
    assert {EOS, TURN} == set(whole["eos_token_id"])
    for name in settings.keys() - {"eos_token_id"}:
        assert whole[name] == settings[name]


def test_a_run_of_before_without_these_settings_goes_on(lm, tmp_path):
    folder = saved(lm, tmp_path / "model", **SETTINGS)
    options = {
        "updates": 3,
        "algorithm": SupervisedConfig(batch_size=2),
        "run_dir": tmp_path / "run",
    }
    sft(str(folder), CHATS, **options, callbacks=[stop_after(1)])
    (tmp_path / "run/model/generation_config.json").unlink()
    sft(str(folder), CHATS, **options, resume=True)
    assert TURN in load_model(tmp_path / "run").ends


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "system", "content": "be"}, *HELLO], "System role not supported"),
        ([{"role": "user", "content": None}], "neither text nor parts of text: None"),
        ([{"role": "user", "content": [{"type": "image"}]}], "neither text nor parts of text"),
        ([{"role": "user", "content": "a\ud800"}], "half of a surrogate pair"),
        ("a\ud800", "half of a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_written_is_named(lm, prompt, said):
    rows = [{"prompt": HELLO, "completion": BYE}, {"prompt": prompt, "completion": BYE}]
    for act in (
        lambda: sft(lm, rows),
        lambda: ppo(lm, rows, len),
        lambda: fit_reward(lm, [row | {"chosen": BYE, "rejected": BYE} for row in rows]),
        lambda: complete(lm, rows, Sampling()),
    ):
        with pytest.raises(UsageError, match=rf"^row 2 of the data.*{said}"):
            act()


def test_calls_of_tools_and_parts_of_text_are_read(lm):
    tokenizer = Tokenizer(lm.tokenizer)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"text": "lo"}]}]
    assert tokenizer.prompt(parts) == tokenizer.prompt(HELLO)
    called = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, *HELLO]
    assert "None" not in tokenizer.text(tokenizer.prompt(called))
    rows = [{"prompt": called}, {"prompt": [{"role": "assistant", "tool_calls": [1]}, *HELLO]}]
    assert len(Examples.read(rows, "prompt").prompts(tokenizer)) == 2


def test_only_the_models_own_words_are_learned(lm):
    rows = [{"prompt": HELLO, "completion": [*BYE, *HELLO, *BYE]}]
    with pytest.raises(UsageError, match=r"row 1 of the data: its completion .* role 'user'"):
        sft(lm, rows)


def test_the_command_line_names_rows_and_writes_chats(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(lm, tmp_path / "model", **SETTINGS)
    system = [{"role": "system", "content": "be"}, *HELLO]
    rows = [{"prompt": HELLO, "completion": BYE}, {"prompt": system, "completion": BYE}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "good.jsonl").write_text(json.dumps({"prompt": HELLO, "tools": []}))
    for words in (["sft", "--model", "model", "--data"], ["generate", "model", "--prompts"]):
        said = refusal(proximo("lm", *words, "bad.jsonl"))
        assert "row 2 of " in said
        assert "System role not supported" in said
    assert not (tmp_path / "runs").exists()
    short = ("--prompts", "good.jsonl", "--sampling.max-tokens", "4")
    shown = succeeded(proximo("lm", "generate", "model", *short, "--json")).out
    assert json.loads(shown)["prompt"] == HELLO
    assert succeeded(proximo("lm", "generate", "model", *short)).out.startswith("hello | ")
