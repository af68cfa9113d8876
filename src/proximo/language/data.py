"""Examples as people keep them: JSONL or rows, with a prompt and what belongs to it, to tokens."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proximo.disk import read, warn
from proximo.errors import UsageError, explain

if TYPE_CHECKING:
    from proximo.language.model import Tokenizer

LONGEST_FILE = 2**40
"""Bytes of a file of data, which may be named by a run of somebody else."""
Source = str | Path | Iterable[Mapping[str, Any] | str | Sequence[Mapping[str, Any]]]
"""A JSONL file, rows (of a list, of `datasets`, of a table of pandas), or plain texts or chats,
which count as prompts."""

TEXTS = ("prompt", "completion", "chosen", "rejected")
"""The columns that are text or a chat."""


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
            rows = [_row(row, number) for number, row in enumerate(_each(source, columns), 1)]
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

    def __getitem__(self, index: slice) -> Examples:
        return Examples(self.name, self.rows[index])

    @property
    def columns(self) -> list[str]:
        """The names that every row has."""
        names = set.intersection(*(set(row) for row in self.rows))
        return sorted(names)

    @property
    def digest(self) -> str:
        """SHA-256 of all rows: a resumed run must see the same data."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def texts(self) -> list[str]:
        """Every text in them, for the symbols of a tiny model."""
        found: list[str] = []
        for row in self.rows:
            for column in TEXTS:
                if _problem(row, column):  # what a stage does not read may be anything
                    continue
                value = row[column]
                found += [value] if isinstance(value, str) else map(content, value)
        return found

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of the prompts. Raises `UsageError` for one without any."""
        found = self._tokens(lambda row: tokenizer.prompt(row["prompt"], _options(row)))
        for number, ids in enumerate(found, 1):
            if not ids:
                raise UsageError(f"row {number} of {self.name} has a prompt without tokens")
        return found

    def answers(self, tokenizer: Tokenizer, column: str) -> list[list[int]]:
        """Token ids of what follows the prompts, with the end of sequence. Raises `UsageError`."""

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
        """Of each row. Raises `UsageError` for one that cannot be written as tokens."""
        found = []
        for number, row in enumerate(self.rows, 1):
            try:
                found.append(tokenize(row))
            except UsageError:
                raise
            except Exception as error:  # a chat template is a program: it raises what it likes
                why = str(error) if isinstance(error, ValueError) else explain(error)
                raise UsageError(f"row {number} of {self.name}: {why}") from error
        return found

    def check_lengths(
        self,
        longest: int,
        limit: Limit,
        prompts: list[list[int]],
        *answers: list[list[int]],
    ) -> tuple[Examples, list[list[list[int]]]]:
        """Refuse rows whose tokens, with `longest` to come, pass the limit, or leave them out.

        Returns the rows that are left, and the tokens of each part of theirs. Raises `UsageError`.
        """
        parts = [prompts, *answers]
        if limit.tokens is None:
            return self, parts
        kept = []
        for i, prompt in enumerate(prompts):
            total = len(prompt) + max((len(answer[i]) for answer in answers), default=0)
            if total + longest <= limit.tokens:
                kept.append(i)
            elif not limit.drop:
                more = f" and {longest} to be drawn" if longest else ""
                lower = ", or lower sampling.max_tokens" if longest else ""
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


class Limit(NamedTuple):
    """How long a sequence may be, and what is done with a longer one."""

    context: int | None  # what the model reads
    own: int = 0  # `TrainingConfig.max_length`
    drop: bool = False
    remedy: str = ""

    @property
    def tokens(self) -> int | None:
        found = [x for x in (self.context, self.own) if x]
        return min(found, default=None)

    def __str__(self) -> str:
        if self.own and self.tokens == self.own:
            return f"run.max_length is {self.own}"
        return f"the model reads {self.context} at most"


def _each(source: Any, columns: Sequence[str]) -> Iterable[Any]:
    """The rows of a table or of whatever gives them one by one. Raises `UsageError`."""
    found: Iterable[Any] = source
    if hasattr(source, "columns"):  # a table of pandas, polars or arrow gives columns one by one
        found = next(
            (getattr(source, name)(*how) for name, *how in TABLES if hasattr(source, name)), source
        )
    elif isinstance(source, Mapping):
        found = _columns(source, columns)
    elif isinstance(source, io.IOBase):
        raise UsageError("the data are an open file: give its path")
    elif isinstance(source, set | frozenset):
        raise UsageError("the data are a set, whose order is another one in each run: give a list")
    elif isinstance(source, bytes) or not (
        hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        raise UsageError(
            f"the data are {source!r:.80}: give a JSONL file, rows, or texts as prompts"
        )
    return found


TABLES = (("to_dicts",), ("to_pylist",), ("to_dict", "records"))
"""How polars, arrow and pandas give the rows of a table."""


def _columns(table: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a dict of columns. Raises `UsageError` for any other dict."""
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
    """A row; a text or a chat is a prompt. Raises `UsageError`."""
    if isinstance(row, str | list | tuple | np.ndarray):
        row = {"prompt": row}
    names = row.keys() if hasattr(row, "keys") else (None,)  # rows of SQL iterate over values
    if not all(isinstance(name, str) for name in names):
        raise UsageError(
            f"row {number} of the data is {row!r:.80}: give a dict of columns by name, or a prompt "
            "as text or as chat"
        )
    return {  # chats of a table from parquet are arrays
        name: list(value) if name in TEXTS and isinstance(value, tuple | np.ndarray) else value
        for name, value in dict(row).items()
    }


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines end by a newline alone: JSON may hold whatever else Unicode counts as one."""
    try:
        lines = read(path, LONGEST_FILE).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else f"{error}: save it as UTF-8"
        raise UsageError(f"the data {path} cannot be read: {what}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        text = line.removeprefix("\ufeff")  # the mark that some programs begin a file by
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
    if column not in row:
        return f"has no {column!r}; it has: {', '.join(map(str, row)) or 'nothing'}"
    value = row[column]
    if isinstance(value, str):
        if not _is_text(value):
            return (
                f"has a {column!r} with half of a surrogate pair, which is no text: {value!r:.80}"
            )
        return "" if value or column != "prompt" else "has an empty prompt"
    if not isinstance(value, list) or not value:
        return f"has a {column!r} that is neither text nor a chat: {value!r}"
    for message in value:
        if not (isinstance(message, dict) and "role" in message and "content" in _filled(message)):
            return f"has a chat whose messages lack a role or content: {message!r}"
        try:
            said = content(message)
        except ValueError as error:
            return f"has a chat with {error}"
        if not _is_text(said):
            return f"has a chat with half of a surrogate pair, which is no text: {said!r:.80}"
    return ""


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode()) or True
    except UnicodeEncodeError:
        return False


def _filled(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call of tools may come without words."""
    return {"content": "", **message} if message.get("tool_calls") else message


