"""Statistics over tasks and runs: their definitions, their invariances, their intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proximo.insight.statistics import (
    band,
    half_width,
    improvement,
    interval,
    iqm,
    mean,
    median,
    normalized,
    optimality_gap,
    percentile_interval,
    profile,
    student,
    summary,
)

numbers = st.integers(-1000, 1000).map(lambda n: n / 10)  # with ties
tasks = st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=5)
AGGREGATES = [iqm, mean, median]


def scores(*values):
    return np.array(values, float)


def arrays(nested):
    return [np.array(runs, float) for runs in nested]


def pooled(*values):
    return iqm([scores(*values)])


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (4, 2.7764), (9, 2.2622), (11, 2.2010), (19, 2.0930), (29, 2.0452)],
)
def test_the_quantile_is_that_of_the_tables(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=1e-3)


def test_the_interval_of_the_mean_is_that_of_student():
    # Mean 3, deviation sqrt(2.5), t 2.776 with 4 degrees of freedom.
    assert half_width(scores(1, 2, 3, 4, 5)) == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert half_width(scores(7, 7, 7)) == 0
    assert math.isnan(half_width(scores(7)))


@pytest.mark.parametrize(
    ("values", "middle"),
    [([5], 5), ([1, 2, 6], 3), ([100, 1, 2, 3], 2.5), ([4, 100, 2, -50, 3], 3), (range(8), 3.5)],
)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(values, middle):
    assert pooled(*values) == middle


def test_aggregates_of_two_tasks_by_hand():
    tasks = [scores(0, 1), scores(2, 4, 6)]
    assert iqm(tasks) == pytest.approx((1 + 2 + 4) / 3)  # of 0 1 2 4 6 together
    assert mean(tasks) == pytest.approx((0.5 + 4) / 2)  # of the tasks, not of the runs
    assert median(tasks) == pytest.approx((0.5 + 4) / 2)
    assert optimality_gap(tasks, 3) == pytest.approx(3 - (0.5 + 8 / 3) / 2)
    assert profile(tasks, scores(-1, 0, 1, 5)).tolist() == [1, 0.75, 0.5, pytest.approx(1 / 6)]


def test_a_median_of_tasks_forgets_those_that_a_mean_remembers():
    tasks = [scores(1, 1), scores(2, 2), scores(90, 110)]
    assert median(tasks) == 2
    assert mean(tasks) == pytest.approx(103 / 3)


@given(tasks)
def test_nothing_depends_on_the_order_of_tasks_or_runs(nested):
    here, turned = arrays(nested), arrays([runs[::-1] for runs in nested[::-1]])
    for statistic in (*AGGREGATES, optimality_gap):
        assert statistic(here) == pytest.approx(statistic(turned))
    assert improvement(here, turned[::-1]) == pytest.approx(0.5)


@given(tasks, st.integers(-50, 50), st.integers(1, 20))
def test_aggregates_move_with_the_scores(nested, shift, scale):
    here = arrays(nested)
    moved = [scale * runs + shift for runs in here]
    for statistic in AGGREGATES:
        assert statistic(moved) == pytest.approx(scale * statistic(here) + shift, abs=1e-9)


@given(tasks)
def test_aggregates_lie_among_the_scores_and_the_gap_is_one_of_its_target(nested):
    here = arrays(nested)
    low, high = (float(end(np.concatenate(here))) for end in (np.min, np.max))
    for statistic in AGGREGATES:
        assert low - 1e-9 <= statistic(here) <= high + 1e-9
    # Where no score is beyond the target, the gap is the mean's distance from it.
    assert optimality_gap(here, high) == pytest.approx(high - mean(here))
    assert optimality_gap(here, low) == pytest.approx(0)


@given(tasks)
def test_a_profile_falls_from_all_to_none_and_its_area_is_the_mean(nested):
    here = arrays(nested)
    thresholds = np.linspace(-101, 101, 203)
    shares = profile(here, thresholds)
    assert shares[0] == pytest.approx(1)
    assert shares[-1] == 0
    assert (np.diff(shares) <= 0).all()
    # E[x] = low + the integral of P(x > t).
    assert -101 + shares.sum() == pytest.approx(mean(here), abs=1.1)


@given(tasks, st.randoms(use_true_random=False))
def test_the_probabilities_of_both_directions_are_one_and_no_monotone_scale_changes_them(
    nested, random
):
    here = arrays(nested)
    there = arrays([[run + random.choice([-3, 0, 2]) for run in runs] for runs in nested])
    p = improvement(here, there)
    assert 0 <= p <= 1
    assert improvement(there, here) == pytest.approx(1 - p)
    bent = [[np.arctan(runs / 50) for runs in some] for some in (here, there)]
    assert improvement(*bent) == pytest.approx(p)


def test_the_probability_of_improvement_by_hand():
    assert improvement([scores(3, 4)], [scores(1, 2)]) == 1
    assert improvement([scores(1, 2)], [scores(1, 2)]) == 0.5
    # One task of 5 wins and a tie out of 6 pairs, one of nothing.
    assert improvement([scores(1, 2), scores(0)], [scores(0, 0, 1), scores(9)]) == pytest.approx(
        (5.5 / 6 + 0) / 2
    )


def test_normalised_scores_are_0_and_1_at_the_references():
    assert normalized(scores(20, 260, 500, 740), 20, 500).tolist() == [0, 0.5, 1, 1.5]
    assert normalized(scores(-300, -200), -200, -100).tolist() == [-1, 0]
    # Where all runs of a min-max normalisation are equal, all are at the best one.
    assert normalized(scores(500, 500), 500, 500).tolist() == [1, 1]


# Intervals


def test_an_interval_is_the_same_every_time_and_holds_the_statistic():
    values = [scores(100, 200, 300, 400, 500)]
    low, high = interval(iqm, values)
    assert (low, high) == interval(iqm, values)
    assert 100 <= low < 300 < high <= 500
    # It turns with the scores, and shrinks to nothing with their spread.
    turned = interval(iqm, [values[0] / 100 + 7])
    assert turned == pytest.approx((low / 100 + 7, high / 100 + 7))
    assert interval(iqm, [scores(7, 7, 7)]) == (7, 7)


def test_the_interval_of_two_scores_is_their_range():
    # A quarter of the resamples is twice the one, a quarter twice the other.
    assert interval(iqm, [scores(1, 3)]) == (1, 3)


@pytest.mark.parametrize("few", [[scores(7)], [scores(1, 2, 3), scores(7)]])
def test_there_is_no_interval_of_a_single_run(few):
    assert all(map(math.isnan, interval(iqm, few)))
    lows, _ = interval(lambda x: profile(x, scores(0, 1)), few)
    assert np.isnan(lows).tolist() == [True, True]


def test_resamples_stay_within_their_task():
    # Tasks whose runs agree have nothing to resample, however far apart the tasks are.
    assert interval(mean, [scores(1, 1), scores(900, 900)]) == (450.5, 450.5)


def test_resamples_that_are_drawn_elsewhere_give_the_same_in_blocks():
    runs = scores(1, 5, 2, 8)
    drawn = np.random.default_rng(1).integers(4, size=(60, 4))
    whole = percentile_interval(iqm, [[runs]], [[[drawn]]])
    assert whole == percentile_interval(iqm, [[runs]], [[[drawn[:25]]], [[drawn[25:]]]])
    by_hand = np.percentile([pooled(*runs[row]) for row in drawn], (2.5, 97.5))
    assert whole == pytest.approx(by_hand)


def test_an_interval_covers_what_it_should():
    # Of 5 tasks with 10 runs: the true mean in about 95 of 100 experiments.
    random, hits, count = np.random.default_rng(0), 0, 200
    for _ in range(count):
        tasks = [random.normal(m, 1 + m, 10) for m in range(5)]
        low, high = interval(mean, tasks, resamples=400)
        hits += low <= 2 <= high
    assert 0.88 <= hits / count <= 0.99


def test_a_band_is_the_statistic_and_its_interval_at_every_step():
    curves = [np.random.default_rng(2).normal(size=(700, 5)), np.arange(1400.0).reshape(700, 2)]
    middle, low, high = band(curves)
    for step in (0, 499, 500, 699):
        here = [runs[step] for runs in curves]
        assert middle[step] == pytest.approx(iqm(here))
        assert (low[step], high[step]) == pytest.approx(interval(iqm, here, resamples=2000))
    middle, low, _ = band([np.arange(3.0)[:, None]])
    assert middle.tolist() == [0, 1, 2]
    assert np.isnan(low).all()


def test_a_summary_without_scores_has_no_numbers():
    assert all(map(math.isnan, summary(scores()).values()))
    assert summary(scores(1, 3)) == {
        "mean": 2,
        "half_width": pytest.approx(12.706),
        "iqm": 2,
        "iqm_low": 1,
        "iqm_high": 3,
    }
