"""One configuration: the rooms' dataclasses under five names, to and from TOML."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from proximo.algorithms.a2c import A2C
from proximo.algorithms.base import OnPolicy
from proximo.algorithms.ppo import PPO
from proximo.algorithms.ppo_penalty import PPOPenalty
from proximo.algorithms.q_actor_critic import QActorCritic
from proximo.algorithms.reinforce import Reinforce
from proximo.algorithms.trpo import TRPO
from proximo.bounds import above, at_least, between
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError, check_values, nearest, printable, refuse_unused
from proximo.functional.schedules import Schedule, as_schedule
from proximo.imports import find, leads_to, name_of
from proximo.nets.config import NetConfig
from proximo.run.code import Code, describe, is_code, named_again, remade
from proximo.run.toml import read_section, read_tables, toml_value

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.nets.actor_critic import ActorCritic
    from proximo.nets.custom import Maker

_KINDS: tuple[type[OnPolicy], ...] = (Reinforce, QActorCritic, A2C, TRPO, PPOPenalty, PPO)
ALGORITHMS = {kind.name: kind for kind in _KINDS}
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

OFF_POLICY = frozenset(
    ["sac", "dqn", "td3", "ddpg", "qrdqn", "c51", "rainbow", "tqc", "crossq", "redq", "her"]
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

EVALUATION_SEED = 1_000_000
"""Seed of the first episode of `eval` and `play`, far from those of evaluations in training."""
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Names in `run.log`, which are those of the extras too."""
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
    health: bool = True
    """Look for what is unhealthy in the readings, and say it (docs/health.md)."""
    profile: bool = False
    """Measure where the time goes, and print it at the end."""
    callbacks: tuple[str, ...] = ()
    """Callbacks of your own, each module:Class, or module:Class{setting = value} with settings."""
    log: tuple[str, ...] = ()
    """Trackers that get the readings besides metrics.jsonl: tensorboard, wandb, mlflow, trackio."""
    log_names: Literal["proximo", "sb3", "cleanrl", "trl"] = "proximo"
    """Names of the readings there: Proximo's, or those of Stable-Baselines3, CleanRL or TRL."""

    def __post_init__(self) -> None:
        check_values("run", self)
        names = [name for part in self.log for name in part.split(",")]  # tensorboard,wandb
        for name in names:
            if name not in TRACKERS:
                raise UsageError(f"run.log is {name!r:.80}. {nearest(name, TRACKERS)}")
        object.__setattr__(self, "log", tuple(dict.fromkeys(names)))

    @abstractmethod
    def ended_by(self, counters: Mapping[str, Any]) -> str:
        """Setting that ends a run at these counters of a state or checkpoint, or ""."""


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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers in which layers over images compute: bfloat16 takes less time where the processor has
    it (AMX, AVX512-BF16) and on a GPU. Weights, losses and advantages stay in float32."""
    cuda_graphs: bool = False
    """With the torch engine on an NVIDIA GPU, replay gradient steps as CUDA graphs, and rollouts
    too where the envs hold tensors and change them in place. Not seen on a GPU yet."""
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

    @staticmethod
    def of(tables: Tables, values: Mapping[str, Any], **sections: Any) -> Config:
        """Values such as run.seed before sections before tables; None is not given."""
        config = from_tables(tables)
        given = {name: section for name, section in sections.items() if section is not None}
        if "algorithm" in given:
            given = {"rollout": RolloutConfig(steps=given["algorithm"].rollout_steps)} | given
        for name, value in values.items():
            section, _, setting = name.partition(".")
            if value is not None:
                before = given.get(section, getattr(config, section))
                given[section] = dataclasses.replace(before, **{setting: value})
        config = dataclasses.replace(config, **given)
        config.check()
        return config

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
        if self.env.stagger and self.rollout.episodes:
            raise UsageError(
                "env.stagger is on, but rollout.episodes counts whole episodes, whose lengths it "
                "would change: leave it out"
            )
        if bins := self.net.value_bins:
            losses = ("value_loss", "value_clip", "huber_delta")
            why = f"net.value_bins is {bins}: a histogram learns by cross-entropy"
            refuse_unused("algorithm", algorithm, losses, why)
            if algorithm.q_critic:
                raise UsageError(
                    f"net.value_bins is {bins}, but {algorithm.name} has a critic of actions, "
                    "which learns numbers: leave it out"
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
        if rollout.episodes or algorithm.minibatches != "shuffled":
            return
        samples = self.env.num_envs * agents * rollout.steps
        if algorithm.minibatch_size > samples:
            of_each = f" x {agents} agents" if agents > 1 else ""
            raise UsageError(
                f"algorithm.minibatch_size is {algorithm.minibatch_size}, but a rollout has only "
                f"{samples} samples (env.num_envs {self.env.num_envs}{of_each} x rollout.steps "
                f"{rollout.steps}): lower the one or raise the others"
            )

    def check_net(self, spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
        """Refuse settings of a new network that have no effect. Raises `UsageError`."""
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
        """Refuse advantages that are each standardised alone, to 0. agents: in each env."""
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
        refuse_lone(over, alone, batch=over == "episode")


def refuse_lone(over: str, alone: Mapping[str, bool], *, batch: bool) -> None:
    """Raise `UsageError` where one of these leaves an advantage alone. batch: it is a remedy."""
    if found := next((what for what, holds in alone.items() if holds), ""):
        raise UsageError(
            f"algorithm.normalize_advantage is {over}, but {found}: the deviation of one "
            "sample from its own mean is 0, so nothing would be learned. Use "
            f"{'batch, ' if batch else ''}none, or more samples"
        )


SECTIONS = {"rollout": RolloutConfig, "env": EnvConfig, "net": NetConfig, "run": RunConfig}


@dataclass(frozen=True, kw_only=True)
class UnimportedAlgorithm(OnPolicy):
    """An algorithm whose code the user has not named again; `with_code` makes the real one."""

    name: ClassVar[str] = ""
    table: Mapping[str, Any]
    """The section as it stands in the file."""
    kind: type[OnPolicy] | None
    """The class, where it is known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "q_critic", (self.kind or OnPolicy).q_critic)

    @property
    def own(self) -> str:
        """The name of the class, where it is the user's."""
        return str(self.table["name"]) if is_code(self.table["name"]) else ""

    @property
    def schedules(self) -> list[str]:
        """The code of its schedules."""
        return [x for key, x in self.table.items() if key != "name" and is_code(x)]


