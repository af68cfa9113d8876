"""What Optuna decides is a function of the trials: again the same, and no worse than it should."""

import numpy as np
import pytest

pytest.importorskip("optuna", reason="Optuna is an extra")

from proximo.tuning.proposals import hopeless, importance, propose
from proximo.tuning.space import Dimension
from proximo.tuning.trials import Trial

RATE = Dimension(name="rate", low=1e-5, high=1e-1, log=True)
SIZE = Dimension(name="size", values=(32, 64, 128))
KIND = Dimension(name="kind", values=("tanh", "relu"))
SPACE = (RATE, SIZE, KIND)


def trial(number, state="complete", **settings):
    """One whose score is best at a rate of 1e-3, whatever else it has."""
    settings = {"rate": 1e-3, "size": 64, "kind": "tanh", **settings}
    score = -((np.log10(settings["rate"]) + 3) ** 2)
    if state == "pruned":
        return Trial(number=number, origin="", settings=settings, state=state, curves=((score,),))
    ended = {"score": score, "curves": ((score,),)} if state == "complete" else {}
    return Trial(number=number, origin="", settings=settings, state=state, **ended)


def drawn(count):
    generator = np.random.default_rng(0)
    return [
        trial(
            number,
            rate=float(10 ** generator.uniform(-5, -1)),
            size=int(generator.choice([32, 64, 128])),
            kind=str(generator.choice(["tanh", "relu"])),
        )
        for number in range(count)
    ]


def test_the_same_trials_and_seed_give_the_same_proposal():
    told, begun = drawn(20), [trial(20, "begun")]
    first = propose(SPACE, told, begun, seed=5)
    assert propose(SPACE, told, begun, seed=5) == first
    assert propose(SPACE, told, begun, seed=6) != first
    assert propose(SPACE, told[:-1], begun, seed=5) != first


def test_proposals_gather_where_scores_are_high():
    told = drawn(30)
    rates = [propose(SPACE, told, [], seed=seed)["rate"] for seed in range(20)]
    assert np.median(np.abs(np.log10(rates) + 3)) < 0.5  # at random it is 1


def test_pruned_and_failed_trials_count_as_worse():
    bad = [trial(100 + i, state, rate=1e-3) for i, state in enumerate(["pruned", "failed"] * 8)]
    told = [*drawn(12), *bad]
    rates = [propose(SPACE, told, [], seed=seed)["rate"] for seed in range(10)]
    assert len(set(rates)) == 10
    assert all(RATE.low <= rate <= RATE.high for rate in rates)


def test_a_baseline_outside_of_the_space_is_not_told():
    odd = trial(0, size=99)
    assert propose(SPACE, [odd], [], seed=1) == propose(SPACE, [], [], seed=1)


def test_the_setting_that_matters_is_the_important_one():
    shares = importance(SPACE, drawn(40))
    assert next(iter(shares)) == "rate"
    assert shares["rate"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(SPACE, drawn(5)) == {}


EARLIER = [[(1.0, 2.0, 3.0 + i), (1.0, 2.0, 3.0 + i)] for i in range(5)]
"""Two seeds of five complete trials, three evaluations each."""


@pytest.mark.parametrize(
    ("curves", "pruned"),
    [
        ([(0.0,)], False),  # the first evaluation decides nothing
        ([(0.0, 1.0)], True),
        ([(0.0, 2.5)], False),
        ([(1.0, 2.0, 4.0)], True),
        ([(1.0, 2.0, 6.0)], False),
        ([(1.0, 2.0, 6.0), (0.0, 1.0)], True),  # the mean over both seeds is below 2
        ([(1.0, 3.0, 6.0), (0.0, 1.5)], False),
    ],
)
def test_a_trial_below_the_median_is_pruned(curves, pruned):
    assert hopeless(curves, EARLIER) is pruned
    assert not hopeless(curves, EARLIER[:4])  # too few to compare with
