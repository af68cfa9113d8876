"""One configuration: the rooms' dataclasses under five names, to and from TOML."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from proximo.algorithms.a2c import A2C
from proximo.algorithms.base import OnPolicy
from proximo.algorithms.ppo import PPO
from proximo.algorithms.ppo_penalty import PPOPenalty
from proximo.algorithms.q_actor_critic import QActorCritic
from proximo.algorithms.reinforce import Reinforce
from proximo.algorithms.trpo import TRPO
from proximo.bounds import above, at_least, between
from proximo.disk import read, warn
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError, check_values, nearest
from proximo.functional.schedules import Schedule
from proximo.named import leads_to
from proximo.nets.config import NetConfig

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.nets.actor_critic import ActorCritic
    from proximo.nets.custom import Maker

ALGORITHMS: dict[str, type[OnPolicy]] = {
    "reinforce": Reinforce,
    "qac": QActorCritic,
    "a2c": A2C,
    "trpo": TRPO,
    "ppo-penalty": PPOPenalty,
    "ppo": PPO,
}
"""Every algorithm by the name that the command line and `config.toml` use."""

ALIASES = {
    "vpg": "reinforce",
    "pg": "reinforce",
    "ac": "qac",
    "actor-critic": "qac",
    "ppo1": "ppo-penalty",
    "ppo2": "ppo",
    "ppo-clip": "ppo",
}
"""What else people call them."""

OFF_POLICY = (
    "sac",
    "dqn",
    "td3",
    "ddpg",
    "qrdqn",
    "c51",
    "rainbow",
    "tqc",
    "crossq",
    "redq",
    "her",
)
"""Algorithms that learn from the experience of other policies, of which there is none here."""
OF_LANGUAGE = {
    "grpo": "ppo --algorithm.advantage grpo --algorithm.normalize-advantage none",
    "dr-grpo": "ppo --algorithm.advantage dr-grpo",
    "rloo": "ppo --algorithm.advantage rloo",
    "gspo": "ppo --algorithm.ratio sequence",
    "sft": "sft",
}
"""Algorithms for language models, and what `proximo lm` calls them."""

FORMER = {
    "env.worlds": "num_envs",
    "net.memory": "recurrent",
    "net.memory_size": "recurrent_size",
    "net.memory_steps": "bptt_steps",
    "net.critic_only": "privileged",
    "net.deviation": "std",
    "score.world": "env",
}
"""Names of settings in files of schema 1 -> their names now."""

LONGEST_FILE = 2**16
"""Bytes of a configuration; TOML can take a time that grows by the square."""

Tables = Mapping[str, Mapping[str, Any]]
"""Section -> setting -> value, as TOML holds them."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How much experience one update learns from."""

    steps: Annotated[int, at_least(1)] = 256
    """T, steps in each env per update."""
    episodes: Annotated[int, at_least(0)] = 0
    """K whole episodes per update, the first that start, instead of steps; 0 counts steps."""

    def __post_init__(self) -> None:
        check_values("rollout", self)


