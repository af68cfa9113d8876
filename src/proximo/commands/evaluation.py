"""`proximo eval`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial

from proximo.commands.arguments import closing, parse, show
from proximo.commands.stored import OfEpisodes, check_spaces
from proximo.disk import warn


@dataclass(frozen=True, kw_only=True)
class Eval(OfEpisodes):
    """Play seeded episodes with a trained policy and print its scores.

    Episode i starts from seed S + i, where S is --seed: the same command gives the same scores.
    """

    episodes: int = 100
    """Number of episodes."""
    json: bool = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    command = parse(Eval, "eval", arguments)
    command.check()

    import torch

    from proximo.agent import load
    from proximo.commands.display import Patience
    from proximo.envs.check import running_statistics
    from proximo.envs.make import make_env
    from proximo.evaluate import evaluate, step_limit, unwatched
    from proximo.run.choices import choose_threads

    config = command.config("eval", arguments)
    agent = load(command.run, command.checkpoint, net=command.net)
    # The threads of training may have been those of the native engine.
    torch.set_num_threads(min(config.run.threads or 1, choose_threads(0, "torch", agent.policy, 1)))
    env, patience = make_env(config.env), Patience()
    watched = sys.stderr is not None and sys.stderr.isatty()
    with closing(env):
        check_spaces(env, agent)
        if difference := running_statistics(env):
            warn(f"what is scored is not what was trained: {difference}")
        scores = evaluate(
            agent.policy,
            env,
            episodes=command.episodes,
            seed=command.seed,
            deterministic=not command.stochastic,
            limit=step_limit(
                config.env, command.max_episode_steps or config.run.eval_max_episode_steps
            ),
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
        if said := scores.said("--max-episode-steps"):
            show(said)
    return 0
