"""Reviews of three remarks, each a thing and a word whose worth is known."""

from __future__ import annotations

import random

from task import Row, Task

from proximo.language import ModelConfig, Result, Sampling

WORTH = {"wonderful": 2, "good": 1, "kind": 1, "plain": 0, "long": 0, "dull": -1, "awful": -2}
THINGS = ("film", "room", "meal", "host", "music")
DAYS = ("monday", "tuesday", "friday", "sunday")
PROMPTS = [f"on {day} :" for day in DAYS]


def review(draw: random.Random) -> str:
    """Three remarks."""
    remarks = [f"the {draw.choice(THINGS)} was {draw.choice(list(WORTH))}" for _ in range(3)]
    return f" {' , '.join(remarks)} ."


def worth(text: str) -> int:
    """The hidden score."""
    return sum(WORTH.get(word, 0) for word in text.split())


def texts(seed: int) -> tuple[list[Row], list[str]]:
    draw = random.Random(seed)
    rows = [{"prompt": draw.choice(PROMPTS), "completion": review(draw)} for _ in range(3000)]
    return rows, PROMPTS


def pairs(seed: int, prompts: list[str], base: Result | None) -> list[Row]:
    """Pairs of such reviews."""
    draw, found = random.Random(1000 + seed), list[Row]()
    while len(found) < 2000:
        low, high = sorted((review(draw), review(draw)), key=worth)
        if worth(low) < worth(high):
            found.append({"prompt": draw.choice(prompts), "chosen": high, "rejected": low})
    return found


TASK = Task(
    model=ModelConfig(symbols="words", layers=2, width=64, heads=4, context=64),
    sampling=Sampling(max_tokens=40),
    texts=texts,
    pairs=pairs,
    worth=worth,
    fitting=(400, 200),
    updates=50,
    algorithm={"learning_rate": 2e-4, "minibatch_size": 32},
)