@dataclass(frozen=True, kw_only=True)
class RunSettings(ABC):
    """Settings of every run, in control and with language models."""

    seed: Annotated[int, between(0, 2**62)] = 0
    """Seed of everything: weights, order of the data, actions or tokens, envs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the networks; auto keeps small ones on the CPU, where they are faster."""
    threads: Annotated[int, between(0, 2**20)] = 0
    """Threads of an update; 0 chooses: for native up to 2 (actor and critic), for torch 1 with
    small networks and else PyTorch's own number. The native engine gives the same bits for any."""
    stop_at: float | None = None
    """End early once the smoothed return and then an evaluation reach this return."""
    eval_every: Annotated[int, between(0, 2**62)] = 0
    """Updates between evaluations while training; 0: none."""
    save_every: Annotated[int, between(0, 2**62)] = 0
    """Updates between numbered checkpoints; 0: only update 0, last and best."""
    keep_last: Annotated[int, at_least(1)] = 2
    """Number of last checkpoints that are kept: `last`, and those before it as last-UPDATE, to
    resume from if it is damaged."""
    log_every: Annotated[int, at_least(1)] = 1
    """Updates between lines of metrics.jsonl."""
    grace: Annotated[float, above(0)] = 8.0
    """Seconds after SIGTERM in which the run has ended: saved after its update, or else at once."""
    profile: bool = False
    """Measure where the time goes, and print it at the end."""

    def __post_init__(self) -> None:
        check_values("run", self)

    @abstractmethod
    def ended_by(self, counters: Mapping[str, Any]) -> str:
        """The setting that ends a run with these counters, or "" if it continues.

        Counters of a state or of its checkpoint: both tell the end of a run that was killed there.
        """


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """How long to train, on what, and what to keep."""

    total_steps: Annotated[int, at_least(1)] = 100_000
    """Environment steps, over all envs; rounded up to whole updates."""
    total_episodes: Annotated[int | None, at_least(1)] = None
    """End after the update in which this many episodes are complete; none: total_steps ends it."""
    engine: Literal["auto", "torch", "compile", "native"] = "auto"
    """What acts and updates; auto: native (C++) for small networks on a CPU, else torch. compile:
    PyTorch generates code, which takes up to half a minute at first."""
    smoothing: Annotated[float, above(0, at_most=1)] = 0.1
    """Weight of each new episode in the smoothed return (EMA)."""
    smoothed_from: float | None = None
    """Start of the smoothed return; none: at the first episode's."""
    success_at: float | None = None
    """Return from which an episode counts as a success; none: `stop_at` or the env's own."""
    keep_best: Literal["smoothed", "evaluation"] = "smoothed"
    """Score that decides on the best policy: the smoothed return, or evaluations."""
    eval_episodes: Annotated[int, at_least(1)] = 20
    """Episodes of an evaluation while training."""
    eval_max_episode_steps: Annotated[int | None, at_least(1)] = None
    """Steps after which an episode of an evaluation is cut off; none: 10,000, or the time limit of
    the env if it is longer."""

    def ended_by(self, counters: Mapping[str, Any]) -> str:
        tried = counters["last_trial_steps"] == counters["steps"]
        score = counters.get("last_trial_return") if tried else None
        if self.stop_at is not None and score is not None and score >= self.stop_at:
            return "stop_at"
        if self.total_episodes is not None and counters["episodes"] >= self.total_episodes:
            return "total_episodes"
        return "total_steps" if counters["steps"] >= self.total_steps else ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that defines a run."""

    algorithm: OnPolicy = field(default_factory=PPO)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    net: NetConfig = field(default_factory=NetConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def check(self) -> None:
        """What no section can see alone. Raises `UsageError`."""
        algorithm = self.algorithm
        if self.run.keep_best == "evaluation" and not self.run.eval_every:
            raise UsageError(
                "run.keep_best is evaluation: set run.eval_every to how often, in updates"
            )
        if algorithm.minibatches == "episodes" and not self.rollout.episodes:
            raise UsageError(
                "algorithm.minibatches is episodes, but experience is counted in steps: "
                "set --rollout.episodes to how many episodes an update learns from"
            )
        whole_episodes = algorithm.minibatches == "whole" and self.rollout.episodes
        if whole_episodes and self.run.engine == "compile":
            raise UsageError(
                "run.engine is compile, but a batch of whole episodes has another size in "
                "every update, which would all have to be compiled: use torch or auto"
            )

    def check_samples(self, agents: int) -> None:
        """What cannot be seen before the envs are there. agents: in each of them."""
        algorithm, rollout = self.algorithm, self.rollout
        samples = self.env.num_envs * agents * rollout.steps
        if rollout.episodes:
            return
        if algorithm.minibatches == "shuffled" and algorithm.minibatch_size > samples:
            of_each = f" x {agents} agents" if agents > 1 else ""
            raise UsageError(
                f"algorithm.minibatch_size is {algorithm.minibatch_size}, but a rollout has only "
                f"{samples} samples (env.num_envs {self.env.num_envs}{of_each} x rollout.steps "
                f"{rollout.steps}): lower the one or raise the others"
            )

    def check_net(self, spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
        """Refuse settings of a new net that would do nothing. Raises `UsageError`.

        spaces: of observations and actions.
        """
        from gymnasium.spaces import Box, Discrete

        from proximo.spaces import Actions, Observations

        seen, actions = spaces

        self.net.check_used(
            continuous=any(isinstance(leaf.space, Box) for leaf in Actions(actions).leaves),
            images=any(leaf.image for leaf in Observations(seen).leaves),
            q_of_numbers=self.algorithm.q_critic and not isinstance(actions, Discrete),
            critic=self.algorithm.critic,
        )

    def check_lone(self, agents: int) -> None:
        """Refuse a new run whose advantages are each standardised alone. Raises `UsageError`.

        The deviation of one sample from its own mean is 0. agents: in each of the envs.
        """
        algorithm, rollout = self.algorithm, self.rollout
        over, each = algorithm.normalize_advantage, algorithm.standardizes_minibatches
        whole = self.net.recurrent != "none" and self.net.bptt_steps != 1  # segments stay together
        samples = 0 if rollout.episodes else self.env.num_envs * agents * rollout.steps
        steps = 1 if self.env.max_episode_steps == 1 else 0 if rollout.episodes else rollout.steps
        alone = {
            "an update has one sample": over != "none" and samples == 1,
            "an episode has one step in an update": over == "episode" and steps == 1,
            "algorithm.minibatch_size is 1": each
            and algorithm.minibatches == "shuffled"
            and algorithm.minibatch_size == 1
            and not whole,
            "an episode has one step": each and algorithm.minibatches == "episodes" and steps == 1,
        }
        found = next((what for what, holds in alone.items() if holds), "")
        if found:
            raise UsageError(
                f"algorithm.normalize_advantage is {over}, but {found}: the deviation of one "
                "sample from its own mean is 0, so nothing would be learned. Use "
                f"{'batch, ' if over == 'episode' else ''}none, or more samples"
            )


SECTIONS: dict[str, type] = {
    "rollout": RolloutConfig,
    "env": EnvConfig,
    "net": NetConfig,
    "run": RunConfig,
}


def check_sections(tables: Tables, known: Iterable[str]) -> None:
    """Refuse sections that are none of these. Raises `UsageError`."""
    for section in tables:
        if section not in known:
            raise UsageError(f"there is no section {section!r}. {nearest(section, known)}")
    for section, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"{section} is {table!r}: it must be a section, [{section}]")


def from_tables(tables: Tables) -> Config:
    """Tables of settings -> Config; what is left out keeps its default. Raises `UsageError`."""
    check_sections(tables, ["algorithm", *SECTIONS])
    algorithm = dict(tables.get("algorithm", {}))
    kind = algorithm_type(algorithm.pop("name", "ppo"))
    parts: dict[str, Any] = {"algorithm": read_section("algorithm", kind, algorithm)}
    own = {"rollout": {"steps": kind.rollout_steps}}
    for name, cls in SECTIONS.items():
        parts[name] = read_section(name, cls, {**own.get(name, {}), **tables.get(name, {})})
    config = Config(**parts)
    config.check()
    return config


def to_tables(config: Any) -> dict[str, dict[str, Any]]:
    """The inverse of `from_tables`, for any dataclass of dataclasses."""
    tables: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        table = {"name": value.name} if isinstance(value, OnPolicy) else {}
        tables[section.name] = table | {
            f.name: getattr(value, f.name) for f in dataclasses.fields(value)
        }
    return tables


def check_storable(config: Any, own: Maker | None = None) -> None:
    """Refuse what a file cannot name, and would give back as something else. Raises `UsageError`.

    A subclass of an algorithm, of a schedule or of a section is code: its name in `config.toml`
    would be that of the class it was made from. config: a dataclass of dataclasses. own: what makes
    the network that `net.module` names.
    """
    remedy = "Train without a run folder (leave run_dir out)"
    known = {*ALGORITHMS.values(), *typing.get_type_hints(type(config)).values()}
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        kind = type(part)
        if kind not in known:
            stands = next(c.__name__ for c in kind.__mro__ if c in known)
            raise UsageError(
                f"{section.name} is {kind.__name__}, a class of your own, which a run folder "
                f"cannot name: it would be loaded and resumed as {stands}. {remedy}, or give "
                f"{stands} itself"
            )
        for setting in dataclasses.fields(part):
            value = getattr(part, setting.name)
            if isinstance(value, Schedule) and type(value) is not Schedule:
                raise UsageError(
                    f"{section.name}.{setting.name} is {type(value).__name__}, a class of your "
                    f"own, which a run folder cannot name: it would be loaded as {value}. {remedy},"
                    " or give a Schedule itself"
                )
    if own and not leads_to(config.net.module, own):
        raise UsageError(
            f"net is {config.net.module}, a name that does not lead to it again, as that of what "
            "is defined within a function: define it as a class of a module or of the program, "
            "and pass its arguments by NetConfig(module=..., kwargs=...). "
            f"{remedy} if it need not be loaded again"
        )


def read_config(path: Path) -> Config:
    """A configuration file -> Config. Raises `UsageError`."""
    tables = read_tables(path)
    if "lm" in tables:
        raise UsageError(f"{path} is of a language model: see proximo lm --help")
    try:
        return from_tables(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_tables(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises `UsageError`."""
    try:
        tables = tomllib.loads(read(path, LONGEST_FILE).decode())
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the configuration {path} is not TOML: {error}") from error
    if not tables:
        raise UsageError(
            f"the configuration {path} is empty, so nothing says what was trained: bring back a "
            "copy of it, or begin a new run"
        )
    sections = {name: table for name, table in tables.items() if isinstance(table, dict)}
    names = (f"{name}.{key}" for name, table in sections.items() for key in table)
    if former := [f"{name} is now {FORMER[name]}" for name in names if name in FORMER]:
        _warn_once(f"{path} has names of an earlier version: {', '.join(former)}")
    return tables


