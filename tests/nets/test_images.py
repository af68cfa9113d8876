"""Images of every layout are one and the same image to the convolutions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional

from proximo import (
    PPO,
    EnvConfig,
    NetConfig,
    RolloutConfig,
    RunConfig,
    UsageError,
    load,
    resume,
    train,
)
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.bodies import Encoder, Pixels
from proximo.spaces import Observations

COLOUR, GREY = (3, 40, 44), (40, 44)


def bytes_of(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def box(shape):
    return gym.spaces.Box(0, 255, shape, np.uint8)


def features(shape, image, like=None):
    torch.manual_seed(0)
    pixels = Pixels(shape, NetConfig())
    if like is not None:
        pixels.load_state_dict(like.state_dict())
    with torch.no_grad():
        return pixels, pixels(torch.from_numpy(image))


def test_channels_first_and_last_are_the_same():
    image = bytes_of((2, *COLOUR))
    first, expected = features(COLOUR, image)
    _, found = features((40, 44, 3), np.moveaxis(image, 1, -1).copy(), first)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "last", "channels"),
    [
        ((84, 84, 3), True, 3),
        ((3, 84, 84), False, 3),
        ((4, 84, 84), False, 4),
        ((210, 160, 3), True, 3),
        ((3, 210, 160), False, 3),
        ((40, 44, 1), True, 1),
        ((12, 8, 8), False, 12),  # more channels than columns
        ((8, 8, 111), True, 111),
        ((8, 9, 12), False, 8),
        ((8, 5, 8), False, 8),
        ((6, 6, 6), False, 6),
        ((84, 84), False, 1),
        ((4, 84, 84, 3), True, 12),
        ((4, 84, 84, 1), True, 4),
        ((4, 3, 84, 84), False, 12),
        ((4, 12, 8, 8), False, 48),
    ],
)
def test_which_axis_holds_the_channels(shape, last, channels):
    pixels = Pixels(shape, NetConfig(orthogonal=False))
    assert (pixels.last, pixels.layers[0].in_channels) == (last, channels)
    assert pixels(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, pixels.outputs)


@pytest.mark.parametrize("last", [False, True])
def test_a_stack_has_the_channels_of_all_its_images(last):
    image = bytes_of((2, 4, *COLOUR))
    merged, expected = features((12, 40, 44), image.reshape(2, 12, 40, 44))
    shape = (4, 40, 44, 3) if last else (4, *COLOUR)
    stacked = np.moveaxis(image, 2, -1).copy() if last else image
    _, found = features(shape, stacked, merged)
    torch.testing.assert_close(found, expected)


def test_a_grey_picture_needs_no_axis_for_its_channel():
    image = bytes_of((2, *GREY))
    one, expected = features((1, *GREY), image[:, None])
    _, found = features(GREY, image, one)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        (COLOUR, True),
        ((40, 44, 3), True),
        ((4, 40, 44, 3), True),
        (GREY, True),
        ((8, 8), False),
        ((2, 3, 4), False),
        ((2, 2, 40, 40, 3), False),
        ((128,), False),
    ],
)
def test_what_counts_as_an_image(shape, image):
    row = Observations(box(shape))
    assert (row.leaves[0].image is not None) == image
    assert row.dtype == (np.uint8 if image else np.float32)
    policy = ActorCritic(box(shape), gym.spaces.Discrete(2), NetConfig(hidden=(8,)))
    assert isinstance(policy.actor, Encoder) == image
    seen = torch.from_numpy(row.row(bytes_of(shape)))[None]
    with torch.no_grad():
        assert torch.isfinite(policy.value(seen)).all()


def test_black_and_white_lie_between_0_and_1():
    pixels = Pixels((36, 36, 1), NetConfig())
    seen = []
    pixels.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    pixels(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 36, 36, 1))
    assert (float(seen[0].amin()), float(seen[0].amax())) == (0.0, 1.0)
    assert seen[0].dtype == torch.float32


def impala(x, weights):
    """The network of Espeholt et al. 2018, written out."""

    def conv(x):
        return functional.conv2d(x, next(weights), next(weights), padding=1)

    for _ in range(3):
        x = functional.max_pool2d(conv(x), 3, stride=2, padding=1)
        for _ in range(2):
            x = x + conv(conv(x.relu()).relu())
    return x.relu()


@pytest.mark.parametrize("shape", [(3, 40, 44), (3, 13, 7)])
@pytest.mark.parametrize("pool", ["flatten", "average"])
def test_impala_and_the_average_pool(shape, pool):
    pixels = Pixels(shape, NetConfig(cnn="impala", cnn_pool=pool))
    image = torch.from_numpy(bytes_of((2, *shape)))
    with torch.no_grad():
        expected = impala(image / 255, iter(pixels.parameters()))
        expected = expected.mean((2, 3)) if pool == "average" else expected.flatten(1)
        torch.testing.assert_close(pixels(image), expected, rtol=1e-3, atol=1e-3)
    assert expected.shape == (2, pixels.outputs)
    assert pixels.outputs == (
        32 if pool == "average" else 32 * -(-shape[1] // 8) * -(-shape[2] // 8)
    )


def test_nature_needs_its_pixels():
    with pytest.raises(UsageError, match="needs 36 pixels a side, but an image has 20 x 24"):
        Pixels((3, 20, 24), NetConfig(cnn="nature"))
    assert Pixels((3, 40, 44), NetConfig(cnn="small")).outputs == 32 * 40 * 44


class Blink(gym.Env):
    """An image that is dark or bright; to say which pays."""

    observation_space = box((6, 6, 1))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        self.bright = int(self.np_random.integers(2))
        return np.full((6, 6, 1), 200 if self.bright else 20, np.uint8)

    def step(self, action):
        paid, self.time = float(action == self.bright), self.time + 1
        return self.see(), paid, self.time == 8, False, {}


def test_bfloat16_is_close_and_only_for_images(tmp_path):
    spaces = box((3, 40, 44)), gym.spaces.Discrete(3)
    policy = ActorCritic(*spaces, NetConfig(hidden=(32,)))
    obs = torch.from_numpy(bytes_of((4, 3, 40, 44)))
    exact, before = policy.value(obs), policy.distribution(obs).parameters
    policy.compute_in("bfloat16")
    rounded = policy.value(obs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    rounded.sum().backward()
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    policy.compute_in("float32")
    assert torch.equal(policy.distribution(obs).parameters, before)
    bfloat16 = RunConfig(dtype="bfloat16", total_steps=256, seed=1)
    with pytest.raises(UsageError, match="layers over images, and there are none: leave it out"):
        train("CartPole-v1", PPO(), run_config=bfloat16)
    settings = {"rollout": RolloutConfig(steps=32), "net": NetConfig(hidden=(16,))}
    env = EnvConfig(id=f"{__name__}:Blink", num_envs=2, check=False)
    folder = tmp_path / "run"
    agent = train(env, PPO(minibatch_size=32), run_config=bfloat16, run_dir=folder, **settings)
    assert agent.policy.actor.half_precision
    again = load(folder)
    assert again.policy.actor.half_precision


def test_a_run_learns_and_resumes_with_them(tmp_path):
    def go(steps, **more):
        return train(
            EnvConfig(id=f"{__name__}:Blink", num_envs=2, check=False),
            PPO(minibatch_size=32, learning_rate=1e-3),
            rollout=RolloutConfig(steps=32),
            net=NetConfig(
                cnn="impala",
                cnn_pool="average",
                hidden=(16,),
                activation="relu",
                trunk="shared",
            ),
            total_steps=steps,
            seed=1,
            **more,
        )

    straight = go(640)
    assert straight.result["return_mean"] > 5  # of 8; at random: 4
    go(320, run_dir=tmp_path / "run")
    again = resume(tmp_path / "run", total_steps=640, env=f"{__name__}:Blink")
    for a, b in zip(straight.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)