def content(message: Mapping[str, Any]) -> str:
    """What a message says, which may be in parts. Raises `ValueError` for what is no text."""
    found = _filled(message)["content"]
    if found is None and message.get("tool_calls"):
        return ""
    texts: list[str] = []
    for part in found if isinstance(found, list) else [found]:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ValueError(
                f"a message whose content is neither text nor parts of text: {found!r:.80}"
            )
        texts.append(text)
    return "".join(texts)


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a chat template is given besides the messages: columns that go by TRL's names.

    Raises `ValueError` for what they cannot be.
    """
    if isinstance(row["prompt"], str):  # no template writes it: such columns are the reward's
        return {}
    found = dict(_option(row, "chat_template_kwargs", Mapping) or {})
    if own := found.keys() & OWN_OPTIONS:
        raise ValueError(f"its 'chat_template_kwargs' have {min(own)!r}, which is settled already")
    if tools := _option(row, "tools", list):
        found["tools"] = tools
    return found


OWN_OPTIONS = {"tokenize", "add_generation_prompt", "continue_final_message", "tools"}
"""What a chat template is told by us."""


def _option(row: Mapping[str, Any], column: str, kind: type) -> Any:
    """May be written as JSON. None where a row has nothing, for which tables have NaN."""
    value = found = row.get(column)
    if isinstance(value, np.ndarray):  # of a table from parquet
        found = value.tolist()
    elif isinstance(value, str) and value:
        with contextlib.suppress(ValueError):
            found = json.loads(value)
    if found in (None, "") or (isinstance(found, float) and math.isnan(found)):
        return None
    if not isinstance(found, kind):
        what = "a list" if kind is list else "a dict"
        raise ValueError(f"its {column!r} is {value!r:.80}: give {what}, or leave it out")
    return found


class Sequences(NamedTuple):
    """Prompts, padded on the left, and completions, padded on the right.

    What is padding is known by the lengths, never by a token's number: the padding token may be
    the end of sequence, or any other. In a conversation with an env the completion holds several
    replies, and between them what the env said, which is read but is no response.
    """

    tokens: Tensor  # [N, P + R] int64
    mask: Tensor  # [N, P + R] bool: False for padding
    response: Tensor  # [N, R] bool: the model's own tokens

    @staticmethod
    def join(
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        own: Sequence[Sequence[bool]] | None = None,
    ) -> Sequences:
        """Ids to tensors. own: which tokens of each completion are the model's; None: all."""
        before = max(map(len, prompts))
        after = max(map(len, completions))
        tokens = np.zeros((len(prompts), before + after), np.int64)
        mask = np.zeros(tokens.shape, bool)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            span = slice(before - len(prompt), before + len(completion))
            tokens[row, span] = [*prompt, *completion]
            mask[row, span] = True
        response = mask[:, before:]
        if own is not None:
            response = np.array([[*row, *[False] * (after - len(row))] for row in own])
        moved = (torch.from_numpy(x).to(device) for x in (tokens, mask, response))
        return Sequences(*moved)

    @property
    def positions(self) -> Tensor:
        """[N, P + R] int64: each token's place in its own sequence, whatever the padding."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    @property
    def lengths(self) -> Tensor:
        """[N] int64: the model's own tokens in each."""
        return self.response.sum(-1)

    def select(self, index: Tensor) -> Sequences:
        """These sequences, without the columns that are padding in all of them."""
        mask, response = self.mask[index], self.response[index]
        used = mask.any(0).nonzero().squeeze(-1)
        begin, end = int(used[0]), int(used[-1]) + 1
        prompt = mask.shape[-1] - response.shape[-1]
        # At least one column of completions stays, so that shapes have no 0 in them.
        end = max(end, prompt + 1)
        cut = slice(begin, end)
        return Sequences(self.tokens[index][:, cut], mask[:, cut], response[:, : end - prompt])


