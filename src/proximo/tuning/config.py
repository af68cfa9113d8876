"""Settings of a search. No torch here: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from proximo.bounds import at_least
from proximo.errors import check_values


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to search."""

    trials: Annotated[int, at_least(1)] = 40
    """Settings to try, the preset and the defaults among them."""
    seeds: Annotated[int, at_least(1)] = 3
    """Training seeds of every trial; its score is the mean over them."""
    episodes: Annotated[int, at_least(1)] = 20
    """Episodes of every evaluation in the search; the final scores are of 100."""
    evaluations: Annotated[int, at_least(1)] = 5
    """Evaluations of every run, about evenly apart, by which trials are pruned."""
    prune: bool = True
    """End trials that are below the median of the earlier ones."""
    check_seeds: Annotated[int, at_least(0)] = 5
    """Fresh training seeds on which the best settings are compared with the preset and the
    defaults at the end; 0: none."""

    def __post_init__(self) -> None:
        check_values("tune", self, [field.name for field in fields(TuneConfig)])
