"""`proximo play`."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from proximo.commands.arguments import optional, parse, show
from proximo.commands.stored import OfEpisodes
from proximo.disk import warn
from proximo.errors import UsageError, explained
from proximo.run.folder import RunFolder

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Play(OfEpisodes):
    """Show a trained policy on screen, or write a video of it.

    Episodes start from the same seeds as those of `proximo eval`. A video needs no display.
    """

    video: Annotated[Path | None, optional("FILE")] = None
    """Write a .gif or .mp4 here instead of opening a window."""
    overlay: bool = False
    """Draw return, value estimate and action probabilities beside the frames of the video."""
    episodes: int = 1
    """Number of episodes."""


def main(arguments: list[str]) -> int:
    command = parse(Play, "play", arguments)
    if command.video and command.video.suffix not in (".gif", ".mp4"):
        raise UsageError(f"--video is {command.video}: its name must end in .gif or .mp4")
    if command.video and not command.video.parent.is_dir():
        raise UsageError(f"--video is {command.video}: there is no folder {command.video.parent}")
    if command.overlay and not command.video:
        raise UsageError("--overlay draws beside the frames of a video: give --video FILE too")
    if command.video:
        need_no_display()
    video = command.video and command.video.absolute()  # an env may change the current folder

    folder = RunFolder.open(command.run)
    folder.read_config()  # what is wrong with it is said first
    if not command.video and sys.platform == "linux" and not _has_display():
        raise UsageError("there is no display here: write a video instead, with --video FILE.gif")
    mode = "rgb_array" if command.video else "human"
    with command.opened("play", arguments, "shown", mode) as (agent, env, config):
        _play(command, agent, env, metadata_of(env, mode), command.limit(config), video)
    if video:
        from proximo.run.trackers import show_video

        show_video(folder, config, video, warn)
    return 0


def need_no_display() -> None:
    """Before an env is made: SDL and MuJoCo look for a display when they are loaded."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def metadata_of(env: gym.Env, mode: str) -> dict[str, Any]:
    """Metadata of an env. Raises `UsageError` where they fail, or exclude this render_mode."""
    from gymnasium.wrappers import HumanRendering

    from proximo.envs.layers import layers, title

    with explained(f"{title(env)} failed at its metadata"):
        metadata = env.metadata if isinstance(env.metadata, dict) else {}
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
    return metadata


def _has_display() -> bool:
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))


def _play(
    command: Play,
    agent: Agent,
    env: gym.Env,
    metadata: dict[str, Any],
    limit: int,
    path: Path | None,
) -> None:
    """`path`: the absolute path of the video, if one is written."""
    from proximo.commands.overlay import Overlay
    from proximo.commands.video import Video, frame_rate
    from proximo.envs.make import in_step
    from proximo.evaluation import EpisodePlayer, unwatched

    rate, warning = frame_rate(metadata)
    video = Video(path, rate, env) if path else None
    player = EpisodePlayer(in_step([env]))
    overlay = Overlay(agent, player, video, env) if command.overlay and video else None
    watcher = overlay or video
    watch = (lambda episode: watcher.watch()) if watcher else unwatched  # a window draws itself
    with video or contextlib.nullcontext():
        for number in range(command.episodes):
            seed = command.seed + number
            if overlay:
                overlay.begin(f"episode {number + 1}, " if command.episodes > 1 else "")
            scores = player.play(
                agent.policy,
                episodes=1,
                seed=seed,
                deterministic=not command.stochastic,
                limit=limit,
                watch=watch,
            )
            if overlay:
                overlay.end()
            returns = ", ".join(f"{episode.ret:.2f}" for episode in scores.episodes)
            end = f", cut off after {limit:,} steps (--max-episode-steps)" if scores.cut else ""
            show(f"episode {number + 1} (seed {seed}): return {returns}{end}")
    if video:
        show(f"{video.frames} states in {command.video}{warning and f'; {warning}'}")
