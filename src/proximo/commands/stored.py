"""Stored runs as arguments: the flags that name one, and consent to import the code it names."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from proximo.commands.arguments import check_least, closing, optional
from proximo.disk import warn
from proximo.run.config import EVALUATION_SEED, Config
from proximo.run.consent import Line, Named, allow
from proximo.run.folder import RunFolder

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.agent import Agent

FLAGS = {
    "env": "--env",
    "wrappers": "--wrappers",
    "net": "--net",
    "algorithm": "--algorithm",
    "schedules": "--schedule",
    "callbacks": "--callback",
    "reward": "--reward",
}
"""Flags that name the code of a run again: argument -> flag."""
FLAGS_OF_TRAIN = {**FLAGS, "wrappers": "--env.wrappers", "callbacks": "--run.callbacks"}


def line_to_type(verb: str, arguments: Iterable[str]) -> Line:
    """The line with the names of code that are missing from it."""
    flags = FLAGS_OF_TRAIN if verb in ("train", "tune") else FLAGS
    begin = ["proximo", *verb.split(), *arguments]

    def line(names: dict[str, list[str]]) -> str:
        again = (word for argument, n in names.items() for word in (flags[argument], *n))
        return shlex.join([*begin, *again])

    return line


def allow_code(
    config: Config, named: Named, parts: Iterable[str], verb: str, arguments: Sequence[str]
) -> Config:
    """Configuration with the code that the command line names again, as consent to import it.

    parts: the code that is needed. Raises `UsageError` with the line to type.
    """
    flags = FLAGS_OF_TRAIN if verb in ("train", "tune") else FLAGS
    return allow(config, named, parts, line_to_type(verb, arguments), flags)


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Flags of every verb that loads a stored run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]  # The run folder.
    net: Annotated[str | None, optional("module:Class")] = None
    """Network; if it is code, repeat its name as consent to import it."""
    algorithm: Annotated[str | None, optional("module:Class")] = None  # Algorithm; likewise.

    def config(self, verb: str, arguments: Sequence[str], **more: tuple[str, ...]) -> Config:
        """Configuration of the run, with consent to what it imports. Raises `UsageError`.

        more: further code that is named again.
        """
        named = {name: getattr(self, name) for name in FLAGS if name in vars(self)} | more
        config = RunFolder.open(self.run).read_config()
        return allow_code(config, Named(**named), named, verb, arguments)


@dataclass(frozen=True, kw_only=True)
class OfEnv(OfRun):
    """Flags of every verb that makes the env of a stored run."""

    env: Annotated[str | None, optional("ENV")] = None
    """Environment; likewise, if it is code (module:Class)."""
    wrappers: Annotated[tuple[str, ...], optional("WRAPPER ...")] = ()
    """Wrappers of the environment; likewise."""


@dataclass(frozen=True, kw_only=True)
class OfEpisodes(OfEnv):
    """Flags of the verbs that play episodes with a stored policy."""

    checkpoint: Literal["last", "best"] = "last"  # Policy to use.
    episodes: int  # Number of episodes.
    seed: int = EVALUATION_SEED  # Seed of the first episode; each further one counts up by one.
    max_episode_steps: int | None = None
    """Steps after which an episode is cut off, with the return so far; by default as in the
    evaluations of the run itself."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking the most likely one."""

    @contextlib.contextmanager
    def opened(
        self, verb: str, arguments: Sequence[str], purpose: str, render_mode: str | None = None
    ) -> Iterator[tuple[Agent, gym.Env, Config]]:
        """The policy, its env, closed in the end, and the configuration. Raises `UsageError`.

        `purpose`: scored or shown, for the warning that statistics of the env are not kept.
        """
        check_least(self, episodes=1, seed=0, max_episode_steps=1)

        from proximo.agent import check_spaces, load
        from proximo.envs.check import running_statistics
        from proximo.envs.make import make_env

        config = self.config(verb, arguments)
        agent = load(self.run, self.checkpoint, net=self.net, algorithm=self.algorithm)
        env = make_env(config.env, render_mode=render_mode)
        with closing(env):
            check_spaces(env, agent)
            if difference := running_statistics(env):
                warn(f"what is {purpose} is not what was trained: {difference}")
            yield agent, env, config

    def limit(self, config: Config) -> int:
        """Steps after which an episode is cut off."""
        from proximo.evaluation import step_limit

        return step_limit(config.env, self.max_episode_steps or config.run.eval_max_episode_steps)