_warn_once = functools.cache(warn)


def to_toml(config: Any) -> str:
    """Text that `read_config` turns into the same configuration; see `to_tables`."""
    blocks = []
    for section, table in to_tables(config).items():
        lines = [f"{name} = {_toml(value)}" for name, value in table.items()]
        blocks.append("\n".join([f"[{section}]", *lines]) + "\n")
    return "\n".join(blocks)


def algorithm_type(name: str) -> type[OnPolicy]:
    """The class behind an algorithm's name or alias, or `UsageError` with those that are near."""
    known = {**ALGORITHMS, **{alias: ALGORITHMS[name] for alias, name in ALIASES.items()}}
    word = str(name).lower().replace("_", "-")
    if word in OFF_POLICY:
        raise UsageError(
            f"{name} learns off-policy, from stored experience of older policies; here are "
            f"on-policy algorithms only: {', '.join(ALGORITHMS)}"
        )
    if word in OF_LANGUAGE:
        without = " --algorithm.no-critic" if "advantage" in OF_LANGUAGE[word] else ""
        raise UsageError(
            f"{name} is for language models: proximo lm {OF_LANGUAGE[word]}{without} "
            "(see proximo lm --help)"
        )
    if word not in known:
        raise UsageError(f"there is no algorithm {name!r}. {nearest(word, known)}")
    return known[word]


