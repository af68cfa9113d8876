"""Atari games of the Arcade Learning Environment, as its own native vector env steps them.

Machado et al. 2018 (arXiv 1709.06009) and Mnih et al. 2015: four frames per action, the maximum of
the last two, grey, 84 x 84, the last four stacked; up to 30 idle frames and, where a game waits for
it, FIRE at the beginning; an action sticks with probability 0.25.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from proximo.envs.base import Envs, episode_seed
from proximo.envs.config import EnvConfig
from proximo.envs.layers import close_all
from proximo.errors import UsageError, explained
from proximo.types import EnvState, RolloutBuffer

REFUSED = {
    "autoreset_mode": "the envs are reset here",
    "batch_size": "all envs are stepped together",
    "episodic_life": "it begins a whole new game after each life: use life_loss_info, which lets "
    "the game go on",
    "num_envs": "use env.num_envs",
    "num_threads": "use env.threads",
    "reward_clipping": "use env.reward_clip, which leaves the logged scores whole",
}
"""Arguments of the native env that are set here, and what to do instead."""
SEEDS = 2**31
"""How many seeds a game knows."""
FRAMES = 4
"""Frames that an action lasts, unless `frameskip` says otherwise."""


def _make(env: EnvConfig, num_envs: int, threads: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    for name, instead in REFUSED.items():
        if name in env.kwargs:
            raise UsageError(f"env.kwargs.{name} is not for {env.id}: {instead}")
    given: dict[str, Any] = {**env.kwargs, **kwargs}
    if env.max_episode_steps is not None:
        frames = env.max_episode_steps * int(given.get("frameskip", FRAMES))
        given["max_num_frames_per_episode"] = frames
    with explained(f"{env.id} cannot be made"):
        made: VectorEnv[Any, Any, Any] = gym.make_vec(
            env.id,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            reward_clipping=False,
            num_threads=min(threads, num_envs),
            **given,
        )
    return made


class ArcadeEnvs(Envs):
    """N games, stepped in C++, each episode from its own seed, so that they can be replayed.

    With the argument `life_loss_info` nothing is bootstrapped across a lost life, although the
    game, and the return that is logged, continue.
    """

    replayable = True

    def __init__(self, env: EnvConfig, seed: int, threads: int) -> None:
        self._games, self._seed = _make(env, env.num_envs, threads), seed
        spaces = self._games.single_observation_space, self._games.single_action_space
        super().__init__(env.num_envs, *spaces)
        self._lives = np.zeros(env.num_envs, np.int64)
        self._goes_on = bool(env.kwargs.get("life_loss_info"))  # after the loss of a life

    def _begin(self, state: EnvState, begun: np.ndarray) -> np.ndarray:
        numbers = [(int(i), int(state.episode[i])) for i in np.flatnonzero(begun)]
        seeds: Any = np.array([episode_seed(self._seed, *pair) % SEEDS for pair in numbers])
        obs, info = self._games.reset(seed=seeds, options={"reset_mask": begun})
        self._lives = np.where(begun, info["lives"], self._lives)
        return np.array(obs)

    def step(self, state: EnvState, buffer: RolloutBuffer, t: int) -> None:
        action = buffer.env_action[t].copy()
        obs, buffer.reward[t], terminated, truncated, info = self._games.step(action)
        lives = info["lives"]
        lost = terminated & (lives > 0) & (lives < self._lives) & self._goes_on
        over = (terminated & ~lost) | truncated
        self._lives = lives.copy()
        buffer.obs[t + 1] = obs
        buffer.terminated[t], buffer.done[t] = terminated, over | lost
        if over.any():
            buffer.final_obs.extend((t, int(i), obs[i].copy()) for i in np.flatnonzero(over))
            state.episode += over
            buffer.obs[t + 1] = self._begin(state, over)

    def _begins(self, buffer: RolloutBuffer) -> np.ndarray:
        """[N] steps before the running game, which a lost life does not end."""
        begin = np.zeros(self.count, np.int64)
        for t, i, _ in buffer.final_obs:
            begin[i] = t + 1
        return begin

    def _bring_back(self, state: EnvState) -> bool:
        logs = [np.concatenate(log) if log else np.empty(0, np.int64) for log in state.actions]
        lengths = np.array([len(log) for log in logs])
        longest = int(lengths.max())
        obs = self._begin(state, np.ones(self.count, bool))
        # They end together, so those with less behind them begin later, and idle until then.
        for t in range(longest):
            waiting = longest - lengths - t
            if t and (waiting == 0).any():
                self._begin(state, waiting == 0)
            actions = [log[-w] if w <= 0 else 0 for log, w in zip(logs, waiting, strict=True)]
            obs, _, _, _, info = self._games.step(np.array(actions))
            self._lives = info["lives"]
        if longest and (lengths == 0).any():
            obs = self._begin(state, lengths == 0)
        return np.array_equal(obs, state.obs)

    def _close(self) -> list[str]:
        return close_all([self._games])


class Arcade(gym.Env[Any, Any]):
    """One game as a single env. Its screen is that of a copy in colour and full size."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 as Gymnasium has it

    def __init__(self, env: EnvConfig, render_mode: str | None = None) -> None:
        self._game = _make(env, 1, 1)
        self.observation_space = self._game.single_observation_space
        self.action_space = self._game.single_action_space
        self.spec, self.render_mode = gym.spec(env.id), render_mode
        colour = {"grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}
        self._screen = None if render_mode is None else _make(env, 1, 1, **colour)
        self._lives, self._goes_on = 0, bool(env.kwargs.get("life_loss_info"))
        self._frame: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        number = int(self.np_random.integers(SEEDS)) if seed is None else seed % SEEDS
        seeds: Any = np.array([number])
        obs, info = self._game.reset(seed=seeds)
        self._lives = int(info["lives"][0])
        if self._screen is not None:
            self._frame = self._screen.reset(seed=seeds)[0][0, 0]
        return obs[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        actions = np.array([action])
        obs, reward, terminated, truncated, info = self._game.step(actions)
        lives = int(info["lives"][0])
        lost, self._lives = self._goes_on and 0 < lives < self._lives, lives
        if self._screen is not None:
            self._frame = self._screen.step(actions)[0][0, 0]
        over = bool(terminated[0]) and not lost
        return obs[0], float(reward[0]), over, bool(truncated[0]), {"lives": lives}

    def render(self) -> Any:
        return self._frame

    def close(self) -> None:
        for env in (self._game, self._screen):
            if env is not None:
                env.close()
