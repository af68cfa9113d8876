"""Examples from files and tables: rows with a prompt and its answers, checked and tokenized."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proximo.disk import read, warn
from proximo.errors import UsageError, explain
from proximo.language.tokenizer import Tokenizer, content, with_content

MAX_FILE_BYTES = 2**40  # size of a data file at most: a run of somebody else may name any file
Source = str | Path | Iterable[Mapping[str, Any] | str | Sequence[Mapping[str, Any]]]
"""A JSONL file, rows (a list, `datasets`, a table of pandas), or texts or chats, as prompts."""

TEXTS = ("prompt", "completion", "chosen", "rejected")  # the columns that are text or a chat
SURROGATE = re.compile("[\ud800-\udfff]")
TEMPLATE_ARGUMENTS = {"tokenize", "add_generation_prompt", "continue_final_message", "tools"}
"""Arguments of a chat template that the tokenizer sets."""
TABLES = (("to_dicts",), ("to_pylist",), ("to_dict", "records"))
"""Methods by which polars, arrow and pandas give the rows of a table."""


class Limit(NamedTuple):
    """Maximum length of a sequence, and whether longer rows are dropped."""

    context: int | None  # tokens that the model reads
    max_length: int = 0  # `TrainingConfig.max_length`
    drop: bool = False
    remedy: str = ""

    @property
    def tokens(self) -> int | None:
        return min((x for x in (self.context, self.max_length) if x), default=None)

    def __str__(self) -> str:
        if self.max_length and self.tokens == self.max_length:
            return f"run.max_length is {self.max_length}"
        return f"the model reads {self.context} at most"


@dataclass(frozen=True)
class Examples:
    """Rows of data with the columns that a stage needs, and maybe others."""

    name: str  # for errors: the file
    rows: list[dict[str, Any]]

    @staticmethod
    def read(source: Source, *columns: str) -> Examples:
        """Rows that all have these columns, as text or as chat. Raises `UsageError`."""
        if isinstance(source, str | Path):
            examples = Examples(str(source), _read_jsonl(Path(source)))
        else:
            rows = [_row(row, number) for number, row in enumerate(_rows(source, columns), 1)]
            examples = Examples("the data", rows)
        if not examples.rows:
            raise UsageError(f"{examples.name} has no rows")
        for number, row in enumerate(examples.rows, 1):
            for column in columns:
                if problem := _problem(row, column):
                    raise UsageError(f"row {number} of {examples.name} {problem}")
        return examples

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        """Names that every row has."""
        return sorted(set.intersection(*(set(row) for row in self.rows)))

    @property
    def digest(self) -> str:
        """SHA-256 of all rows: a resumed run must see the same data."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def texts(self) -> list[str]:
        """All texts, for the vocabulary of a tiny model."""
        texts: list[str] = []
        for row in self.rows:
            for column in TEXTS:
                if not _problem(row, column):  # a column that the stage does not read may be wrong
                    value = row[column]
                    texts += [value] if isinstance(value, str) else map(content, value)
        return texts

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of the prompts. Raises `UsageError` for a prompt without tokens."""
        prompts = self._tokens(lambda row: tokenizer.prompt(row["prompt"], _options(row)))
        for number, ids in enumerate(prompts, 1):
            if not ids:
                raise UsageError(f"row {number} of {self.name} has a prompt without tokens")
        return prompts

    def answers(self, tokenizer: Tokenizer, column: str) -> list[list[int]]:
        """Token ids of the answers, with the end of sequence. Raises `UsageError`."""

        def answer(row: dict[str, Any]) -> list[int]:
            others = {m["role"] for m in row[column] if not isinstance(m, str)} - {"assistant"}
            if column == "completion" and others:
                raise ValueError(
                    f"its completion has a message of the role {min(others)!r}, but every word of "
                    "it would be learned: put what comes before the last answer into the prompt"
                )
            return tokenizer.answer(row["prompt"], row[column], _options(row))

        return self._tokens(answer)

    def _tokens(self, tokenize: Callable[[dict[str, Any]], list[int]]) -> list[list[int]]:
        """Token ids of each row. Raises `UsageError` for a row that cannot be tokenized."""
        tokens = []
        for number, row in enumerate(self.rows, 1):
            try:
                tokens.append(tokenize(row))
            except UsageError:
                raise
            except Exception as error:  # a chat template is a program: it raises what it likes
                why = str(error) if isinstance(error, ValueError) else explain(error)
                raise UsageError(f"row {number} of {self.name}: {why}") from error
        return tokens

    def check_lengths(
        self, max_tokens: int, limit: Limit, prompts: list[list[int]], *answers: list[list[int]]
    ) -> tuple[Examples, list[list[list[int]]]]:
        """Rows with room for `max_tokens`, and their tokens. Raises `UsageError` for longer."""
        parts = [prompts, *answers]
        if limit.tokens is None:
            return self, parts
        kept = []
        for i, prompt in enumerate(prompts):
            total = len(prompt) + max((len(answer[i]) for answer in answers), default=0)
            if total + max_tokens <= limit.tokens:
                kept.append(i)
            elif not limit.drop:
                more = f" and {max_tokens} to be drawn" if max_tokens else ""
                lower = ", or lower sampling.max_tokens" if max_tokens else ""
                raise UsageError(
                    f"row {i + 1} of {self.name} has {total} tokens{more}, but {limit}: shorten "
                    f"it{lower}{limit.remedy}"
                )
        count = len(self) - len(kept)
        if not kept:
            raise UsageError(f"all {count} rows of {self.name} are too long: {limit}")
        if count:
            warn(f"{count} of the {len(self)} rows of {self.name} are left out: {limit}")
        rows = [self.rows[i] for i in kept]
        return Examples(self.name, rows), [[part[i] for i in kept] for part in parts]


class EpochSampler:
    """Indices of examples, each once per epoch: a pure function of seed and position."""

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self._count, self._seed, self._stream = count, seed, stream

    def draw(self, first: int, number: int) -> list[int]:
        """The examples of draws first, first + 1, ..."""
        drawn: list[int] = []
        while len(drawn) < number:
            epoch, place = divmod(first + len(drawn), self._count)
            order = np.random.default_rng([self._seed, self._stream, epoch])
            drawn += order.permutation(self._count)[place : place + number - len(drawn)].tolist()
        return drawn


def split(count: int, share: float, seed: int, setting: str) -> tuple[list[int], list[int]]:
    """Indices to train on, and held-out ones, in random order. Raises `UsageError` for none."""
    held_out = int(count * share)
    if share and not held_out:
        raise UsageError(
            f"{setting} is {share} of {count} examples, which is none: give more of them, or a "
            "larger share"
        )
    mixed = EpochSampler(count, seed, 0).draw(0, count)
    return mixed[: count - held_out], mixed[count - held_out :]


def _rows(source: Any, columns: Sequence[str]) -> Iterable[Any]:
    """Rows of a table or of any iterable. Raises `UsageError` for other sources."""
    if hasattr(source, "columns"):  # iterating a table of pandas, polars or arrow gives columns
        return next(
            (getattr(source, name)(*how) for name, *how in TABLES if hasattr(source, name)), source
        )
    if isinstance(source, Mapping):
        return _rows_of_columns(source, columns)
    if isinstance(source, io.IOBase):
        raise UsageError("the data are an open file: give its path")
    if isinstance(source, set | frozenset):
        raise UsageError("the data are a set, whose order is another one in each run: give a list")
    if isinstance(source, bytes) or not (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        raise UsageError(
            f"the data are {source!r:.80}: give a JSONL file, rows, or texts as prompts"
        )
    rows: Iterable[Any] = source
    return rows


def _rows_of_columns(table: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a dict of columns. Raises `UsageError` for any other dict."""
    names = ", ".join(map(str, table))
    values = [
        value
        for value in table.values()
        if hasattr(value, "__len__")
        and not isinstance(value, str | Mapping)
        and (columns or not any(isinstance(x, Mapping) for x in value))  # rows of a split
    ]
    if not set(columns) <= set(table) or len(values) < len(table):
        raise UsageError(
            f"the data are a dict of {names or 'nothing'}: give one of its parts, such as "
            "data['train'], a list of rows, or a dict of columns that are lists"
        )
    if len(lengths := {len(x) for x in values}) > 1:
        raise UsageError(
            f"the data are a dict of the columns {names}, which are not of one length: "
            f"{', '.join(map(str, sorted(lengths)))}"
        )
    return [dict(zip(table, row, strict=True)) for row in zip(*values, strict=True)]