def success_threshold(config: Config) -> float | None:
    """The return from which an episode of this run is a success, where there is one."""
    from proximo.envs.make import return_threshold

    for given in (config.run.success_at, config.run.stop_at):
        if given is not None:
            return given
    return return_threshold(config.env)


def make_policy(
    spaces: tuple[gym.Space[Any], gym.Space[Any]], config: Config, own: Maker | None = None
) -> ActorCritic:
    """The network for observations and actions of these spaces, new. Raises `UsageError`.

    own: what makes the module that `net.module` names, which is not imported here: a configuration
    may come out of a file.
    """
    from proximo.nets.actor_critic import ActorCritic

    if config.net.module and own is None:
        raise UsageError(
            f"this run's network, {config.net.module}, is code: importing it needs your word. If "
            f"you trust it, name it: load(..., net={sayable(config.net.module)!r})"
        )
    return ActorCritic(*spaces, config.net, q_critic=config.algorithm.q_critic, own=own)


def sayable(name: str) -> str:
    """A name of code as one can say it again: a program's own file has another name for others."""
    return "module:Class" if name.startswith("__main__:") or "<locals>" in name else name


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    text = "none" if value is None else value if isinstance(value, int) else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def read_section(name: str, cls: type, table: Mapping[str, Any]) -> Any:
    """One table -> an instance of its dataclass. Raises `UsageError` that names the setting."""
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in table.items():
        setting = FORMER.get(f"{name}.{key}", key)
        if setting not in fields or (setting != key and setting in table):
            raise UsageError(f"there is no setting {name}.{key}. {nearest(setting, fields)}")
        off = value == "none" and type(None) in typing.get_args(hints[setting])
        values[setting] = None if off else value
    return cls(**values)
