"""Bounds stand beside a setting: the check, the error and the help come from there."""

import dataclasses
import typing

import pytest

from proximo import PPO, Schedule, UsageError
from proximo.bounds import Bound, above, at_least, at_most, between
from proximo.commands.training import main
from proximo.language.config import PPOConfig, SupervisedRunConfig
from proximo.run.config import ALGORITHMS, Config


@pytest.mark.parametrize(
    ("bound", "text", "within", "outside"),
    [
        (at_least(1), "at least 1", [1, 2, 1e30], [0, -1]),
        (at_least(0, below=1), "in [0, 1)", [0, 0.999], [1, -0.1]),
        (above(0), "above 0", [1e-30, 5], [0, -1]),
        (above(0, at_most=0.99), "in (0, 0.99]", [0.5, 0.99], [0, 1]),
        (between(-10, 2), "in [-10, 2]", [-10, 2], [-10.5, 2.5]),
        (between(0, 2**62), "in [0, 2**62]", [0, 2**62], [2**62 + 1, -1]),
        (at_most(3), "at most 3", [-1e30, 3], [3.5]),
    ],
)
def test_a_bound_is_an_interval_with_a_text(bound, text, within, outside):
    assert str(bound) == text
    assert not any(map(bound.wrong, [*within, None, tuple(within)]))
    assert {bound.wrong(value) for value in outside} == {text}
    assert bound.wrong((within[0], outside[0])) == f"a list, each {text}"


@pytest.mark.parametrize(
    ("bound", "schedule", "wrong"),
    [
        (above(0), "linear:0.2:0", ""),  # progress never reaches the end
        (above(0), "linear:0:0.2", "above 0"),
        (above(0), "linear:0.2:-0.1", "above 0"),
        (above(0), "linear:0.2:-0.1:0.05", ""),
        (between(0, 10), "cosine:1:11", "in [0, 10]"),
        (between(0, 10), "linear:1:nan", "a finite number"),
        (above(0), "linear:1:inf", "a finite number"),
        (between(0, 1), lambda p: 6 * p * (1 - p), "in [0, 1]"),
    ],
)
def test_every_value_of_a_schedule_is_held_to_its_bounds(bound, schedule, wrong):
    assert bound.wrong(Schedule.parse(schedule)) == wrong  # text, or a function of progress


def test_a_schedule_may_be_given_as_its_text():
    assert PPO(clip="linear:0.2:0.1").clip == Schedule("linear", 0.2, 0.1)
    with pytest.raises(UsageError, match=r"clip is 'linear:0.2': .* is no schedule: write"):
        PPO(clip="linear:0.2")
    with pytest.raises(UsageError, match=r"clip is linear:-1\.0:0\.0: it must be above 0"):
        PPO(clip="linear:-1:0")


def sections():
    yield from ALGORITHMS.values()
    for config in (Config, SupervisedRunConfig, PPOConfig):
        hints = typing.get_type_hints(config)
        yield from (hints[field.name] for field in dataclasses.fields(config))


def bounds(cls):
    """Setting -> its bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {n: found for n, m in marks.items() if (found := [x for x in m if type(x) is Bound])}


@pytest.mark.parametrize("section", dict.fromkeys(sections()), ids=lambda cls: cls.__name__)
def test_a_setting_that_is_given_another_default_keeps_its_bounds(section):
    for base in section.__mro__[1:]:
        kept = {name: bounds(section)[name] for name in bounds(base)}
        assert kept == bounds(base)


def test_the_help_gives_bounds_beside_the_default(capsys):
    with pytest.raises(SystemExit):
        main(["ppo", "CartPole-v1", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("(in [0, 1]; default: 0.", "(at least 1; default: ", "(above 0; default: none)"):
        assert text in shown
