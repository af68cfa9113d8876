"""`proximo train`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.conf import Positional, arg

from proximo.algorithms.base import OnPolicy
from proximo.algorithms.ppo import PPO
from proximo.commands.arguments import flags, given, optional, parse
from proximo.commands.stored import allow_code
from proximo.envs.config import EnvConfig
from proximo.errors import UsageError
from proximo.imports import find
from proximo.nets.config import NetConfig
from proximo.run.code import is_code
from proximo.run.config import (
    ALGORITHMS,
    Config,
    RolloutConfig,
    RunConfig,
    UnimportedAlgorithm,
    algorithm_type,
    check_algorithm,
    from_tables,
    read_config,
    with_code,
)
from proximo.run.consent import Named
from proximo.run.presets import Preset, choose_preset, presets


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags of the verbs that begin a run: where its settings come from, and all of them."""

    method: Annotated[Positional[str | None], optional("ALGORITHM")] = None
    """Algorithm: reinforce, qac, a2c, trpo, ppo-penalty, ppo, or module:Class."""
    env_id: Annotated[Positional[str | None], optional("ENV")] = None
    """Environment: a Gymnasium id such as CartPole-v1, or module:Class."""
    preset: Annotated[str | None, optional("NAME|FILE")] = None
    """Preset by name, or a file of your own; none: plain defaults. By default the preset for ENV,
    if there is one."""
    config: Annotated[Path | None, optional("FILE")] = None
    """Start from this TOML file, such as a run folder's config.toml."""
    algorithm: OnPolicy = field(default_factory=PPO)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    net: NetConfig = field(default_factory=NetConfig)
    run: RunConfig = field(default_factory=RunConfig)


Line = TypeVar("Line", bound=Settings)
"""The flags of one verb."""


@dataclass(frozen=True, kw_only=True)
class Train(Settings):
    """Train a policy and keep the run in a folder.

    The settings are those of a preset if there is one for ENV; flags change them.
    Settings that are often changed have short forms: --lr, --gamma, --epochs, --minibatch-size,
    --num-envs, --steps, --stop-at, --seed, --device, --threads, --env, --net.
    """

    run_dir: Annotated[Path | None, optional("DIR")] = None
    """A new folder for the run; by default runs/ENV-ALGORITHM-seedS."""
    start: Annotated[Path | None, optional("RUN", name="from")] = None
    """Begin with the last policy of this run."""
    quiet: bool = False
    """Print nothing but errors."""


def main(arguments: list[str]) -> int:
    final, config, preset, _ = settle(Train, "train", arguments)

    from proximo.commands.running import begin

    return begin(config, preset, run_dir=final.run_dir, start=final.start, quiet=final.quiet)


def settle(
    kind: type[Line], verb: str, arguments: list[str]
) -> tuple[Line, Config, Preset | None, list[str]]:
    """A line of a verb that begins a run: its flags, the settings, their preset and those typed."""
    # Twice: first for what decides on the algorithm and the defaults, then with those.
    asks = [word for word in arguments if word in ("-h", "--help")]
    words = [word for word in arguments if word not in asks]
    named = next((word for word in words if not word.startswith("-")), "")
    custom = check_algorithm(find(named)) if is_code(named) else None
    every = _command(kind, _any_algorithm(custom))
    chosen = parse(every, verb, words)
    base, preset = _base(chosen, custom, verb, asks=bool(asks))
    command = _command(kind, type(base.algorithm), _defaults(chosen, preset))
    typed = given(words, flags(every))
    _check_settings(base.algorithm.name, flags(command), typed)
    sections = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    final = parse(command, verb, arguments, command(**sections))
    return final, _config(final, chosen, preset, verb, arguments), preset, list(typed)


def _check_settings(name: str, known: Mapping[str, str], typed: Mapping[str, list[str]]) -> None:
    """Refuse settings that other algorithms have, but not this one. Raises `UsageError`."""
    for flag, (form, *_) in typed.items():
        if flag not in known:
            having = [
                other for other, kind in ALGORITHMS.items() if flag in flags(_command(Train, kind))
            ]
            raise UsageError(
                f"{name} has no setting {flag.rpartition('.')[2]}: leave --{form} out "
                f"(it is of {', '.join(having)})"
            )


def _defaults(chosen: Settings, preset: Preset | None) -> str:
    """Sentence of the help on the defaults that it shows."""
    if chosen.config is not None:
        return f"The defaults below are those of {chosen.config}."
    if preset:
        return f"The defaults below are those of the preset {preset.name} ({preset.source})."
    return "The defaults below are those without a preset."