ROW = 16
"""Short sequences stand one behind the other in rows of this many tokens."""


class Packed(NamedTuple):
    """Sequences one behind the other in rows, so that little of what is read is padding."""

    tokens: Tensor  # [M, W] int64
    positions: Tensor  # [M, W] int64: each token's place in its own sequence
    owner: Tensor  # [M, W] int64: the sequence whose token it is, or -1 for padding
    wanted: Tensor  # [B] int64: where in the M x W tokens those stand that were asked for

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[M, 1, W, W], added to attention's scores: -inf but for one's own tokens up to oneself.

        As numbers, because every layer makes its own copy of truth values, and keeps it.
        """
        own = (self.owner.unsqueeze(-1) == self.owner.unsqueeze(-2)).tril().unsqueeze(1)
        return torch.zeros_like(own, dtype=dtype).masked_fill_(~own, -torch.inf)


def pack(sequences: Sequences, wanted: Tensor, *, share: bool) -> Packed:
    """Put into rows what must be read to know what follows the tokens that are `wanted`.

    wanted: [N, P + R] bool, answered in order of sequence, then of time; share: whether sequences
    may share a row. What stands behind the last of them is left out.
    """
    later = wanted.flip(-1).cumsum(-1).flip(-1) > 0
    needed = sequences.mask & later
    lengths = needed.sum(-1).tolist()
    width = max(lengths)
    rows, columns = list(range(len(lengths))), [0] * len(lengths)
    if share:
        width = max(width, ROW)
        rows, columns = _first_fit(lengths, width)
    begin = torch.tensor([row * width + column for row, column in zip(rows, columns, strict=True)])
    place = begin.to(needed.device).unsqueeze(-1) + sequences.positions
    into = place[needed]
    positions = torch.zeros(max(rows) + 1, width, dtype=torch.int64, device=needed.device)
    tokens, owner = positions.clone(), positions - 1
    positions.view(-1)[into] = sequences.positions[needed]
    tokens.view(-1)[into] = sequences.tokens[needed]
    owner.view(-1)[into] = needed.nonzero()[:, 0]
    return Packed(tokens, positions, owner, place[wanted])


def _first_fit(lengths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Row and column of each: the longest first, into the first row that has room for it."""
    rows, columns = [0] * len(lengths), [0] * len(lengths)
    used: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, full in enumerate(used) if full + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        rows[i], columns[i] = row, used[row]
        used[row] += lengths[i]
    return rows, columns


