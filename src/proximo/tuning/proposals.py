"""What Optuna decides: the settings of the next trial, what is pruned, what mattered.

Each is a function of the trials so far, and of a seed: no state of Optuna's outlives a call. A
search that was killed therefore goes on with the trials that it would have made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from proximo.errors import UsageError
from proximo.tuning.space import Coordinate, Space
from proximo.tuning.trials import Curves, Trial

STARTUP = 10
"""Trials drawn at random before the sampler models their scores, as in Optuna."""
UNDECIDED = 1
"""Evaluations of each seed that end no trial."""
COMPARED = 5
"""Complete trials from which one can be pruned, as in Optuna."""
EXPLAINED = 12
"""Trials from which their importance says anything."""
TOP = 0.25
"""Share of the trials that an important setting tells from the others."""


def optuna() -> Any:
    """The package, which is an extra. Raises `UsageError`."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "proximo tune needs Optuna: pip install 'proximo[tune]', or pip install optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(
    space: Space, told: Iterable[Trial], begun: Iterable[Trial], seed: int
) -> dict[str, Any]:
    """Settings of a new trial, by TPE (Bergstra et al. 2011).

    told: trials whose scores are known. begun: those that still run. seed: of this proposal.
    """
    library = optuna()
    sampler = library.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    study = _study(space, told, begun, sampler=sampler)
    point = study.ask(_distributions(space)).params
    return {dimension.name: dimension.value(point) for dimension in space}


def hopeless(curves: Curves, earlier: Sequence[Curves]) -> bool:
    """The trial is below the median of the earlier ones, at the same evaluation and seeds.

    curves: evaluations of this trial, of each seed so far. earlier: those of complete trials.
    """
    library = optuna()
    seeds = len(curves)
    frozen, states = library.trial.create_trial, library.trial.TrialState
    study = library.create_study(
        direction="maximize",
        pruner=library.pruners.MedianPruner(n_startup_trials=COMPARED, n_warmup_steps=UNDECIDED),
    )
    for others in earlier:
        view = _view(others[:seeds])
        study.add_trial(
            frozen(state=states.COMPLETE, value=view[max(view)], intermediate_values=view)
        )
    own = frozen(state=states.RUNNING, intermediate_values=_view(curves))
    return bool(study.pruner.prune(study, own))


def importance(space: Space, trials: Iterable[Trial]) -> dict[str, float]:
    """Share of each setting in what tells the best trials from the others, by PED-ANOVA.

    Watanabe et al. 2023 (arXiv 2304.10255). A pruned trial counts with its last evaluation.
    Nothing where there are too few trials.
    """
    library = optuna()
    scores = [(t, t.score if t.state == "complete" else _last(t)) for t in trials if t.curves]
    ended = [replace(trial, state="complete", score=score) for trial, score in scores]
    study = _study(space, ended, ())
    if len(study.trials) < EXPLAINED:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
        evaluator = library.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
    shares: Mapping[str, float] = library.importance.get_param_importances(
        study, evaluator=evaluator
    )
    return {name: float(share) for name, share in shares.items()}


def _last(trial: Trial) -> float:
    """Mean over the seeds of a trial at its last evaluation."""
    return list(_view(trial.curves).values())[-1]


def _view(curves: Curves) -> dict[int, float]:
    """Mean over the seeds at each evaluation that the last of them has reached."""
    reached = len(curves[-1])
    return {i: float(np.mean([curve[i] for curve in curves])) for i in range(reached)}


def _study(space: Space, told: Iterable[Trial], begun: Iterable[Trial], **parts: Any) -> Any:
    """The trials as Optuna sees them, in memory."""
    library = optuna()
    study = library.create_study(direction="maximize", **parts)
    states = library.trial.TrialState
    known = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.PRUNED}
    for trials, running in ((told, False), (begun, True)):
        for trial in trials:
            point = _point(space, trial.settings)
            if point is None:  # a baseline outside of the space
                continue
            state = states.RUNNING if running else known[trial.state]
            passed = sum(map(len, trial.curves))
            study.add_trial(
                library.trial.create_trial(
                    state=state,
                    value=trial.score if state == states.COMPLETE else None,
                    params=point,
                    distributions=_distributions(space),
                    # The further a pruned trial came, the better it counts; a failed one is last.
                    intermediate_values={passed: _last(trial)}
                    if state == states.PRUNED and trial.state == "pruned"
                    else {},
                )
            )
    return study


def _point(space: Space, settings: Mapping[str, Any]) -> dict[str, float] | None:
    point: dict[str, float] = {}
    for dimension in space:
        place = dimension.place(settings[dimension.name])
        if place is None:
            return None
        point |= place
    return point


def _distributions(space: Space) -> dict[str, Any]:
    return {c.name: _distribution(c) for dimension in space for c in dimension.coordinates}


def _distribution(coordinate: Coordinate) -> Any:
    kinds = optuna().distributions
    low, high = coordinate.low, coordinate.high
    if coordinate.kind == "real":
        return kinds.FloatDistribution(low, high, log=coordinate.log)
    if coordinate.kind == "index":
        return kinds.IntDistribution(int(low), int(high))
    return kinds.CategoricalDistribution(tuple(range(int(high) + 1)))
