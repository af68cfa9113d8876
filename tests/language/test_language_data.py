"""Data: columns, prompts, chats, order, padding; what is refused, with the row that did it."""

import contextlib
import itertools
import json
import math
import re
import sqlite3

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from proximo import UsageError
from proximo.language import Sampling, tiny
from proximo.language.examples import EpochSampler, Examples, Limit
from proximo.language.model import Decoding, LanguagePolicy
from proximo.language.sequences import Sequences, by_length, pack, per_token
from proximo.language.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "ab"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}({% endif %}"
)


@pytest.fixture(scope="module")
def lm():
    return tiny(["abc []()"], width=16, heads=2, context=32)


@pytest.mark.parametrize("symbols", ["characters", "words"])
@pytest.mark.parametrize("text", ["a cab", " b  c\n", "(a)[b]"])
def test_tokens_say_their_text(symbols, text):
    tokenizer = Tokenizer(tiny([text, "c\n"], width=8, heads=1, symbols=symbols).tokenizer)
    assert tokenizer.text(tokenizer.prompt(text)) == text
    assert tokenizer.text(tokenizer.answer("a", text)) == text
    assert tokenizer.answer("a", text)[-1] == tokenizer.end


def test_words_are_tokens():
    tokenizer = Tokenizer(tiny(["the cat, the dog"], width=8, heads=1, symbols="words").tokenizer)
    assert len(tokenizer.prompt("the cat, the dog")) == 8
    assert len(tokenizer.inner) == 2 + len({"the", " ", "cat", ",", "dog"})


def test_a_chat_is_written_by_its_template(lm):
    lm.tokenizer.chat_template = TEMPLATE
    try:
        tokenizer = Tokenizer(lm.tokenizer)
        reply = [{"role": "assistant", "content": "c"}]
        assert tokenizer.text(tokenizer.prompt(CHAT)) == "[ab]("
        with pytest.raises(ValueError, match="writes the prompt differently"):
            tokenizer.answer(CHAT, reply)
        lm.tokenizer.chat_template = TEMPLATE.replace("({% endif %}", "{% endif %}")
        assert tokenizer.text(tokenizer.answer(CHAT, reply)) == "[c]"
        with pytest.raises(ValueError, match="prompt and answer differ in kind"):
            tokenizer.answer("ab", reply)
    finally:
        lm.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.prompt(CHAT)


def test_rows_come_from_files_lists_and_plain_texts(tmp_path):
    rows = [{"prompt": "a", "level": 3}, {"prompt": "b", "level": 4, "more": 1}]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    read = Examples.read(file, "prompt")
    assert read.rows == Examples.read(iter(rows), "prompt").rows == rows
    assert read.columns == ["level", "prompt"]
    assert read.digest == Examples.read(rows, "prompt").digest
    assert read.digest != Examples.read(rows[::-1], "prompt").digest
    assert Examples.read(["a", "b"], "prompt").rows == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "row 2 of .* has no 'prompt'; it has: nothing"),
        ('{"text": "a"}', "row 2 of .* has no 'prompt'; it has: text"),
        ('{"prompt": ""}', "row 2 of .* has an empty prompt"),
        ('{"prompt": 3}', "row 2 of .* neither text nor a chat: 3"),
        ('{"prompt": []}', "row 2 of .* neither text nor a chat"),
        ('{"prompt": [{"role": "user"}]}', "row 2 of .* lack a role or content"),
        ("prompt", "line 2 of .* is not JSON"),
        ("[1]", "line 2 of .* is no JSON object"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_row(tmp_path, line, said):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(UsageError, match=said):
        Examples.read(file, "prompt")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("inside", list("\u2028\u2029\x85\x0b\x0c\x1c\x1e\ufeff"))
def test_lines_end_by_a_newline_alone(tmp_path, inside, ending, mark):
    rows = [{"prompt": f"a{inside}b"}, {"prompt": "c"}]
    file = tmp_path / "data.jsonl"
    lines = [mark + json.dumps(row, ensure_ascii=False) for row in rows]  # files one behind another
    file.write_bytes((ending.join(lines) + ending).encode())
    assert Examples.read(file, "prompt").rows == rows


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": ' + "1" * 5000 + "}", "{'prompt': 1}"])
def test_what_no_reader_of_json_takes_is_refused(tmp_path, line):
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(UsageError, match=r"line 2 of .* is not JSON"):
        Examples.read(file, "prompt")


