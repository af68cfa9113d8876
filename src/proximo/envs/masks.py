"""Action masks that stand in info, or come from a method, as part of the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from proximo.envs.layers import title
from proximo.errors import UsageError
from proximo.spaces import MASK, choices, flat_mask


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    """An env whose masks stand in its info, or come from a method, shown as an observation.

    They join the keys of a `Dict`; any other observation becomes the key `observation` beside them.
    """

    def __init__(self, env: gym.Env[Any, Any], source: str) -> None:
        super().__init__(env)
        seen, count, name = env.observation_space, choices(env.action_space), f"{MASK}s"
        self._joins = isinstance(seen, gym.spaces.Dict)
        shown = dict(seen.spaces) if isinstance(seen, gym.spaces.Dict) else {"observation": seen}
        wrong = ""
        if source == "method" and not env.has_wrapper_attr(name):
            wrong = f"{title(env)} has no method {name}(): give it one, or an observation with the "
            wrong += f"key {MASK}"
        elif not count:
            wrong = f"{env.action_space} has nothing to choose from: leave it out"
        elif MASK in shown:
            wrong = f"the observations of {title(env)} have the key {MASK} already: leave it out"
        if wrong:
            raise UsageError(f"env.action_masks is {source}, but {wrong}")
        self._method = env.get_wrapper_attr(name) if source == "method" else None
        self.observation_space = gym.spaces.Dict({**shown, MASK: gym.spaces.MultiBinary(count)})

    def _shown(self, seen: Any, info: dict[str, Any]) -> Any:
        if self._method is None and MASK not in info:
            raise UsageError(
                f"env.action_masks is info, but an env's info has no {MASK}: it has "
                f"{', '.join(map(str, info)) or 'nothing'}"
            )
        mask = flat_mask(self._method() if self._method else info[MASK], self.env.action_space)
        return {**(seen if self._joins else {"observation": seen}), MASK: mask}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(**kwargs)
        return self._shown(seen, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, over, cut, info = self.env.step(action)
        return self._shown(seen, info), reward, over, cut, info
