"""`proximo doctor` and `proximo check`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from proximo.commands.arguments import flags, given, optional, parse, show
from proximo.commands.waiting import said_if_slow
from proximo.disk import warn
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError

if TYPE_CHECKING:
    from proximo.envs.base import Envs


@dataclass(frozen=True, kw_only=True)
class OfEnv:
    """Flags of what plays an env."""

    episodes: int = 20
    """Most episodes to play."""
    steps: int = 10_000
    """Most steps to take."""
    seconds: float = 10.0
    """Most seconds to spend."""
    env: EnvConfig = field(default_factory=EnvConfig)

    def check_limits(self) -> None:
        """Raises `UsageError`."""
        for name in ("episodes", "steps", "seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name} is {getattr(self, name)}: give more than 0")


@dataclass(frozen=True, kw_only=True)
class Check(OfEnv):
    """Play an env at random, and report what is wrong or doubtful about it.

    Training does so too, for a tenth of a second. proximo doctor ENV tells more.
    """

    env_id: Annotated[Positional[str], arg(metavar="ENV")]
    """A Gymnasium id such as CartPole-v1, or module:Class."""


@dataclass(frozen=True, kw_only=True)
class Doctor(OfEnv):
    """Examine the installation, an env or a run, and say what to do.

    Without a name: what is installed, and a self-test with known answers. With an env: what is
    wrong with it, what simple policies earn in it, how fast it is, and a line to begin with. With a
    run folder: how the run ended, what is unhealthy about it, and how to go on.
    """

    target: Annotated[Positional[str | None], optional("ENV|RUN")] = None
    """A Gymnasium id such as CartPole-v1, module:Class, or a run folder."""
    json: bool = False
    """Print one JSON object."""
    self_test: bool = True
    """Train for some seconds in envs whose answer is known (installation only)."""
    preset: Annotated[str | None, optional("none")] = None
    """none: propose settings as if there were no preset for the env."""


KINDS = {
    "the installation": {"json", "self-test"},
    "a run": {"json"},
    "an env": {"json", "preset", "episodes", "steps", "seconds"},
}
"""What can be examined, and the flags that belong to it, besides those of the env section."""


def main(arguments: list[str]) -> int:
    command = parse(Doctor, "doctor", arguments)
    known = flags(Doctor)
    if command.env.id and command.target:
        raise UsageError(f"two envs, {command.target} and {command.env.id}: give one of them")
    target = (command.target or command.env.id).removesuffix("/config.toml")
    kind = _kind(target)
    for flag, (form, *_) in given(arguments, known).items():
        name = flag.removeprefix("no-")
        if name not in KINDS[kind] and not (kind == "an env" and name.startswith("env.")):
            raise UsageError(f"--{form} is not for {kind}: leave it out{_example(kind, target)}")
    if command.preset not in (None, "none"):
        raise UsageError(f"--preset is {command.preset}: give none, or leave it out")
    if kind == "the installation":
        return _installation(command)
    if kind == "a run":
        from proximo.commands.run_page import examine_run

        return examine_run(target, as_json=command.json)
    command.check_limits()
    from proximo.commands.env_page import examine_env

    env = dataclasses.replace(command.env, id=target)
    with contextlib.nullcontext() if command.json else said_if_slow(f"playing {target}: a moment"):
        with opened(env) as envs:
            found = examine_env(
                env,
                envs,
                seconds=command.seconds,
                steps=command.steps,
                episodes=command.episodes,
                presets=command.preset is None,
            )
        found.try_proposal(command.seconds)
    found.show(as_json=command.json)
    return found.code


def _kind(target: str) -> str:
    """What is named: nothing, a folder, or an env."""
    if not target:
        return "the installation"
    path = Path(target)
    if path.is_dir() and ":" not in target:
        import gymnasium as gym

        return (
            "an env" if target in gym.registry and not (path / "config.toml").exists() else "a run"
        )
    if path.suffix == ".toml" or path.is_file():
        raise UsageError(f"{target} is a file: name a run folder, an env, or nothing")
    return "an env"


def _example(kind: str, target: str) -> str:
    return "" if kind == "an env" else f", as in: proximo doctor {target}".rstrip()


def _installation(command: Doctor) -> int:
    from proximo.commands.layout import Page
    from proximo.insight.installation import Line, examine
    from proximo.insight.selftest import self_test

    page, lines = Page(), list[Line]()
    parts = itertools.chain(
        examine(), [("Self-test (under a minute)", self_test())] if command.self_test else []
    )
    for heading, found in parts:
        if not command.json:
            page.heading(heading)
        for line in found:
            lines.append(line)
            if not command.json:
                page.line(*dataclasses.astuple(line))
    broken = [line.subject for line in lines if line.state == "broken"]
    doubtful = [line.subject for line in lines if line.state == "warning"]
    if command.json:
        show(json.dumps({"well": not broken, "lines": list(map(dataclasses.asdict, lines))}))
    else:
        page.heading(_verdict(broken, doubtful))
    return 1 if broken else 0


def _verdict(broken: list[str], doubtful: list[str]) -> str:
    if broken:
        return f"Broken: {', '.join(broken)}"
    return f"It works; look at {', '.join(doubtful)}" if doubtful else "All is well"


@contextlib.contextmanager
def opened(env: EnvConfig) -> Iterator[Envs]:
    """The envs to examine, one of those that are stepped singly, closed in the end.

    Raises `UsageError`; a failure to close them is said, and spoils nothing.
    """
    from proximo.envs.make import in_step, make_env, make_envs
    from proximo.run.choices import check_backend, choose_backend

    chosen: Any = choose_backend(env, given=False)[0]
    check_backend(dataclasses.replace(env, backend=chosen))
    together = env.backend in ("vector", "envpool")
    envs = make_envs(env, 0) if together else in_step([make_env(env)], autoreset=True)
    well = False
    try:
        yield envs
        well = True
    finally:
        for text in envs.close():
            if well:
                warn(text)


def check(arguments: list[str]) -> int:
    """`proximo check`: the check of `proximo doctor ENV`, and nothing else."""
    command = parse(Check, "check", arguments)
    if command.env.id:
        raise UsageError(f"two envs, {command.env_id} and {command.env.id}: give one of them")
    command.check_limits()

    from proximo.commands.env_page import check_head, one_line

    env = dataclasses.replace(command.env, id=command.env_id)
    limits = {"seconds": command.seconds, "steps": command.steps, "episodes": command.episodes}
    slow = f"playing {command.env_id}: it takes long, still at it"
    with said_if_slow(slow), opened(env) as envs:
        report = envs.examine(**limits)
        check_head(envs)
    if envs.agents > 1:
        show(f"agents        {envs.agents} in each env, acting by one policy")
    shown = f"{one_line(envs.obs_space)}, {envs.observations.width} numbers to the network"
    show(f"observations  {shown}")
    show(f"actions       {one_line(envs.action_space)}")
    show(f"played        {report.steps:,} steps, {report.episodes:,} episodes to their end")
    show("\n".join(f"note          {note}" for note in report.notes) or "nothing is wrong with it")
    return 0
