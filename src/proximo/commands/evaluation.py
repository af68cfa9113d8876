"""`proximo eval`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial

from proximo.commands.arguments import parse, show
from proximo.commands.stored import OfEpisodes


@dataclass(frozen=True, kw_only=True)
class Eval(OfEpisodes):
    """Play seeded episodes with a trained policy and print its scores.

    Episode i starts from seed S + i, where S is --seed: the same command gives the same scores.
    """

    episodes: int = 100  # Number of episodes.
    json: bool = False  # Print one JSON object.


def main(arguments: list[str]) -> int:
    command = parse(Eval, "eval", arguments)

    import torch

    from proximo.commands.waiting import Patience
    from proximo.evaluation import evaluate_policy, unwatched
    from proximo.run.choices import choose_threads

    watched, patience = sys.stderr is not None and sys.stderr.isatty(), Patience()
    with command.opened("eval", arguments, "scored") as (agent, env, config):
        # The threads of training may have been those of the native engine.
        threads = choose_threads(0, "torch", agent.policy, 1)
        torch.set_num_threads(min(config.run.threads or 1, threads))
        scores = evaluate_policy(
            agent.policy,
            env,
            episodes=command.episodes,
            seed=command.seed,
            deterministic=not command.stochastic,
            limit=command.limit(config),
            watch=partial(patience, total=command.episodes) if watched else unwatched,
        )
    summary = {**scores.summary(), "checkpoint": command.checkpoint}
    if command.json:
        show(json.dumps(summary))
    else:
        how = "most likely actions" if scores.deterministic else "sampled actions"
        show(
            f"return {summary['return_mean']:.2f} ± {summary['return_std']:.2f} "
            f"(from {summary['return_min']:.2f} to {summary['return_max']:.2f}), "
            f"length {summary['length_mean']:.1f}\n"
            f"{command.episodes} episodes from seed {command.seed}, {how}, "
            f"{command.checkpoint} policy of {command.run}"
        )
        if note := scores.said("--max-episode-steps"):
            show(note)
    return 0
