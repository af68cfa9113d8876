"""docs/language.md keeps its word: its example runs, and every reading and setting is explained."""

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    PTXConfig,
    Sampling,
    SupervisedConfig,
    TokenPPO,
    TrainingConfig,
    fit_reward,
    ppo,
    sft,
)
from proximo.run.readings import READINGS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "language.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_runs(capsys):
    exec(compile(EXAMPLES[0], "language.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_example_of_an_env_runs(capsys):
    quick = EXAMPLES[1].replace("updates=100", "updates=2")
    exec(compile(quick, "language.md", "exec"), {"__name__": "__main__"})
    first, last = map(float, capsys.readouterr().out.split())
    assert 0 < first < 0.5
    assert 0 < last < 0.5


def test_every_reading_is_explained(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "chosen": "a", "rejected": "b"}\n')
    tuned = ppo(
        "tiny",
        ["a", "b"],
        lambda completions: [1.0] * len(completions),
        updates=1,
        algorithm=dataclasses.replace(TOKEN_PPO, epochs=1),
        kl=KLConfig(where="loss"),
        ptx=PTXConfig(coef=1.0, data=str(file)),
        run=TrainingConfig(eval_every=1, held_out=0.5),
        sampling=Sampling(max_tokens=2),
    )
    example = {}
    exec(compile(EXAMPLES[1], "language.md", "exec"), example)  # its env
    talked = ppo("tiny", env=example["Remember"], updates=1, sampling=Sampling(max_tokens=2))
    fitted = [stage("tiny", file, updates=1) for stage in (sft, fit_reward)]
    for result in (tuned, talked, *fitted):
        assert result.rows[0].keys() <= READINGS.keys()  # which docs/metrics.md has


@pytest.mark.parametrize(
    "section",
    [KLConfig, Sampling, PTXConfig, ModelConfig, SupervisedConfig, TokenPPO, TrainingConfig],
)
def test_every_setting_says_what_it_does(section):
    import inspect

    source = inspect.getsource(section)
    for name in section.__annotations__:  # those of its own
        assert re.search(rf'    {name}: [^\n]*\n    """', source), name
