"""`proximo play`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from proximo.commands.arguments import allow_code, closing, parse, show
from proximo.disk import warn
from proximo.errors import UsageError, explain, faults

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.agent import Agent
    from proximo.run.config import Config

SEED = 1_000_000
"""The first episode of `proximo eval` too: what is shown is what was scored."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """Show a trained policy on screen, or write a video of it.

    Writing a video needs no display.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    video: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write a .gif or .mp4 here instead of opening a window."""
    episodes: int = 1
    """Number of episodes."""
    seed: int = SEED
    """Seed of the first episode; each further one counts up by one."""
    max_episode_steps: int | None = None
    """Steps after which an episode is cut off; by default as in `proximo eval`."""
    checkpoint: Literal["last", "best"] = "last"
    """Which policy."""
    stochastic: bool = False
    """Draw actions from the policy instead of taking the most likely one."""
    env: Annotated[str | None, arg(metavar="ENV", help_behavior_hint="")] = None
    """The env, which a run in code of your own (module:Class) needs to hear again."""
    wrappers: Annotated[tuple[str, ...], arg(metavar="WRAPPER ...", help_behavior_hint="")] = ()
    """Its wrappers, in the same way."""
    net: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The network, where it is code of your own, which needs to be said again."""
    algorithm: Annotated[str | None, arg(metavar="module:Class", help_behavior_hint="")] = None
    """The algorithm, in the same way."""


def main(arguments: list[str]) -> int:
    command = parse(Play, "play", arguments)
    if command.episodes < 1:
        raise UsageError(f"--episodes is {command.episodes}: give at least 1")
    if command.seed < 0:
        raise UsageError(f"--seed is {command.seed}: give 0 or more")
    if command.max_episode_steps is not None and command.max_episode_steps < 1:
        raise UsageError(f"--max-episode-steps is {command.max_episode_steps}: give at least 1")
    if command.video and command.video.suffix not in (".gif", ".mp4"):
        raise UsageError(f"--video is {command.video}: its name must end in .gif or .mp4")
    if command.video and not command.video.parent.is_dir():
        raise UsageError(f"--video is {command.video}: there is no folder {command.video.parent}")
    if command.video:
        # Said before the env is made: SDL and MuJoCo look for a display when they are loaded.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")
    video = command.video and command.video.absolute()  # an env may change the current folder

    from proximo.agent import check_spaces, load
    from proximo.envs.check import running_statistics
    from proximo.envs.make import make_env
    from proximo.run.consent import Named
    from proximo.run.folder import RunFolder

    saved = RunFolder.open(command.run).read_config()
    named = Named(
        env=command.env,
        wrappers=command.wrappers,
        net=command.net,
        algorithm=command.algorithm,
    )
    parts = ("env", "wrappers", "net", "algorithm")
    config = allow_code(saved, named, parts, "play", arguments)
    agent = load(command.run, command.checkpoint, net=command.net, algorithm=command.algorithm)
    if not command.video and sys.platform == "linux" and not _has_display():
        raise UsageError("there is no display here: write a video instead, with --video FILE.gif")
    mode = "rgb_array" if command.video else "human"
    env = make_env(config.env, render_mode=mode)
    with closing(env):
        check_spaces(env, agent)
        metadata = _metadata(env)
        _check_mode(env, metadata, mode)
        if found := running_statistics(env):
            warn(f"what is shown is not what was trained: {found}")
        _play(command, agent, env, metadata, config, video)
    return 0


def _metadata(env: gym.Env) -> dict[str, Any]:
    """What an env says of itself. Raises `UsageError` where that fails."""
    from proximo.envs.layers import title

    try:
        found = env.metadata
    except faults() as error:
        raise UsageError(f"{title(env)} failed at its metadata: {explain(error)}") from error
    return found if isinstance(found, dict) else {}


def _check_mode(env: gym.Env, metadata: dict[str, Any], mode: str) -> None:
    """Raises `UsageError` for an env that says that it cannot be shown so."""
    from gymnasium.wrappers import HumanRendering

    from proximo.envs.layers import layers, title

    modes = metadata.get("render_modes")
    drawn = any(isinstance(layer, HumanRendering) for layer in layers(env))
    if isinstance(modes, list | tuple) and modes and mode not in modes and not drawn:
        remedy = "give it one that draws, and name it there"
        if mode == "human" and "rgb_array" in modes:
            remedy = "write a video instead, with --video FILE.gif"
        raise UsageError(
            f"{title(env)} cannot be shown by render_mode {mode}: the render_modes of its "
            f"metadata are {', '.join(map(str, modes))}; {remedy}"
        )


def _has_display() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def _play(
    command: Play,
    agent: Agent,
    env: gym.Env,
    metadata: dict[str, Any],
    config: Config,
    path: Path | None,
) -> None:
    """path: where a video is to be written."""
    from proximo.commands.pictures import Video, frame_rate
    from proximo.envs.make import in_step
    from proximo.evaluation import EpisodePlayer, step_limit, unwatched

    limit = step_limit(config.env, command.max_episode_steps or config.run.eval_max_episode_steps)
    rate, said = frame_rate(metadata)
    video = Video(path, rate, env) if path else None
    player = EpisodePlayer(in_step([env]))
    try:
        for number in range(command.episodes):
            seed = command.seed + number
            watch = (lambda episode: video.watch()) if video else unwatched
            scores = player.play(
                agent.policy,
                episodes=1,
                seed=seed,
                deterministic=not command.stochastic,
                limit=limit,
                watch=watch,
            )
            returns = ", ".join(f"{episode.ret:.2f}" for episode in scores.episodes)
            end = f", cut off after {limit:,} steps (--max-episode-steps)" if scores.cut else ""
            show(f"episode {number + 1} (seed {seed}): return {returns}{end}")
        if video:
            video.close()
    except BaseException:
        if video:
            video.discard()
        raise
    if video:
        show(f"{video.frames} states in {command.video}{said and f'; {said}'}")
