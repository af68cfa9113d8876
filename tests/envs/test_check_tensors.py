"""What the check of an env says of images that are no bytes, and of tensors with a gradient."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from proximo import UsageError
from proximo.envs.check import check_env


class Shown(gym.Env):
    """Shows the same at every step."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, seen=None, reward=0.0):
        self.observation_space, self.reward = space, reward
        self.seen = np.zeros(space.shape, space.dtype) if seen is None else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen, {}

    def step(self, action):
        self.time += 1
        return self.seen, self.reward, self.time == 5, False, {}


@pytest.mark.parametrize(
    ("space", "noted"),
    [
        (spaces.Box(0, 255, (24, 24, 3), np.float32), True),
        (spaces.Box(0, 1, (3, 24, 24), np.float32), True),
        (spaces.Box(0, 1, (84, 84, 1), np.float64), True),
        (spaces.Box(0, 255, (24, 24, 3), np.uint8), False),
        (spaces.Box(-1, 1, (4, 5, 6), np.float32), False),
        (spaces.Box(-1, 1, (24, 24), np.float32), False),
        (spaces.Box(-1, 1, (24, 3, 24), np.float32), False),
    ],
)
def test_an_image_of_floats_is_noted(space, noted):
    notes = [note for note in check_env(Shown(space)).notes if "image" in note]
    assert len(notes) == noted
    assert all("dtype=np.uint8" in note for note in notes)


@pytest.mark.parametrize(
    "given",
    [
        {"seen": torch.zeros(2, requires_grad=True)},
        {"reward": torch.tensor(1.0, requires_grad=True) * 1},
    ],
    ids=["observation", "reward"],
)
def test_a_tensor_that_needs_a_gradient_is_refused_by_name(given):
    with pytest.raises(UsageError, match=r"needs a gradient: give x\.detach\(\)"):
        check_env(Shown(spaces.Box(-1, 1, (2,), np.float32), **given))