class Frame:
    """As a table of pandas: gives the names of its columns where it is iterated over."""

    columns = ("prompt", "level")

    def __iter__(self):
        return iter(self.columns)

    def to_dict(self, orient):
        assert orient == "records"
        return ROWS


class Table(Frame):
    """As one of polars or arrow."""

    def to_dicts(self):
        return ROWS


class Data:
    """As a `datasets.Dataset`: rows by their numbers."""

    column_names = ("prompt", "level")

    def __getitem__(self, i):
        return ROWS[i]


ROWS = [{"prompt": "a", "level": 3}, {"prompt": "b", "level": 4}]
COLUMNS = {"prompt": ["a", "b"], "level": np.array([3, 4])}


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        tuple(ROWS),
        iter(ROWS),
        map(dict, ROWS),
        dict(enumerate(ROWS)).values(),
        np.array(ROWS),
        COLUMNS,
        Frame(),
        Table(),
        Data(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_tables_and_iterators_are_read_by_rows(source):
    assert Examples.read(source, "prompt").rows == ROWS


def test_rows_of_a_data_base_are_read():
    with contextlib.closing(sqlite3.connect(":memory:")) as base:
        base.row_factory = sqlite3.Row
        found = base.execute("select 'a' as prompt, 3 as level union all values ('b', 4)")
        assert Examples.read(found, "prompt").rows == ROWS


def test_chats_are_prompts():
    other = [{"role": "user", "content": "c", "name": "me"}, *CHAT]
    for source in ([CHAT, other], (tuple(CHAT), np.array(other)), [{"prompt": CHAT}, other]):
        assert Examples.read(source, "prompt").rows == [{"prompt": CHAT}, {"prompt": other}]
    assert Examples.read({"prompt": [CHAT, other]}, "prompt").rows[1] == {"prompt": other}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"train": ROWS, "test": ROWS}, "dict of train, test: give one of its parts"),
        ({"train": Data(), "test": Data()}, "dict of train, test"),
        ({}, "dict of nothing"),
        (ROWS[0], "dict of prompt, level: give one of its parts"),
        ({"prompt": ["a"], "level": [1, 2]}, "prompt, level, which are not of one length: 1, 2"),
        ({"prompt": CHAT}, "row 1 of the data has a 'prompt' that is neither text nor a chat"),
        ({"a", "b"}, "a set, whose order"),
        (b"a", "the data are b'a': give"),
        (5, "the data are 5: give"),
        (None, "the data are None: give"),
        ([1, 2], "row 1 of the data is 1: give a dict"),
        (["a", None], "row 2 of the data is None: give a dict"),
        ([{"prompt": "a"}, {1: "a"}], "row 2 of the data is {1: 'a'}: give a dict"),
        (["a", ""], "row 2 of the data has an empty prompt"),
        (["a", []], "row 2 of the data .* neither text nor a chat"),
        ([["a", "b"]], "row 1 of the data has a chat whose messages lack a role"),
        ([CHAT[0]], "row 1 of the data has no 'prompt'; it has: role, content"),
    ],
)
def test_what_is_no_rows_is_refused(source, said):
    with pytest.raises(UsageError, match=re.escape(said).replace(r"\.\*", ".*")):
        Examples.read(source, "prompt")


def test_splits_and_open_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="dict of train, test"):  # rows for an env have any column
        Examples.read({"train": ROWS, "test": ROWS})
    assert Examples.read(COLUMNS).rows == ROWS
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a"}')
    with file.open() as opened, pytest.raises(UsageError, match="open file: give its path"):
        Examples.read(opened, "prompt")


