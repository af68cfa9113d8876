"""Observations and actions of every kind as rows of numbers, and back."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from proximo import NetConfig, train
from proximo.envs.testing import probes
from proximo.errors import UsageError
from proximo.spaces import MASK, Actions, Observations

NESTED = spaces.Dict(
    {
        "place": spaces.Box(-1, 1, (2, 2), np.float64),
        "room": spaces.Discrete(3, start=5),
        "keys": spaces.MultiBinary(2),
        "dice": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Box(0, 255, (1,), np.uint8)]),
        MASK: spaces.MultiBinary(4),
    }
)


def test_a_nested_observation_lies_leaf_by_leaf_with_the_mask_last():
    rows = Observations(NESTED)
    seen = {
        "place": np.array([[0.1, 0.2], [0.3, 0.4]]),
        "room": 6,
        "keys": np.array([1, 0], np.int8),
        "dice": (np.array([1, 0]), np.array([7], np.uint8)),
        MASK: np.array([1, 0, 0, 1], np.int8),
    }
    row = rows.row(seen)
    assert row.dtype == np.float32
    by_name = {leaf.name: row[leaf.begin : leaf.end].tolist() for leaf in rows.leaves}
    assert by_name == {
        "dice/0": [0, 1, 1, 0, 0],
        "dice/1": [7],
        "keys": [1, 0],
        "place": pytest.approx([0.1, 0.2, 0.3, 0.4]),
        "room": [0, 1, 0],
        MASK: [1, 0, 0, 1],
    }
    assert rows.mask_begin == rows.width - 4
    assert rows.leaves[-1].name == MASK
    measured = {leaf.name for leaf in rows.leaves if rows.measured[leaf.begin]}
    assert measured == {"dice/1", "place"}


def test_a_vector_and_an_image_stay_as_they_are():
    vector = Observations(spaces.Box(-1, 1, (3,), np.float64))
    assert (vector.plain, vector.shape, vector.dtype) == (True, (3,), np.float64)
    image = Observations(spaces.Box(0, 255, (84, 84, 4), np.uint8))
    assert (image.plain, image.shape, image.dtype) == (True, (84, 84, 4), np.uint8)
    assert not image.measured.any()


def test_what_is_too_small_for_an_image_is_a_row():
    grid = Observations(spaces.Box(0, 255, (3, 3, 3), np.uint8))
    assert (grid.plain, grid.shape) == (False, (27,))


@pytest.mark.parametrize("space", [NESTED, spaces.Discrete(4), spaces.MultiDiscrete([[2, 3]])])
def test_a_batch_is_as_its_rows(space):
    space.seed(1)
    rows, samples = Observations(space), [space.sample() for _ in range(5)]
    batch = gym.vector.utils.create_empty_array(space, 5)
    batch = gym.vector.utils.concatenate(space, samples, batch)
    found = np.empty((5, *rows.shape), rows.dtype)
    rows.write(batch, found)
    np.testing.assert_array_equal(found, np.stack([rows.row(sample) for sample in samples]))


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Text(3), "Text"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "observation space at a is"),
        (spaces.Dict({MASK: spaces.MultiBinary(2)}), "nothing to see"),
    ],
)
def test_other_spaces_are_refused_by_name(space, part):
    with pytest.raises(UsageError, match=part):
        Observations(space)


@pytest.mark.parametrize(
    ("seen", "part"),
    [
        ({"room": 1}, "without 'place'"),
        ({"place": np.zeros(3), "room": 1}, r"place of shape \(3,\)"),
        ({"place": np.zeros(2), "room": 3}, "room = 3, which is not in Discrete"),
        ({"place": np.zeros(2), "room": -1}, "room = -1"),
    ],
)
def test_a_misfit_is_named(seen, part):
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(3)})
    with pytest.raises(UsageError, match=part):
        Observations(space).row(seen)


simple = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 5), start=st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(
        spaces.Box,
        st.just(-2.0),
        st.just(3.0),
        st.lists(st.integers(1, 3), max_size=2).map(tuple),
    ),
)
nested = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def flat(nested):
    """The numbers of an action, in the order of its leaves."""
    if isinstance(nested, dict):
        nested = tuple(nested.values())
    if isinstance(nested, tuple):
        return [x for part in nested for x in flat(part)]
    return np.asarray(nested, np.float64).reshape(-1).tolist()


@given(space=nested, seed=st.integers(0, 1000))
def test_an_action_comes_back_from_its_row(space, seed):
    space.seed(seed)
    action, actions = space.sample(), Actions(space)
    if actions.single:
        assert actions.nested(action) is action
        return
    found = actions.nested(np.array(flat(action)))
    assert space.contains(found)
    assert flat(found) == flat(action)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (), np.float32),
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.MultiBinary(()),
        spaces.Discrete(3),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64)}),
    ],
    ids=str,
)
def test_what_an_env_is_given_is_its_own(space):
    actions = Actions(space)
    batch = np.zeros((4, *(actions.shape or ())), actions.dtype)
    for row in (batch, batch[0]):
        told = actions.given(row)
        told = told["a"] if isinstance(told, dict) else told
        assert not np.shares_memory(told, batch)


@given(space=nested, seed=st.integers(0, 1000))
def test_every_observation_has_a_row(space, seed):
    space.seed(seed)
    rows = Observations(space)
    row = rows.row(space.sample())
    assert row.shape == rows.shape
    assert np.isfinite(row).all()


def test_bytes_that_are_no_image_are_numbers():
    """Such as the memory of an Atari console."""

    class Console(probes.Match):
        def __init__(self):
            super().__init__("vector", "discrete")
            self.observation_space = gym.spaces.Box(0, 255, (3,), np.uint8)

        def observe(self):
            return (255 * np.eye(3)[self._symbol]).astype(np.uint8)

    agent = train(Console, total_steps=256, num_envs=2, net=NetConfig(normalize_obs=True))
    assert agent.act(np.array([0, 255, 0], np.uint8)) in (1, 2, 3)
    row = Observations(gym.spaces.Box(0, 255, (3,), np.uint8))
    assert row.dtype == np.float32
    assert row.measured.all()
