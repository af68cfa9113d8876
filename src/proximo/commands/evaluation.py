"""`proximo eval`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from proximo.commands.arguments import allow_code, check_spaces, closing, parse, show
from proximo.disk import warn
from proximo.errors import UsageError

SEED = 1_000_000
"""Far from the seeds of evaluations while training."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Play seeded episodes with a trained policy and print its scores.

    Episode i starts from seed S + i, so the same command gives the same scores.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    checkpoint: Literal["last", "best"] = "last"
    """Which policy."""
    episodes: int = 100
    """Number of episodes."""
    seed: int = SEED
    """S, the seed of the first episode."""
    max_episode_steps: int | None = None
    """Steps after which an episode is cut off, and what it has earned by then counts; by default as
    in the run's own evaluations."""
    stochastic: bool = False
    """Draw actions from the policy instead of taking the most likely one."""
    json: bool = False
    """Print one JSON object."""
    env: Annotated[str | None, arg(metavar="ENV", help_behavior_hint="")] = None
    """The env, which a run in code of your own (module:Class) needs to hear again."""
    wrappers: Annotated[tuple[str, ...], arg(metavar="WRAPPER ...", help_behavior_hint="")] = ()
    """Its wrappers, in the same way."""
    net: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The network, where it is code of your own, which needs to be said again."""


def main(arguments: list[str]) -> int:
    command = parse(Eval, "eval", arguments)
    if command.episodes < 1:
        raise UsageError(f"--episodes is {command.episodes}: give at least 1")
    if command.seed < 0:
        raise UsageError(f"--seed is {command.seed}: give 0 or more")
    limit = command.max_episode_steps
    if limit is not None and limit < 1:
        raise UsageError(f"--max-episode-steps is {limit}: give at least 1")

    import torch

    from proximo.agent import load
    from proximo.commands.display import Patience
    from proximo.envs.check import running_statistics
    from proximo.envs.make import make_env
    from proximo.evaluate import evaluate, step_limit, unwatched
    from proximo.run.choices import choose_threads
    from proximo.run.folder import RunFolder

    saved = RunFolder.open(command.run).read_config()
    named = (command.env, command.wrappers, command.net)
    config = allow_code(saved, *named, "eval", arguments)
    agent = load(command.run, command.checkpoint, net=command.net)
    # Those of training may have been the native engine's.
    torch.set_num_threads(min(config.run.threads or 1, choose_threads(0, "torch", agent.policy, 1)))
    env, patience = make_env(config.env), Patience()
    watched = sys.stderr is not None and sys.stderr.isatty()
    with closing(env):
        check_spaces(env, agent)
        if found := running_statistics(env):
            warn(f"what is scored is not what was trained: {found}")
        scores = evaluate(
            agent.policy,
            env,
            episodes=command.episodes,
            seed=command.seed,
            deterministic=not command.stochastic,
            limit=step_limit(config.env, limit or config.run.eval_max_episode_steps),
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