def test_no_rows_and_no_file(tmp_path):
    with pytest.raises(UsageError, match="has no rows"):
        Examples.read([], "prompt")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Examples.read(tmp_path / "none.jsonl", "prompt")


@pytest.mark.parametrize("value", [4, None, [1, 2], [{"role": "user"}]])
def test_columns_that_no_stage_reads_may_be_anything(value):
    row = {"prompt": "ab", "completion": value, "chosen": [{"role": "user", "content": "cd"}]}
    assert Examples.read([row], "prompt").texts() == ["ab", "cd"]


def test_a_prompt_longer_than_the_context_is_refused():
    examples = Examples.read(["ab", "abcabc"], "prompt")
    ids = [[1, 2], [1] * 6]
    assert examples.check_lengths(4, Limit(10), ids) == (examples, [ids])
    assert examples.check_lengths(400, Limit(None), ids) == (examples, [ids])
    with pytest.raises(UsageError, match=r"row 2 .* 6 tokens and 5 to be drawn, .* reads 10"):
        examples.check_lengths(5, Limit(10), ids)
    with pytest.raises(
        UsageError, match=r"row 1 of the data has 5 tokens, .* reads 4 at most"
    ) as e:
        examples.check_lengths(0, Limit(4, max_length=7), ids, [[1], [1]], [[1] * 3, [1]])
    assert "sampling" not in str(e.value)


def test_rows_that_are_too_long_may_be_left_out(capsys):
    examples = Examples.read(["ab", "abcabc", "a"], "prompt")
    ids, answers = [[1, 2], [1] * 6, [1]], [[3], [4], [5] * 2]
    short, parts = examples.check_lengths(0, Limit(10, max_length=6, drop=True), ids, answers)
    assert [row["prompt"] for row in short.rows] == ["ab", "a"]
    assert parts == [[[1, 2], [1]], [[3], [5, 5]]]
    assert (
        "1 of the 3 rows of the data are left out: run.max_length is 6" in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match="all 3 rows of the data are too long: the model reads 2"):
        examples.check_lengths(2, Limit(2, max_length=6, drop=True), ids)


def test_every_example_comes_once_in_each_epoch():
    order = EpochSampler(7, seed=1, stream=0)
    drawn = order.draw(0, 21)
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert order.draw(5, 11) == drawn[5:16]
    assert EpochSampler(7, 1, 1).draw(0, 7) != drawn[:7]
    assert EpochSampler(7, 2, 0).draw(0, 7) != drawn[:7]


def test_sequences_are_padded_outside():
    sequences = Sequences.join([[5], [6, 7, 8]], [[1, 2], [3]])
    assert sequences.tokens.tolist() == [[0, 0, 5, 1, 2], [6, 7, 8, 3, 0]]
    assert sequences.mask.int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert sequences.positions[0].tolist() == [0, 0, 0, 1, 2]
    assert sequences.response.int().tolist() == [[1, 1], [1, 0]]
    assert sequences.select(torch.tensor([0])).tokens.tolist() == [[5, 1, 2]]
    assert sequences.select(torch.tensor([1])).tokens.tolist() == [[6, 7, 8, 3]]


def test_the_end_of_sequence_may_be_the_padding_token(lm):
    """Padding is known by lengths: an end that was said counts, one that pads does not."""
    sequences = Sequences.join([[3, 0], [4]], [[2, 0], [5, 3, 0]])
    found = LanguagePolicy(lm, Decoding(Sampling(), (0,))).evaluate(sequences, entropy=False)
    assert len(found.log_prob) == 5
    other = sequences._replace(tokens=torch.where(sequences.mask, sequences.tokens, 7))
    again = LanguagePolicy(lm, Decoding(Sampling(), (0,))).evaluate(other, entropy=False)
    torch.testing.assert_close(found.log_prob, again.log_prob)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(lm):
    from proximo.language import LanguageModel

    other = tiny(["abcdefghijklmnopqrstuvwxyz"], width=16, heads=2)
    with pytest.raises(UsageError, match="tokenizer has 28 tokens, the model only 10"):
        LanguageModel(lm.net, other.tokenizer)


