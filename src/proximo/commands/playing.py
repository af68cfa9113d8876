"""`proximo play`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from proximo.commands.arguments import allow_code, check_spaces, parse
from proximo.types import UsageError

if TYPE_CHECKING:
    import gymnasium as gym

    from proximo.agent import Agent

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
    checkpoint: Literal["last", "best"] = "last"
    """Which policy."""
    stochastic: bool = False
    """Draw actions from the policy instead of taking the most likely one."""
    env: Annotated[str | None, arg(metavar="ENV", help_behavior_hint="")] = None
    """The world, which a run in code of your own (module:Class) needs to hear again."""


def main(arguments: list[str]) -> int:
    command = parse(Play, "play", arguments)
    if command.episodes < 1:
        raise UsageError(f"--episodes is {command.episodes}: give at least 1")
    if command.seed < 0:
        raise UsageError(f"--seed is {command.seed}: give 0 or more")
    if command.video and command.video.suffix not in (".gif", ".mp4"):
        raise UsageError(f"--video is {command.video}: its name must end in .gif or .mp4")
    if command.video and not command.video.parent.is_dir():
        raise UsageError(f"--video is {command.video}: there is no folder {command.video.parent}")
    if command.video:
        # Said before the world is made: SDL and MuJoCo look for a display when they are loaded.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")

    from proximo.agent import load
    from proximo.envs.make import make_world

    agent = load(command.run, command.checkpoint)
    config = allow_code(agent.config, command.env, "play", arguments)
    world = make_world(config.env, render_mode="rgb_array" if command.video else "human")
    try:
        check_spaces(world, agent)
        _play(command, agent, world)
    finally:
        world.close()
    return 0


def _picture(world: gym.Env) -> np.ndarray:
    return np.asarray(world.render())


def _play(command: Play, agent: Agent, world: gym.Env) -> None:
    from proximo.commands.pictures import write_video

    frames = []
    for index in range(command.episodes):
        obs, _ = world.reset(seed=command.seed + index)
        ret, over = 0.0, False
        while not over:
            if command.video:
                frames.append(_picture(world))
            action = agent.act(obs, deterministic=not command.stochastic)
            obs, reward, terminated, truncated, _ = world.step(action)
            ret, over = ret + float(reward), terminated or truncated
        if command.video:
            frames.append(_picture(world))
        print(f"episode {index + 1} (seed {command.seed + index}): return {ret:.2f}")
    if command.video:
        rate = float(world.metadata.get("render_fps", 30))
        write_video(command.video, frames, rate)
        print(f"{len(frames)} frames in {command.video}")