def _command(kind: type[Line], algorithm: type[OnPolicy], defaults: str = "") -> type[Line]:
    """The command with the flags of this algorithm. `defaults`: a sentence of its help."""
    part = ("algorithm", algorithm, field(default_factory=algorithm))
    made = dataclasses.make_dataclass(
        kind.__name__, [part], bases=(kind,), frozen=True, kw_only=True
    )
    made.__doc__ = f"{inspect.cleandoc(kind.__doc__ or '')}\n{defaults}"
    return made


def _any_algorithm(custom: type[OnPolicy] | None = None) -> type[OnPolicy]:
    """Every flag of every algorithm, to read a line whose algorithm is not known yet."""
    settings: dict[str, tuple[str, typing.Any, typing.Any]] = {}
    for algorithm in (*ALGORITHMS.values(), *([custom] if custom else [])):
        hints = typing.get_type_hints(algorithm)
        for f in dataclasses.fields(algorithm):
            # Its default is not known yet, and so is not shown.
            hint: typing.Any = Annotated[hints[f.name], arg(help_behavior_hint="")]
            setting = (f.name, hint, field(default=f.default))
            settings.setdefault(f.name, setting)
    return dataclasses.make_dataclass("AnyAlgorithm", settings.values(), frozen=True, kw_only=True)


def _base(
    chosen: Settings, custom: type[OnPolicy] | None, verb: str, *, asks: bool
) -> tuple[Config, Preset | None]:
    """Settings that the flags change: of a file, a preset or the defaults.

    custom: the algorithm that the line names, if it is code. asks: for help.
    """
    if chosen.config is not None:
        if chosen.preset is not None:
            raise UsageError("--config and --preset both give all settings: use one of them")
        config = with_code(read_config(chosen.config), custom)
        if isinstance(config.algorithm, UnimportedAlgorithm):
            code = [config.algorithm.own] if config.algorithm.own else config.algorithm.schedules
            raise UsageError(
                f"{chosen.config} names code, {' and '.join(code)}: importing it needs your word. "
                "If you trust it, name the algorithm again, as in: proximo train module:Class "
                f"--config {chosen.config}; take a schedule out of the file, and give it by its "
                "flag"
            )
        kind = custom or (algorithm_type(chosen.method) if chosen.method else None)
        if kind and kind is not type(config.algorithm):
            raise UsageError(
                f"{chosen.config} is for {config.algorithm.name}, not {chosen.method}: leave the "
                "algorithm out, or begin without --config"
            )
        return config, None
    env_id = _env_id(chosen)
    if chosen.method and env_id is None and chosen.preset is None and "-v" in chosen.method:
        raise UsageError(
            f"there is no algorithm {chosen.method!r}: name one before the env, as in: "
            f"proximo {verb} ppo {chosen.method}"
        )
    if chosen.method is None and chosen.preset in (None, "none") and not asks:
        names = ", ".join(preset.name for preset in presets())
        raise UsageError(
            f"name an algorithm and an env, as in: proximo {verb} ppo CartPole-v1 "
            f"(or --config FILE, or --preset with one of {names})"
        )
    if custom:
        name, env = {"name": chosen.method}, {"id": env_id or ""}
        return from_tables({"algorithm": name, "env": env}, custom), None
    method = algorithm_type(chosen.method).name if chosen.method else None
    preset = choose_preset(chosen.preset, method, env_id or "")
    plain = {"algorithm": {"name": method or PPO.name}}
    tables = {name: dict(table) for name, table in (preset.tables if preset else plain).items()}
    tables.setdefault("env", {})["id"] = env_id or next(iter(preset.envs if preset else ()), "")
    return from_tables(tables), preset


def _env_id(chosen: Settings) -> str | None:
    """The environment that the command line names."""
    if chosen.env_id and chosen.env.id:
        raise UsageError(f"two envs, {chosen.env_id} and {chosen.env.id}: give one of them")
    return chosen.env_id or chosen.env.id or None


def _config(
    final: Settings, chosen: Settings, preset: Preset | None, verb: str, arguments: list[str]
) -> Config:
    """chosen: what the command line gives, over no preset and no file."""
    env_id = _env_id(chosen)
    env = dataclasses.replace(final.env, id=env_id) if env_id else final.env
    config = Config(
        algorithm=final.algorithm, rollout=final.rollout, env=env, net=final.net, run=final.run
    )
    config.check()
    if not config.env.id:
        raise UsageError(f"name an env, as in: proximo {verb} ppo CartPole-v1")
    if final.config is not None or (preset and preset.own):
        named = Named(
            env=env_id,
            wrappers=chosen.env.wrappers,
            net=chosen.net.module or None,
            callbacks=chosen.run.callbacks,
        )
        allow_code(config, named, ("env", "wrappers", "net", "callbacks"), verb, arguments)
    return config
