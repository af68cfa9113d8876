"""What a policy cannot act in is refused by its place in the action space."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from proximo import NetConfig, UsageError
from proximo.nets.heads import make_head

BOUNDED, ENDLESS = spaces.Box(-1, 1, (2,)), spaces.Box(-np.inf, np.inf, (2,))


def nested(space: gym.Space) -> spaces.Dict:
    return spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([BOUNDED, space])})


@pytest.mark.parametrize(
    ("space", "net", "message"),
    [
        (ENDLESS, {"action": "squash"}, r"is squash, but the action space{}, .* has no bounds"),
        (ENDLESS, {"mean": "tanh"}, r"is tanh, but the action space{}, .* has no bounds"),
        (spaces.Box(0, 5, (2,), np.int64), {}, r"^the action space{} is Box\(0, 5, .*int64\)"),
        (spaces.Sequence(BOUNDED), {}, r"^the action space{} is Sequence"),
        (spaces.Text(3), {}, r"^the action space{} is Text"),
    ],
)
def test_parts_of_an_action_that_will_not_do_are_named(space, net, message):
    for whole, where in ((space, ""), (nested(space), " at b/1")):
        with pytest.raises(UsageError, match=message.format(where)):
            make_head(whole, NetConfig(**net), 4)