def test_a_stop_that_is_no_token_is_refused(lm):
    with pytest.raises(UsageError, match="'ab', which is no single token"):
        Tokenizer(lm.tokenizer, ["ab"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [False, True])
def test_every_token_that_is_needed_is_read_once_and_in_its_place(seed, share):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (2, 9), generator=draw).tolist()
    ids = [[torch.randint(9, (n,), generator=draw).tolist() for n in row] for row in lengths]
    own = [torch.randint(2, (n,), generator=draw).bool().tolist() for n in lengths[1]]
    sequences = Sequences.join(*ids, response=own)
    wanted = sequences.before_actions
    packed = pack(sequences, wanted, share=share)
    found = []
    for i, (prompt, answer, said) in enumerate(zip(*ids, own, strict=True)):
        needed = max((len(prompt) + t for t, mine in enumerate(said) if mine), default=0)
        rows, columns = (packed.owner == i).nonzero(as_tuple=True)
        assert len(rows) == needed
        assert len(set(rows.tolist())) <= 1
        assert packed.tokens[rows, columns].tolist() == [*prompt, *answer][:needed]
        assert packed.positions[rows, columns].tolist() == list(range(needed))
        flat = rows * packed.tokens.shape[-1] + columns
        found += [int(flat[len(prompt) + t - 1]) for t, mine in enumerate(said) if mine]
    assert packed.wanted.tolist() == found
    assert (len(packed.tokens) < 9) == share
    owner, mask = packed.owner[0], packed.mask(torch.float32)[0, 0]
    for one, other in itertools.product(range(len(owner)), repeat=2):
        seen = owner[one] == owner[other] and other <= one
        assert mask[one, other] == (0 if seen else -math.inf)


def test_rows_are_filled():
    sequences = Sequences.join([[1]] * 6, [[2] * n for n in (4, 6, 10, 12, 5, 11)])
    packed = pack(sequences, sequences.before_actions, share=True)
    assert sorted((packed.owner >= 0).sum(-1).tolist()) == [16, 16, 16]


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_parts_are_of_like_length(limit):
    lengths = [4, 9, 2, 7, 5, 1, 3]
    sequences = Sequences.join([[1]] * 7, [[2] * length for length in lengths])
    which = torch.tensor([6, 1, 5, 0, 3])
    parts = by_length(sequences, which, limit)
    assert torch.cat(parts).tolist() == [5, 6, 0, 3, 1]
    assert max(map(len, parts)) == min(limit, 5)


def test_a_long_sequence_is_apart():
    lengths = [100, 3, 15, 16, 30, 31, 32, 62, 63, 7]
    sequences = Sequences.join([[1]] * 10, [[2] * (length - 1) for length in lengths])
    parts = by_length(sequences, torch.arange(10), 64)
    assert [[lengths[i] for i in part] for part in parts] == [
        [3, 7, 15, 16],
        [30, 31, 32],
        [62, 63, 100],
    ]


def test_what_is_computed_in_parts_comes_back_in_order(lm):
    prompts = [[1] * length for length in (3, 9, 1, 5)]
    answers = [list(range(length)) for length in (6, 1, 9, 4)]
    sequences = Sequences.join(prompts, answers)
    tokens, first = per_token(
        sequences,
        2,
        lambda part: (
            part.tokens[:, -part.response.shape[-1] :][part.response],
            part.mask.sum(-1).repeat_interleave(part.lengths),
        ),
    )
    assert tokens.tolist() == [token for answer in answers for token in answer]
    assert first.tolist() == [9] * 6 + [10] * 1 + [10] * 9 + [9] * 4