def reply_ends(response: Tensor) -> Tensor:
    """[N, R] bool: the last token of each reply, behind which something else follows or nothing."""
    ends = response.clone()
    ends[:, :-1] &= ~response[:, 1:]
    return ends


class Order:
    """Which examples the k-th draw takes: every one once in each epoch, in a new random order.

    A pure function of the seed and k, so that nothing of it need be saved.
    """

    def __init__(self, count: int, seed: int, stream: int) -> None:
        self._count, self._seed, self._stream = count, seed, stream

    def draw(self, first: int, number: int) -> list[int]:
        """The examples of draws first, first + 1, ..."""
        found: list[int] = []
        while len(found) < number:
            epoch, place = divmod(first + len(found), self._count)
            order = np.random.default_rng([self._seed, self._stream, epoch])
            found += order.permutation(self._count)[place : place + number - len(found)].tolist()
        return found


def split(count: int, share: float, seed: int, setting: str) -> tuple[list[int], list[int]]:
    """The examples to train on and this share of them that is held out, both in random order.

    Raises `UsageError`, with the name of the setting, where the share is of none.
    """
    kept = int(count * share)
    if share and not kept:
        raise UsageError(
            f"{setting} is {share} of {count} examples, which is none: give more of them, or a "
            "larger share"
        )
    mixed = Order(count, seed, 0).draw(0, count)
    return mixed[: count - kept], mixed[count - kept :]


def rows_of(lengths: Tensor, which: Tensor) -> Tensor:
    """The rows of some sequences where all tokens stand one behind the other. [b].

    lengths: [N] of all sequences; which: [n], in the order in which their rows are wanted.
    """
    ends, own = lengths.cumsum(0), lengths[which]
    # Where each begins, less where it is put: what to add to 0, 1, 2, ...
    shift = (ends - lengths)[which] - (own.cumsum(0) - own)
    return torch.arange(int(own.sum()), device=ends.device) + shift.repeat_interleave(own)


def by_length(sequences: Sequences, which: Tensor, limit: int) -> list[Tensor]:
    """Split some of them into parts of at most `limit`, of like lengths. which: [n].

    The longest of a part has no more than twice the tokens of its shortest, or a whole row's: then
    a long one neither pads the others nor has them in rows as wide as itself.
    """
    lengths, order = sequences.mask[which].sum(-1).cpu().sort(stable=True)
    begins, longest = [0], 0
    for i, length in enumerate(lengths.tolist()):
        if i - begins[-1] == limit or length > longest > 0:
            begins.append(i)
            longest = 0
        longest = longest or max(ROW, 2 * length)
    return list(torch.tensor_split(which[order.to(which.device)], begins[1:]))


def per_token(
    sequences: Sequences, limit: int, compute: Callable[[Sequences], Sequence[Tensor]]
) -> list[Tensor]:
    """`compute` of all sequences, some at a time, gives tensors [b]; returns them as [B]."""
    parts = by_length(sequences, torch.arange(len(sequences.tokens)), limit)
    rows = torch.cat([rows_of(sequences.lengths.cpu(), part) for part in parts])
    found = zip(*(compute(sequences.select(part)) for part in parts), strict=True)
    back = rows.argsort().to(sequences.tokens.device)
    return [torch.cat(pieces)[back] for pieces in found]
