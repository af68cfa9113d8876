"""Schedules: their values, their text form, and what is no schedule."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proximo.functional.schedules import Schedule, as_schedule

numbers = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e6, 1e6)
progress = st.floats(0, 1)


def schedules(values: st.SearchStrategy[float]) -> st.SearchStrategy[Schedule]:
    """Every kind, with and without a floor."""
    moving = st.sampled_from(["linear", "cosine"])
    return st.one_of(
        values.map(lambda a: Schedule("constant", a, a)),
        st.builds(Schedule, moving, values, values),
        st.builds(Schedule, moving, values, values, values),
    )


# Values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.3", (0.3, 0.3, 0.3, 0.3)),
        ("linear:1:0", (1, 0.75, 0.5, 0)),
        ("linear:1:3", (1, 1.5, 2, 3)),
        ("linear:1:0:0.6", (1, 0.75, 0.6, 0.6)),
        ("linear:0:1:0.6", (0.6, 0.6, 0.6, 1)),
        ("linear:1:0:-5", (1, 0.75, 0.5, 0)),
        ("cosine:1:0", (1, (2 + math.sqrt(2)) / 4, 0.5, 0)),
        ("cosine:1:3", (1, 1 + (2 - math.sqrt(2)) / 2, 2, 3)),
        ("cosine:1:0:0.6", (1, (2 + math.sqrt(2)) / 4, 0.6, 0.6)),
    ],
)
def test_values_at_quarters_by_hand(text: str, values: tuple[float, ...]) -> None:
    schedule = Schedule.parse(text)
    assert [schedule(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx(values, abs=1e-12)


@given(moderate, moderate, progress)
def test_values_by_their_equations(a: float, b: float, p: float) -> None:
    close = {"rel": 1e-9, "abs": 1e-9}
    linear, cosine = Schedule("linear", a, b), Schedule("cosine", a, b)
    assert linear(p) == pytest.approx(np.interp(p, [0, 1], [a, b]), **close)
    assert cosine(p) == pytest.approx(b + (a - b) * (1 + math.cos(math.pi * p)) / 2, **close)
    assert Schedule("constant", a, a)(p) == a


@given(schedules(moderate), progress)
def test_values_stay_over_the_floor_and_within_the_bounds(schedule: Schedule, p: float) -> None:
    rounding = 1e-9 * max(abs(schedule.lowest), abs(schedule.highest))
    assert schedule(p) >= schedule.floor
    assert schedule.lowest - rounding <= schedule(p) <= schedule.highest + rounding


@pytest.mark.parametrize(
    ("text", "lowest", "highest"),
    [("0.3", 0.3, 0.3), ("linear:1:0:0.2", 0.2, 1), ("cosine:0:1", 0, 1), ("linear:0:1:9", 9, 9)],
)
def test_bounds_by_hand(text: str, lowest: float, highest: float) -> None:
    schedule = Schedule.parse(text)
    assert (schedule.lowest, schedule.highest) == (lowest, highest)


# Text


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("3e-4", Schedule("constant", 3e-4, 3e-4)),
        ("linear:3e-4:0", Schedule("linear", 3e-4, 0)),
        ("cosine:-1:2.5", Schedule("cosine", -1, 2.5)),
        ("linear:1:0:0.1", Schedule("linear", 1, 0, 0.1)),
    ],
)
def test_text_by_hand(text: str, schedule: Schedule) -> None:
    assert Schedule.parse(text) == schedule


@given(schedules(numbers))
def test_text_round_trip(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "1e",
        "linear",
        "linear:1",
        "linear:1:",
        "linear:a:b",
        "linear:1:2:3:4",
        "step:1:0",
        "Linear:1:0",
        "0.1:0.2",
        ":1:0",
    ],
)
def test_bad_text_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no schedule") as error:
        Schedule.parse(text)
    assert repr(text) in str(error.value)
    assert "linear:START:END" in str(error.value)


# As settings


@pytest.mark.parametrize("value", [1, 1.0, "1", Schedule("constant", 1, 1)])
def test_as_schedule_takes_what_a_setting_may_be(value: float | str | Schedule) -> None:
    assert as_schedule(value) == Schedule("constant", 1.0, 1.0)


def test_as_schedule_reads_text() -> None:
    assert as_schedule("cosine:1:0") == Schedule("cosine", 1, 0)
    with pytest.raises(ValueError, match="'soon' is no schedule"):
        as_schedule("soon")


def test_schedules_are_values() -> None:
    schedule = Schedule("linear", 1, 0)
    assert {schedule, Schedule("linear", 1, 0)} == {schedule}
    with pytest.raises(FrozenInstanceError):
        schedule.start = 2.0