def algorithm_name(algorithm: OnPolicy) -> str:
    """The name in config.toml: one of Proximo's, or `module:Class`."""
    if isinstance(algorithm, UnimportedAlgorithm):
        return str(algorithm.table["name"])
    kind = type(algorithm)
    return algorithm.name if kind.__module__.startswith("proximo.") else name_of(kind)


def title(algorithm: OnPolicy) -> str:
    """The name for people: ppo, or the name of the user's class."""
    return algorithm_name(algorithm).rpartition(":")[2].rpartition(".")[2]


def task_name(config: Config) -> str:
    """What a run trains, for people: ppo on CartPole-v1."""
    env = printable(config.env.id, keep="") or "an env of the program"
    return f"{title(config.algorithm)} on {env}"


def check_sections(tables: Tables, known: Iterable[str]) -> None:
    """Refuse sections that are none of these. Raises `UsageError`."""
    for section in tables:
        if section not in known:
            raise UsageError(f"there is no section {section!r}. {nearest(section, known)}")
    for section, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"{section} is {table!r}: it must be a section, [{section}]")


def from_tables(tables: Tables, own: type[OnPolicy] | None = None) -> Config:
    """Tables of settings -> Config. own: class of the user's algorithm. Raises `UsageError`."""
    check_sections(tables, ["algorithm", *SECTIONS])
    algorithm = {"name": "ppo", **tables.get("algorithm", {})}
    parts: dict[str, Any] = {"algorithm": _read_algorithm(algorithm, own, {})}
    defaults = {"rollout": {"steps": parts["algorithm"].rollout_steps}}
    for name, cls in SECTIONS.items():
        table = {**defaults.get(name, {}), **tables.get(name, {})}
        parts[name] = read_section(name, cls, table)
    config = Config(**parts)
    config.check()
    return config


def _read_algorithm(
    table: Mapping[str, Any], own: type[OnPolicy] | None, schedules: Mapping[str, Schedule]
) -> OnPolicy:
    """The algorithm of a section, if all code that it names is here."""
    settings = {key: schedules.get(str(x), x) for key, x in table.items() if key != "name"}
    kind = own if is_code(table["name"]) else algorithm_type(table["name"])
    if kind is None or any(map(is_code, settings.values())):
        return UnimportedAlgorithm(table=table, kind=kind)
    algorithm: OnPolicy = read_section("algorithm", kind, settings)
    return algorithm