def _row(row: Any, number: int) -> dict[str, Any]:
    """A row as a dict; a text or a chat is a prompt. Raises `UsageError`."""
    if isinstance(row, str | list | tuple | np.ndarray):
        row = {"prompt": row}
    names = row.keys() if hasattr(row, "keys") else (None,)  # rows of SQL iterate over values
    if not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"row {number} of the data is {row!r:.80}: give a dict of columns by name, or a prompt "
            "as text or as chat"
        )
    return {  # chats in a table from parquet are arrays
        name: list(value) if name in TEXTS and isinstance(value, tuple | np.ndarray) else value
        for name, value in dict(row).items()
    }


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file. Only newlines end a line: JSON may hold Unicode's other line ends."""
    try:
        lines = read(path, MAX_FILE_BYTES).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else f"{error}: save it as UTF-8"
        raise UsageError(f"the data {path} cannot be read: {what}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        text = line.removeprefix("\ufeff")  # a byte order mark
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of {path} is no JSON object: {line[:40]}")
        rows.append(row)
    return rows


def _problem(row: Mapping[str, Any], column: str) -> str:
    """What is wrong with this column of a row, if anything."""
    if column not in row:
        return f"has no {column!r}; it has: {', '.join(map(str, row)) or 'nothing'}"
    value = row[column]
    if isinstance(value, str):
        if SURROGATE.search(value):
            return f"has a {column!r} with half of a surrogate pair: {value!r:.80}"
        return "" if value or column != "prompt" else "has an empty prompt"
    if not isinstance(value, list) or not value:
        return f"has a {column!r} that is neither text nor a chat: {value!r}"
    for message in value:
        named = isinstance(message, dict) and "role" in message
        if not (named and "content" in with_content(message)):
            return f"has a chat whose messages lack a role or content: {message!r}"
        try:
            text = content(message)
        except ValueError as error:
            return f"has a chat with {error}"
        if SURROGATE.search(text):
            return f"has a chat with half of a surrogate pair: {text!r:.80}"
    return ""


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template, from columns named as in TRL. Raises `ValueError`."""
    if isinstance(row["prompt"], str):  # plain text has no template: the reward's columns
        return {}
    options = dict(_option(row, "chat_template_kwargs", Mapping) or {})
    if taken := options.keys() & TEMPLATE_ARGUMENTS:
        name = min(taken)
        raise ValueError(f"its 'chat_template_kwargs' have {name!r}, which is settled already")
    if tools := _option(row, "tools", list):
        options["tools"] = tools
    return options


def _option(row: Mapping[str, Any], column: str, kind: type) -> Any:
    """A column, maybe written as JSON. None where a row has no value (NaN in tables)."""
    value = option = row.get(column)
    if isinstance(value, np.ndarray):  # of a table from parquet
        option = value.tolist()
    elif isinstance(value, str) and value:
        with contextlib.suppress(ValueError):
            option = json.loads(value)
    if option in (None, "") or (isinstance(option, float) and math.isnan(option)):
        return None
    if not isinstance(option, kind):
        what = "a list" if kind is list else "a dict"
        raise ValueError(f"its {column!r} is {value!r:.80}: give {what}, or leave it out")
    return option
