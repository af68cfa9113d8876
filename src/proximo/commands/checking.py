"""`proximo check`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from tyro.conf import Positional, arg

from proximo.commands.arguments import closing, parse, show
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Check:
    """Play an env at random, and report what is wrong or doubtful about it.

    Training does so too, for a tenth of a second.
    """

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """A Gymnasium id such as CartPole-v1, or module:Class."""
    episodes: int = 20
    """Most episodes to play."""
    steps: int = 10_000
    """Most steps to take."""
    seconds: float = 10.0
    """Most seconds to spend."""
    env: EnvConfig = field(default_factory=EnvConfig)


def main(arguments: list[str]) -> int:
    command = parse(Check, "check", arguments)
    if command.env.id:
        raise UsageError(f"two envs, {command.env_id} and {command.env.id}: give one of them")
    for name in ("episodes", "steps", "seconds"):
        if not getattr(command, name) > 0:
            raise UsageError(f"--{name} is {getattr(command, name)}: give more than 0")

    from proximo.commands.waiting import said_if_slow

    with said_if_slow(f"playing {command.env_id}: it takes long, still at it"):
        return _check(command)


def _check(command: Check) -> int:
    from proximo.envs.check import check_env
    from proximo.envs.make import make_env, make_envs
    from proximo.envs.parallel_env import ParallelEnv
    from proximo.envs.vector import VectorEnvs, check_vector
    from proximo.nets.config import NetConfig
    from proximo.nets.heads import make_head
    from proximo.run.choices import check_backend, choose_backend
    from proximo.spaces import Observations

    agents = 1
    env = dataclasses.replace(command.env, id=command.env_id)
    check_backend(dataclasses.replace(env, backend=choose_backend(env, given=False)[0]))  # type: ignore[arg-type]
    limits: dict[str, Any] = {"seconds": command.seconds, "steps": command.steps}
    if env.backend in ("vector", "envpool"):
        envs = make_envs(env, 0)
        if not isinstance(envs, VectorEnvs):
            envs.close()
            raise UsageError(f"env.backend is {env.backend}, which is not checked: use sync")
        with closing(envs.envs):
            spaces, report = (envs.obs_space, envs.action_space), check_vector(envs, **limits)
    else:
        one_env = make_env(env)
        with closing(one_env):
            report = check_env(one_env, episodes=command.episodes, **limits)
            spaces = one_env.observation_space, one_env.action_space
            agents = len(one_env.agents) if isinstance(one_env, ParallelEnv) else 1
    make_head(spaces[1], NetConfig(), features=1)
    obs, action = (" ".join(str(space).split()) for space in spaces)
    if agents > 1:
        show(f"agents        {agents} in each env, acting by one policy")
    show(f"observations  {obs}, {Observations(spaces[0]).width} numbers to the network")
    show(f"actions       {action}")
    show(f"played        {report.steps:,} steps, {report.episodes:,} episodes to their end")
    show("\n".join(f"note          {note}" for note in report.notes) or "nothing is wrong with it")
    return 0