def with_code(
    config: Config, algorithm: Code | None = None, schedules: Iterable[Code] = ()
) -> Config:
    """The configuration with its own algorithm and schedules, as far as they were named again."""
    stub = config.algorithm
    if not isinstance(stub, UnimportedAlgorithm):
        return config
    code = find(algorithm) if isinstance(algorithm, str) else algorithm
    kind = check_algorithm(code) if code else None
    named = {text: named_again(text, schedules) for text in stub.schedules}
    known = {text: as_schedule(remade(code, text)[1]) for text, code in named.items() if code}
    table = dict(stub.table) | ({"name": name_of(kind)} if kind else {})
    config = dataclasses.replace(config, algorithm=_read_algorithm(table, kind, known))
    config.check()
    return config


def check_algorithm(kind: Any) -> type[OnPolicy]:
    """The class, if it is one of an algorithm. Raises `UsageError`."""
    if not (isinstance(kind, type) and issubclass(kind, OnPolicy)):
        raise UsageError(f"{kind!r:.80} is no algorithm: name a subclass of proximo.OnPolicy")
    return kind


def to_tables(config: Any) -> dict[str, dict[str, Any]]:
    """The inverse of `from_tables`, for any dataclass of dataclasses."""
    tables: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        table = {"name": algorithm_name(value)} if isinstance(value, OnPolicy) else {}
        settings = {f.name: getattr(value, f.name) for f in fields(value)}
        unimported = isinstance(value, UnimportedAlgorithm)
        tables[section.name] = dict(value.table) if unimported else table | settings
    return tables


def check_storable(config: Any, own: Maker | None = None) -> None:
    """Refuse what a run folder cannot name, before training. Raises `UsageError`.

    config: a dataclass of dataclasses. own: what makes the network that `net.module` names.
    """
    with_code = isinstance(config, Config)  # of control: its algorithms and schedules can be named
    remedy = "or train without a run folder (leave run_dir out)"
    known = typing.get_type_hints(type(config)).values()
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        if isinstance(part, OnPolicy) and with_code:
            names = {section.name: type(part)}
        elif type(part) in known:
            names = {}
        else:
            raise UsageError(
                f"{section.name} is {type(part).__name__}, a class of your own, which a run folder "
                f"cannot name: give {type(part).__mro__[1].__name__} itself, {remedy}"
            )
        values = {f"{section.name}.{f.name}": getattr(part, f.name) for f in fields(part)}
        names |= {name: x for name, x in values.items() if is_own_schedule(x)}
        for name, code in names.items():
            if not with_code:
                raise UsageError(
                    f"{name} is code of your own, which the run folder of a language model cannot "
                    f"name: give one of Proximo's, {remedy}"
                )
            try:
                describe(code)
            except UsageError as error:
                raise UsageError(f"{name}: {error}, {remedy}") from error
    if own and not leads_to(config.net.module, own):
        raise UsageError(
            f"net is {config.net.module}, a name that does not lead to it again, as that of what "
            "is defined within a function: define it as a class of a module or of the program, "
            "and pass its arguments by NetConfig(module=..., kwargs=...), "
            f"{remedy} if it need not be loaded again"
        )


def is_own_schedule(value: Any) -> bool:
    """A schedule that is code of the user's own: a function, or a subclass of `Schedule`."""
    return isinstance(value, Schedule) and (type(value) is not Schedule or bool(value.function))


def read_config(path: Path) -> Config:
    """A configuration file -> Config. Raises `UsageError`."""
    tables = read_tables(path)
    if "lm" in tables:
        raise UsageError(f"{path} is of a language model: see proximo lm --help")
    try:
        return from_tables(tables)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def to_toml(config: Any) -> str:
    """Text that `read_config` turns into the same configuration; see `to_tables`."""
    blocks = []
    for section, table in to_tables(config).items():
        texts = {k: describe(x) if is_own_schedule(x) else x for k, x in table.items()}
        lines = [f"{name} = {toml_value(value)}" for name, value in texts.items()]
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

    given = config.run.stop_at if config.run.success_at is None else config.run.success_at
    return return_threshold(config.env) if given is None else given


def make_policy(
    spaces: tuple[gym.Space[Any], gym.Space[Any]], config: Config, own: Maker | None = None
) -> ActorCritic:
    """The network for these spaces, new. own: what makes `net.module`. Raises `UsageError`."""
    from proximo.nets.actor_critic import ActorCritic

    assert own or not config.net.module, "the user has named it again: see `consent.allow`"
    policy = ActorCritic(*spaces, config.net, q_critic=config.algorithm.q_critic, own=own)
    policy.compute_in(config.run.dtype)
    return policy
