"""Stored runs as arguments: the flags that name one, and consent to import the code it names."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from tyro.conf import Positional, arg

from proximo.commands.arguments import closing, optional
from proximo.disk import warn
from proximo.errors import UsageError
from proximo.run.config import Config, sayable
from proximo.run.folder import RunFolder

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.agent import Agent

SEED = 1_000_000
"""Seed of the first episode of `eval` and `play`, far from those of evaluations in training."""


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """Flags of every verb that makes the env of a stored run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    env: Annotated[str | None, optional("ENV")] = None
    """Environment; if it is code (module:Class), repeat its name as consent to import it."""
    wrappers: Annotated[tuple[str, ...], optional("WRAPPER ...")] = ()
    """Wrappers of the environment; likewise."""
    net: Annotated[str | None, optional("module:Class")] = None
    """Network; if it is code, repeat its name as consent to import it."""

    def config(self, verb: str, arguments: Sequence[str]) -> Config:
        """Configuration of the run, with consent to what it imports. Raises `UsageError`."""
        config = RunFolder.open(self.run).read_config()
        return allow_code(config, self.env, self.wrappers, self.net, verb, arguments)


@dataclass(frozen=True, kw_only=True)
class OfEpisodes(OfRun):
    """Flags of the verbs that play episodes with a stored policy."""

    checkpoint: Literal["last", "best"] = "last"
    """Policy to use."""
    episodes: int
    """Number of episodes."""
    seed: int = SEED
    """Seed of the first episode; each further one counts up by one."""
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
        from proximo.agent import load
        from proximo.envs.check import running_statistics
        from proximo.envs.make import make_env

        config = self.config(verb, arguments)
        agent = load(self.run, self.checkpoint, net=self.net)
        env = make_env(config.env, render_mode=render_mode)
        with closing(env):
            check_spaces(env, agent)
            if difference := running_statistics(env):
                warn(f"what is {purpose} is not what was trained: {difference}")
            yield agent, env, config

    def limit(self, config: Config) -> int:
        """Steps after which an episode is cut off."""
        from proximo.evaluate import step_limit

        return step_limit(config.env, self.max_episode_steps or config.run.eval_max_episode_steps)


class Code(NamedTuple):
    """Names of code in a run's configuration."""

    noun: str
    flag: str
    names: Sequence[str]
    given: bool
    """Named on the command line too, which is the consent to import it."""


def check_code(verb: str, arguments: Iterable[str], parts: Iterable[Code]) -> None:
    """Refuse to import code because a file names it. Raises `UsageError` with the line to type."""
    missing = [part for part in parts if part.names and not part.given]
    if missing:
        nouns = ", and its ".join(f"{part.noun}, {' and '.join(part.names)}" for part in missing)
        be, it = ("is", "it") if len(missing) == 1 else ("are", "them")
        again = (word for part in missing for word in (part.flag, *map(sayable, part.names)))
        line = shlex.join(["proximo", *verb.split(), *arguments, *again])
        raise UsageError(
            f"this run's {nouns}, {be} code: importing {it} needs your word. "
            f"If you trust {it}, type: {line}"
        )


def allow_code(
    config: Config,
    env: str | None,
    wrappers: Sequence[str],
    net: str | None,
    verb: str,
    arguments: Sequence[str],
) -> Config:
    """Configuration with the names that were given again, if all the code it names was.

    Raises `UsageError` with the line to type.
    """
    line = shlex.join(["proximo", verb, *arguments])
    stored = config.env
    if not (env or stored.id):
        raise UsageError(
            f"this run's env was made by a program: name it, as in {line} --env module:Class"
        )
    if net and not config.net.module:
        raise UsageError(f"--net is {net}, but this run's network is Proximo's: leave it out")
    check_code(
        verb,
        arguments,
        (
            Code("env", "--env", [stored.id] * (":" in stored.id), given=env is not None),
            Code(
                "wrappers",
                "--env.wrappers" if verb == "train" else "--wrappers",
                stored.wrappers,
                given=bool(wrappers),
            ),
            Code("network", "--net", [config.net.module] * bool(config.net.module), bool(net)),
        ),
    )
    return dataclasses.replace(
        config,
        env=dataclasses.replace(
            stored, id=env or stored.id, wrappers=tuple(wrappers) or stored.wrappers
        ),
        net=dataclasses.replace(config.net, module=net or config.net.module),
    )


def check_spaces(env: gym.Env, agent: Agent) -> None:
    """Refuse an env whose spaces are not those of the policy. Raises `UsageError`."""
    from proximo.envs.layers import title

    pairs = (
        ("observation", env.observation_space, agent.obs_space),
        ("action", env.action_space, agent.action_space),
    )
    for noun, space, trained in pairs:
        # A space of a class of the user's own is stored as the one of Gymnasium's that it extends.
        if space.shape != trained.shape or trained != space:
            raise UsageError(
                f"the {noun} space of {title(env)} is {space}, but this policy was trained with "
                f"{trained}: name the env it was trained in, or one with the same spaces"
            )
