"""Statistics beside `rliable`, the library of Agarwal et al. 2021 (arXiv 2108.13264).

Its results on the scores below are recorded in rliable.json, with the versions that gave them; they
are compared in every run of the tests. Where rliable is installed, it is asked again:

    pip install rliable "pandas<3"
    python tests/insight/test_rliable.py > tests/insight/rliable.json    # records anew
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from proximo.insight.statistics import (
    improvement,
    interval,
    iqm,
    mean,
    median,
    optimality_gap,
    percentile_interval,
    profile,
)

RECORD = Path(__file__).with_name("rliable.json")
STATISTICS = {
    "aggregate_iqm": iqm,
    "aggregate_mean": mean,
    "aggregate_median": median,
    "aggregate_optimality_gap": optimality_gap,
}
THRESHOLDS = np.linspace(0, 1.5, 16)
SEED, DRAWN = 3, 300
"""Of the resamples that both are given."""


def suite(runs, shift):
    """Scores [runs, 6 tasks] around 0.5, with ties, the same for ever."""
    run, task = np.meshgrid(np.arange(runs), np.arange(6), indexing="ij")
    return ((run * 37 + task * 101 + run * task * 53) % 29) / 29 + 0.1 * task + shift


X, Y = suite(10, 0.1), suite(7, 0.0)


def tasks(scores):
    """[runs, tasks] as we take them."""
    return list(scores.T)


def draws(random, scores):
    """Indices of the runs as rliable draws them, one resample after the other: [resamples, ...]."""
    return np.stack([random.choice(len(scores), scores.shape) for _ in range(DRAWN)])


def asked(reps=20_000):
    """Everything by rliable. reps: resamples of its intervals with a generator of its own."""
    from rliable import library, metrics

    found = {"aggregates": {}, "intervals": {}, "same_draws": {}}
    for name in STATISTICS:
        function = getattr(metrics, name)
        found["aggregates"][name] = float(function(X))

        def one(scores, function=function):
            return np.array([function(scores)])

        _, ends = library.get_interval_estimates({"x": X}, one, reps=reps)
        found["intervals"][name] = ends["x"][:, 0].tolist()
        np.random.seed(SEED)  # noqa: NPY002 rliable draws from it
        _, ends = library.get_interval_estimates({"x": X}, one, reps=DRAWN)
        found["same_draws"][name] = ends["x"][:, 0].tolist()
    np.random.seed(SEED)  # noqa: NPY002 rliable draws from it
    shares, ends = library.create_performance_profile({"x": X}, THRESHOLDS, reps=DRAWN)
    found["profile"], found["profile_ends"] = shares["x"].tolist(), ends["x"].tolist()

    def better(x, y):
        return np.array([metrics.probability_of_improvement(x, y)])

    pair = {"x,y": [X, Y]}
    p, ends = library.get_interval_estimates(pair, better, reps=max(1, reps // 10))
    found["improvement"] = float(p["x,y"][0])
    found["improvement_interval"] = ends["x,y"][:, 0].tolist()
    return found


@pytest.fixture(scope="module", params=["recorded", "live"])
def theirs(request):
    if request.param == "recorded":
        return json.loads(RECORD.read_text("utf-8"))
    pytest.importorskip("rliable", reason="for developers: see the top of this file")
    return asked(reps=2_000)


pytestmark = pytest.mark.filterwarnings("ignore")  # of its dependencies


@pytest.mark.parametrize("name", STATISTICS)
def test_aggregates_are_the_same(theirs, name):
    assert float(STATISTICS[name](tasks(X))) == pytest.approx(theirs["aggregates"][name], rel=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_are_the_same_with_the_same_resamples(theirs, name):
    drawn = draws(np.random.RandomState(SEED), X)
    block = [[drawn[:, :, task] for task in range(X.shape[1])]]
    ends = percentile_interval(STATISTICS[name], [tasks(X)], [block])
    assert [float(end) for end in ends] == pytest.approx(theirs["same_draws"][name], rel=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_are_the_same_within_the_error_of_the_bootstrap(theirs, name):
    ends, other = np.array(interval(STATISTICS[name], tasks(X))), theirs["intervals"][name]
    # An end of 2,000 resamples has a standard error of about 3% of the interval's half.
    assert ends == pytest.approx(other, abs=0.08 * (other[1] - other[0]))


def test_profiles_and_their_bands_are_the_same(theirs):
    shares = profile(tasks(X), THRESHOLDS)
    assert shares.tolist() == pytest.approx(theirs["profile"], rel=1e-12)
    drawn = draws(np.random.RandomState(SEED), X)
    block = [[drawn[:, :, task] for task in range(X.shape[1])]]
    ends = percentile_interval(lambda x: profile(x, THRESHOLDS), [tasks(X)], [block])
    assert np.array(ends) == pytest.approx(np.array(theirs["profile_ends"]), rel=1e-12, abs=1e-12)


def test_the_probability_of_improvement_is_the_same(theirs):
    here = tasks(X), tasks(Y)
    assert float(improvement(*here)) == pytest.approx(theirs["improvement"], rel=1e-12)
    ends, other = np.array(interval(improvement, *here)), theirs["improvement_interval"]
    assert ends == pytest.approx(other, abs=0.12 * (other[1] - other[0]))


if __name__ == "__main__":
    from importlib.metadata import version

    names = ("rliable", "arch", "scipy", "numpy")
    record = {"versions": {name: version(name) for name in names}, **asked()}
    json.dump(record, sys.stdout, indent=1)
    print()
