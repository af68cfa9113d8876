"""`proximo train`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from proximo.algorithms.base import OnPolicy
from proximo.algorithms.ppo import PPO
from proximo.commands.arguments import allow_code, parse
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
from proximo.run.presets import Preset, find_preset, named_preset, presets

SHORT = arg(help_behavior_hint="")
"""Short for a setting of a section, which shows the default."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a policy and keep the run in a folder.

    Settings of a preset are used where there is one for the env; whatever is given here goes
    before them.
    """

    method: Annotated[Positional[str | None], arg(metavar="ALGORITHM", help_behavior_hint="")] = (
        None
    )
    """What to train with: reinforce, qac, a2c, trpo, ppo-penalty, ppo, or module:Class."""
    env_id: Annotated[Positional[str | None], arg(metavar="ENV", help_behavior_hint="")] = None
    """Where: a Gymnasium id such as CartPole-v1, or module:Class."""
    seed: Annotated[int | None, SHORT] = None
    """Seed of everything (short for --run.seed)."""
    total_steps: Annotated[int | None, SHORT] = None
    """Environment steps to train for (short for --run.total-steps)."""
    stop_at: Annotated[float | None, SHORT] = None
    """End early at this return (short for --run.stop-at)."""
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        arg(metavar="{auto,cpu,cuda,mps}", help_behavior_hint=""),
    ] = None
    """Where the networks live (short for --run.device)."""
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A new folder for the run; by default runs/ENV-ALGORITHM-seedS."""
    preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Settings by name; none: the plain defaults. By default those of ENV, if there are."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from this TOML file, such as a run folder's config.toml."""
    env_name: Annotated[str | None, arg(name="env", metavar="ENV", help_behavior_hint="")] = None
    """The env, where --config or --preset names one already."""
    net_name: Annotated[
        str | None, arg(name="net", metavar="module:Class", help_behavior_hint="")
    ] = None
    """A network of your own (short for --net.module)."""
    start: Annotated[Path | None, arg(name="from", metavar="RUN", help_behavior_hint="")] = None
    """Begin with the last policy of this run."""
    quiet: bool = False
    """Print nothing but errors."""
    algorithm: OnPolicy = field(default_factory=PPO)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    net: NetConfig = field(default_factory=NetConfig)
    run: RunConfig = field(default_factory=RunConfig)


def main(arguments: list[str]) -> int:
    # Beside it the other settings of the network are checked, which have no meaning without.
    arguments = [re.sub(r"^--net(?==|$)", "--net.module", word) for word in arguments]
    # Twice: first for what decides on the algorithm and the defaults, then with those.
    asks = [word for word in arguments if word in ("-h", "--help")]
    words = [word for word in arguments if word not in asks]
    named = next((word for word in words if not word.startswith("-")), "")
    own = check_algorithm(find(named)) if is_code(named) else None
    chosen = parse(_command(_any_algorithm(own)), "train", words)
    base, preset = _base(chosen, own, asks=bool(asks))
    sections = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    command = _command(type(base.algorithm), _defaults(chosen, preset))
    final = parse(command, "train", arguments, command(**sections))
    config = _config(final, chosen.net.module, arguments)

    from proximo.commands.running import begin

    return begin(config, preset, run_dir=final.run_dir, start=final.start, quiet=final.quiet)


def _defaults(chosen: Train, preset: Preset | None) -> str:
    """What the help says of the defaults that it shows."""
    if chosen.config is not None:
        return f"The defaults below are those of {chosen.config}."
    if preset:
        return f"The defaults below are those of the preset {preset.name} ({preset.source})."
    return "The defaults below are those without a preset."


def _command(algorithm: type[OnPolicy], defaults: str = "") -> type[Train]:
    """The command with the flags of this algorithm; what its help says of their defaults."""
    own = ("algorithm", algorithm, field(default_factory=algorithm))
    made = dataclasses.make_dataclass("Train", [own], bases=(Train,), frozen=True, kw_only=True)
    made.__doc__ = f"{inspect.cleandoc(Train.__doc__ or '')}\n{defaults}"
    return made


