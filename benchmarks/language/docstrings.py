"""The sentences in the docstrings of Python's own library, and a lexicon of encouraging words."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from pathlib import Path

from task import Row, Task

from proximo import Schedule
from proximo.language import ModelConfig, Result, Sampling

WORDS = 1500
"""The most common words; a sentence with any other is left out."""
PROMPTS = 64
"""The most common pairs of words at the beginning of a sentence."""
ENCOURAGING = set(
    """can may allows allow useful new true returns returned supported available optional any all
    also first""".split()  # noqa: SIM905 a list of words
)
FORBIDDING = set(
    """not no none error errors exception raise raised raises must cannot if false invalid only
    empty without""".split()  # noqa: SIM905
)


def worth(text: str) -> int:
    """The hidden score: encouraging words less forbidding ones."""
    words = re.findall(r"[a-z]+", text)
    return sum(word in ENCOURAGING for word in words) - sum(word in FORBIDDING for word in words)


def sentences() -> list[str]:
    """Plain sentences of 5 to 16 words, in lower case, each once."""
    library, found = Path(sysconfig.get_path("stdlib")), {}
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(path.relative_to(library).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                continue
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                for sentence in re.split(r"(?<=[.])\s+", " ".join(paragraph.split())):
                    if re.fullmatch(r"[A-Z][a-zA-Z ,'-]+\.", sentence):
                        found[sentence.lower()] = len(sentence.split())
    count = Counter(word for sentence in found for word in re.findall(r"\w+", sentence))
    known = {word for word, _ in count.most_common(WORDS)}
    return [
        sentence
        for sentence, length in found.items()
        if 5 <= length <= 16 and known.issuperset(re.findall(r"\w+", sentence))
    ]


def texts(seed: int) -> tuple[list[Row], list[str]]:
    parts = [re.fullmatch(r"(\w+\W+\w+)(.*)", sentence) for sentence in sentences()]
    rows = [{"prompt": part[1], "completion": part[2]} for part in parts if part]
    common = Counter(row["prompt"] for row in rows).most_common(PROMPTS)
    return rows, [prompt for prompt, _ in common]


def pairs(seed: int, prompts: list[str], base: Result | None) -> list[Row]:
    """Of two completions that the model writes, the one with the higher score is preferred."""
    assert base is not None
    asked = prompts * 64
    both = (base.generate(asked, SAMPLING, seed=2 * seed + half) for half in (0, 1))
    return [
        {"prompt": prompt, "chosen": max(pair, key=worth), "rejected": min(pair, key=worth)}
        for prompt, *pair in zip(asked, *both, strict=True)
        if worth(pair[0]) != worth(pair[1])
    ]


SAMPLING = Sampling(max_tokens=32)
TASK = Task(
    model=ModelConfig(symbols="words", layers=2, width=128, heads=4, context=64),
    sampling=SAMPLING,
    texts=texts,
    pairs=pairs,
    worth=worth,
    fitting=(800, 400),
    updates=60,
    algorithm={
        "learning_rate": Schedule.parse("linear:5e-4:0"),
        "minibatch_size": 32,
        "value_loss": "mse",
        "value_coef": 0.5,
    },
)