def _any_algorithm(own: type[OnPolicy] | None = None) -> type[OnPolicy]:
    """Every flag of every algorithm, to read a line whose algorithm is not known yet.

    own: an algorithm of the user's own that the line names.
    """
    settings: dict[str, tuple[str, typing.Any, typing.Any]] = {}
    for algorithm in (*ALGORITHMS.values(), *([own] if own else [])):
        hints = typing.get_type_hints(algorithm)
        for f in dataclasses.fields(algorithm):
            # Its default is not known yet, and so is not shown.
            setting = (f.name, Annotated[hints[f.name], SHORT], field(default=f.default))
            settings.setdefault(f.name, setting)
    return dataclasses.make_dataclass("AnyAlgorithm", settings.values(), frozen=True, kw_only=True)


def _base(chosen: Train, own: type[OnPolicy] | None, *, asks: bool) -> tuple[Config, Preset | None]:
    """What the arguments are laid over: a file, a preset or the defaults. asks: for help.

    own: an algorithm of the user's own that the line names.
    """
    if chosen.config is not None:
        if chosen.preset is not None:
            raise UsageError("--config and --preset both give all settings: use one of them")
        config = with_code(read_config(chosen.config), own)
        if isinstance(config.algorithm, UnimportedAlgorithm):
            code = [config.algorithm.own] if config.algorithm.own else config.algorithm.schedules
            raise UsageError(
                f"{chosen.config} names code, {' and '.join(code)}: importing it needs your word. "
                "If you trust it, name the algorithm again, as in: proximo train module:Class "
                f"--config {chosen.config}; take a schedule out of the file, and give it by its "
                "flag"
            )
        kind = own or (algorithm_type(chosen.method) if chosen.method else None)
        if kind and kind is not type(config.algorithm):
            raise UsageError(
                f"{chosen.config} is for {config.algorithm.name}, not {chosen.method}: leave the "
                "algorithm out, or begin without --config"
            )
        return config, None
    env_id = chosen.env_id or chosen.env_name
    if chosen.method and env_id is None and chosen.preset is None and "-v" in chosen.method:
        raise UsageError(
            f"there is no algorithm {chosen.method!r}: name one before the env, as in: "
            f"proximo train ppo {chosen.method}"
        )
    if chosen.method is None and chosen.preset in (None, "none") and not asks:
        names = ", ".join(preset.name for preset in presets())
        raise UsageError(
            "name an algorithm and an env, as in: proximo train ppo CartPole-v1 "
            f"(or --config FILE, or --preset with one of {names})"
        )
    if own:
        name, env = {"name": chosen.method}, {"id": env_id or ""}
        return from_tables({"algorithm": name, "env": env}, own), None
    preset = None
    method = algorithm_type(chosen.method).name if chosen.method else None
    if chosen.preset is None:
        preset = find_preset(method or "", env_id or "")
    elif chosen.preset != "none":
        preset = named_preset(chosen.preset)
    if preset and method not in (None, preset.algorithm):
        raise UsageError(f"the preset {preset.name} is for {preset.algorithm}, not {method}")
    plain = {"algorithm": {"name": method or PPO.name}}
    tables = {name: dict(table) for name, table in (preset.tables if preset else plain).items()}
    tables.setdefault("env", {})["id"] = env_id or (preset.envs[0] if preset else "")
    return from_tables(tables), preset


def _config(final: Train, net: str, arguments: list[str]) -> Config:
    """net: the module that the command line names."""
    one_env = final.env_id or final.env_name
    env = dataclasses.replace(final.env, id=one_env) if one_env else final.env
    short = ("seed", "total_steps", "stop_at", "device")
    given = {name: getattr(final, name) for name in short if getattr(final, name) is not None}
    config = Config(
        algorithm=final.algorithm,
        rollout=final.rollout,
        env=env,
        net=final.net,
        run=dataclasses.replace(final.run, **given),
    )
    config.check()
    if not config.env.id:
        raise UsageError("name an env, as in: proximo train ppo CartPole-v1")
    if final.config is not None:
        words = {word.partition("=")[0] for word in arguments}
        wrappers = env.wrappers if "--env.wrappers" in words else ()
        named = env.id if "--env.id" in words else one_env
        callbacks = config.run.callbacks if "--run.callbacks" in words else ()
        code = Named(env=named, wrappers=wrappers, net=net or None, callbacks=callbacks)
        allow_code(config, code, ("env", "wrappers", "net", "callbacks"), "train", arguments)
    return config
