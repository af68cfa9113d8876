"""A space that is stored is the space: whatever Gymnasium can make comes back, and is acted in."""

import enum
import json
import sys
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.command_line import here, proximo, refusal, succeeded, train_in
from proximo import PPO, NetConfig, RolloutConfig, UsageError, load, train
from proximo.envs.watch import Sampler
from proximo.imports import import_module
from proximo.nets.heads import make_head
from proximo.run.checkpoint import Checkpoint, write
from proximo.spaces import (
    EXACT,
    MASK,
    WIDEST,
    Actions,
    EnumKey,
    Observations,
    check_columns,
    plain_key,
    recorded_space,
    space_record,
    strangers,
)

__all__ = ["here"]


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


class Gear(enum.IntEnum):
    LOW = 7
    HIGH = 8


class Word(str, enum.Enum):  # noqa: UP042  a StrEnum is spoken otherwise
    YES = "yes"


def stored(space):
    """The space after a journey through a file, or to another process."""
    return recorded_space(json.loads(json.dumps(space_record(space))))


def in_full(space):
    """All there is to a space, as far as one can see it."""
    kind = next(k for k in type(space).__mro__ if k.__module__.startswith("gymnasium.spaces"))
    about = [kind, space.shape, space.dtype, str(space.dtype)]
    if isinstance(space, spaces.Dict):
        return [*about, [(key, in_full(inner)) for key, inner in space.spaces.items()]]
    if isinstance(space, spaces.Tuple):
        return [*about, [in_full(inner) for inner in space.spaces]]
    names = ("n", "nvec", "start", "low", "high", "bounded_below", "bounded_above")
    found = [np.asarray(getattr(space, name, None)) for name in names]
    return [*about, type(getattr(space, "n", None)), *((x.dtype, x.tolist()) for x in found)]


WHOLE = st.sampled_from([f"{sign}{width}" for sign in ("int", "uint") for width in (8, 16, 32, 64)])
REAL = st.sampled_from(["float16", "float32", "float64", ">f4"])
BOOL = st.just("bool")
SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
KEYS = st.one_of(
    st.text(max_size=3),
    st.sampled_from(["a/b", "a.b", MASK, "", "0"]),
    st.integers(-2, 2),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.sampled_from([*Side, *Gear, *Word, np.int64(5), np.float64(0.5), np.str_("x")]),
    st.tuples(st.integers(0, 1), st.sampled_from(["u", Side.LEFT, (1, Word.YES)])),
)


def ends(kind, furthest, n):
    """The first and the last start of n choices."""
    held = np.iinfo(kind)
    return max(held.min, -furthest), min(held.max - n + 1, furthest - n)


@st.composite
def discretes(draw, furthest=2**63):
    kind, n = np.dtype(draw(WHOLE)), draw(st.integers(1, 5))
    first, last = ends(kind, furthest, n)
    start = draw(st.sampled_from([0, 1, first, last]) | st.integers(first, last))
    return spaces.Discrete(n, start=start, dtype=kind)


@st.composite
def multi_discretes(draw, furthest=2**63):
    kind, shape = np.dtype(draw(WHOLE)), draw(SHAPES)
    size = int(np.prod(shape))
    many = st.lists(st.integers(1, 4), min_size=size, max_size=size)
    n = np.array(draw(many), kind).reshape(shape)
    if draw(st.booleans()):
        return spaces.MultiDiscrete(n, dtype=kind)
    start = draw(st.lists(st.integers(*ends(kind, furthest, 4)), min_size=size, max_size=size))
    return spaces.MultiDiscrete(n, start=np.array(start, kind).reshape(shape), dtype=kind)


multi_binaries = st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=3)).map(
    spaces.MultiBinary
)


@st.composite
def boxes(draw, kinds):
    kind, shape = np.dtype(draw(kinds)), draw(SHAPES)
    size = int(np.prod(shape))
    if kind.kind == "i" and draw(st.booleans()):  # integers without bounds: by a scalar alone
        return spaces.Box(*draw(st.sampled_from(ENDLESS)), shape, kind)
    if kind.kind == "f":
        number = st.floats(width=8 * kind.itemsize, allow_nan=False) | st.just(np.inf)
    elif kind.kind == "b":
        number = st.booleans()
    else:
        number = st.integers(np.iinfo(kind).min, np.iinfo(kind).max)
    pairs = [sorted((draw(number), draw(number))) for _ in range(size)]
    low, high = (np.array([pair[k] for pair in pairs], kind).reshape(shape) for k in (0, 1))
    return spaces.Box(low, high, dtype=kind)


ENDLESS = [(-np.inf, np.inf), (0, np.inf), (-np.inf, 100), (-5, 5)]


def nested(simple):
    def deeper(inner):
        pairs = st.lists(st.tuples(KEYS, inner), min_size=1, max_size=3)
        pairs = pairs.map(lambda found: list(dict(found).items()))
        return st.one_of(
            pairs.map(spaces.Dict),
            pairs.map(lambda found: spaces.Dict(OrderedDict(found))),
            pairs.map(lambda found: spaces.Dict(dict(found))),
            st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        )

    return st.recursive(simple, deeper, max_leaves=5)


ANY = nested(st.one_of(discretes(), multi_discretes(), multi_binaries, boxes(WHOLE | REAL | BOOL)))
ACTED = st.one_of(discretes(), multi_discretes()) | nested(
    st.one_of(
        discretes(EXACT - WIDEST),
        multi_discretes(EXACT - WIDEST),
        multi_binaries,
        boxes(REAL),
    )
)


@settings(max_examples=120)
@given(space=ANY)
def test_every_space_comes_back_as_it_was(space):
    found = stored(space)
    assert in_full(found) == in_full(space)
    assert found == space
    assert space == found
    assert space_record(found) == space_record(space)


@settings(max_examples=60)
@given(space=ANY, seed=st.integers(0, 99))
def test_a_space_that_came_back_shows_the_same_rows_under_the_same_names(space, seed):
    if isinstance(space, spaces.Dict) and list(space.spaces) == [MASK]:
        return  # nothing to see
    here = Observations(space)
    there = Observations(stored(space))
    drawn = here.draw(np.random.default_rng(seed), 1)
    seen = placed(
        space,
        iter(here.leaves),
        {leaf.path: x[0] for leaf, x in zip(here.leaves, drawn, strict=True)},
    )
    np.testing.assert_array_equal(there.row(seen), here.row(seen))
    assert [leaf.name for leaf in there.leaves] == [leaf.name for leaf in here.leaves]


def placed(space, leaves, parts, path=()):
    """The parts of an observation, nested as its space is."""
    if isinstance(space, spaces.Dict):
        return {k: placed(s, leaves, parts, (*path, k)) for k, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(placed(s, leaves, parts, (*path, k)) for k, s in enumerate(space.spaces))
    return parts[path]


def exactly_in(space, action):
    """An action of the space, in the very type, shape and order of keys that it says."""
    if isinstance(space, spaces.Dict):
        same = list(action) == list(space.spaces)
        return same and all(exactly_in(inner, action[key]) for key, inner in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return len(action) == len(space) and all(map(exactly_in, space.spaces, action))
    assert action.dtype == space.dtype.newbyteorder("=")
    return action.shape == space.shape and space.contains(action)


@settings(max_examples=60)
@given(space=ACTED, seed=st.integers(0, 99))
def test_policies_and_the_check_act_within_the_space_and_in_its_type(space, seed):
    actions = Actions(space)
    legal = Sampler(actions).draw(None, "here")
    assert exactly_in(space, actions.nested(legal.copy()))
    generator = torch.Generator().manual_seed(seed)
    for known in (space, stored(space)):
        head = make_head(known, NetConfig(), features=4)
        assert head.taken_dtype == Actions(known).dtype
        assert head.taken_shape == (Actions(known).shape or ())
        outputs = 3 * torch.randn(5, head.outputs, generator=generator)
        noise = head.noise(generator, (5,))
        distribution = head.distribution(outputs, None, outputs)
        for chosen in (distribution.mode(), distribution.sample(noise)):
            for row in head.to_env(chosen.detach()):
                assert exactly_in(space, Actions(known).nested(row))


def test_bounded_actions_of_every_width_lie_within_the_bounds():
    for kind in (np.float16, np.float32, np.float64):
        space = spaces.Box(np.array([-3, 0.1], kind), np.array([3e4, 0.3], kind), dtype=kind)
        for net in ({"action": "squash"}, {"action": "beta"}, {"mean": "tanh"}):
            head = make_head(space, NetConfig(**net), features=4)
            outputs = 50 * torch.randn(64, head.outputs)
            noise = head.noise(torch.Generator(), (64,))
            chosen = head.distribution(outputs, None, outputs).sample(noise).detach()
            assert all(exactly_in(space, row) for row in head.to_env(chosen))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_bounds_that_are_too_far_apart_are_refused_where_the_width_is_needed(kind):
    most = np.finfo(kind).max
    space = spaces.Box(-most, most, (2,), kind)
    make_head(space, NetConfig(), features=4)
    with pytest.raises(UsageError, match="further apart than its type or float32 can hold"):
        make_head(space, NetConfig(action="squash"), features=4)


def test_records_of_older_versions_are_read():
    old = {
        "kind": "Dict",
        "parts": [
            [
                "v",
                {"kind": "Box", "dtype": "uint8", "low": ["0.0"], "high": ["255.0"], "shape": [1]},
            ],
            ["d", {"kind": "Discrete", "n": 3, "start": -1}],
            ["b", {"kind": "MultiBinary", "shape": [3]}],
            ["bb", {"kind": "MultiBinary", "shape": [2, 3]}],
            [[0, 1], {"kind": "MultiDiscrete", "n": [2, 3], "start": [0, 1]}],
            [
                "a",
                {"kind": "Box", "dtype": "float32", "low": ["-inf"], "high": ["inf"], "shape": [1]},
            ],
        ],
    }
    space = spaces.Dict(
        OrderedDict(
            v=spaces.Box(0, 255, (1,), np.uint8),
            d=spaces.Discrete(3, start=-1),
            b=spaces.MultiBinary(3),
            bb=spaces.MultiBinary([2, 3]),
        )
        | {(0, 1): spaces.MultiDiscrete([2, 3], start=[0, 1])}
        | {"a": spaces.Box(-np.inf, np.inf, (1,), np.float32)}
    )
    assert in_full(recorded_space(old)) == in_full(space)
    assert space_record(space) == old


def test_a_member_of_an_enum_is_found_under_its_name_and_finds_itself():
    space = stored(spaces.Dict({Side.LEFT: spaces.Discrete(2), Side.RIGHT: spaces.Discrete(3)}))
    assert list(space.spaces) == list(Side)
    assert space.contains({Side.LEFT: 1, Side.RIGHT: 2})
    action = Actions(space).nested(np.array([1.0, 2.0]))
    assert (action[Side.LEFT], action[Side.RIGHT]) == (1, 2)
    assert [leaf.name for leaf in Actions(space).leaves] == ["Side.LEFT", "Side.RIGHT"]
    assert EnumKey("Side", "LEFT") != Word.YES
    assert plain_key(Word.YES) == "yes"
    assert type(plain_key(Gear.LOW)) is int


class Own:
    pass


class Hashed(enum.Enum):
    ONE = 1

    def __hash__(self):
        return 5


class Namesakes:
    class Side(enum.Enum):
        LEFT = "another"


@pytest.mark.parametrize(
    "key", [Own(), Hashed.ONE, float("nan"), b"bytes", frozenset({1}), (1, Own())]
)
def test_a_key_that_no_file_can_hold_is_refused_by_name_with_the_remedy(key):
    space = spaces.Tuple([spaces.Dict({key: spaces.Discrete(2)})])
    with pytest.raises(UsageError, match=r"has the key .*, of type .* use text, a number"):
        space_record(space)
    Observations(space)  # without a file it can be trained in


def test_keys_that_a_file_cannot_tell_apart_are_refused():
    pair = {Side.LEFT: spaces.Discrete(2), Namesakes.Side.LEFT: spaces.Discrete(2)}
    with pytest.raises(UsageError, match="cannot be told apart"):
        space_record(spaces.Dict(pair))


class MyBox(spaces.Box):
    """Of a class of the user's own."""


def test_a_space_of_a_class_of_the_users_own_is_stored_as_the_one_that_it_extends():
    own = MyBox(-1, 1, (2,), np.float32)
    assert type(stored(own)) is spaces.Box
    assert stored(own) == own


OTHERS = [
    spaces.Text(3),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
    spaces.Box(0, 5, (2,), np.int64),
    spaces.Box(0, 1, (2,), bool),
]


@pytest.mark.parametrize("space", OTHERS, ids=lambda space: type(space).__name__)
def test_actions_of_other_spaces_are_refused_before_anything_is_drawn(space):
    for whole, where in ((space, "the action space is"), (spaces.Dict(a=space), "space at a is")):
        with pytest.raises(UsageError, match=where):
            Actions(whole)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Dict({}), "is empty"),
        (spaces.Tuple([]), "is empty"),
        (spaces.Tuple([spaces.Dict({})]), "is empty"),
        (spaces.Box(-1, 1, (0,)), "has no numbers"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (0, 2))), "at b is .* no numbers"),
        (spaces.MultiDiscrete([]), "has no numbers"),
        (spaces.Discrete(2**62), f"at most {WIDEST:,}"),
        (spaces.MultiDiscrete([2, 2**40]), f"at most {WIDEST:,}"),
        (spaces.Discrete(100, start=100, dtype=np.int8), "last choice is 199: its int8 holds"),
        (spaces.Discrete(3, start=2**63, dtype=np.uint64), f"holds 0...{2**63 - 1}"),
        (spaces.Dict(a=spaces.Discrete(3, start=2**60)), "at a is .* counted up to"),
        (spaces.Box(-1, 1, (2,), np.longdouble), "PyTorch does not have: use float64"),
    ],
)
def test_actions_that_cannot_be_are_refused_by_name(space, part):
    with pytest.raises(UsageError, match=f"(?i){part}"):
        Actions(space)


@pytest.mark.parametrize("n", [2**62, 10**9, WIDEST + 1])
def test_too_many_choices_are_refused_before_memory_is_taken(n):
    with pytest.raises(UsageError, match=rf"{n:,} things to choose from.*At most 16,777,216"):
        Observations(spaces.Dict(a=spaces.Discrete(n)))


def test_a_policy_does_not_go_on_where_its_columns_mean_something_else():
    box, masks = spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)
    pairs = [("b", box), ("a", box), (MASK, masks)]
    before = (spaces.Dict(pairs), spaces.Discrete(2))
    check_columns(before, (spaces.Dict([pairs[2], *pairs[:2]]), spaces.Discrete(2, dtype=np.int32)))
    with pytest.raises(UsageError, match=r"the observation space is .* in the same order"):
        check_columns(before, (spaces.Dict([pairs[1], pairs[0], pairs[2]]), before[1]))
    with pytest.raises(UsageError, match="the action space is"):
        check_columns(before, (before[0], spaces.Discrete(3)))


@pytest.mark.parametrize(
    ("space", "seen", "part"),
    [
        (spaces.Box(-1, 1, (2,)), (np.zeros(2), {}), r"a tuple \(ndarray, dict\)"),
        (spaces.Box(-1, 1, (2, 2)), (np.zeros((2, 2)), {}), r"a tuple \(ndarray, dict\)"),
        (spaces.Discrete(3), (1, {}), r"a tuple \(int, dict\)"),
        (spaces.Dict(a=spaces.Discrete(3)), ({"a": 1}, {}), r"a tuple \(dict, dict\)"),
        (spaces.Box(-1, 1, (2,)), [[1], [1, 2]], "no array of numbers of one shape"),
        (spaces.Box(-1, 1, (2,)), {"a": 1}, r"of shape \(\)"),
    ],
)
def test_an_observation_that_is_something_else_is_named(space, seen, part):
    with pytest.raises(UsageError, match=part):
        Observations(space).row(seen)


def test_keys_that_the_space_lacks_are_found():
    inner = spaces.Tuple([spaces.Dict(a=spaces.Discrete(2))])
    space = spaces.Dict({"b": inner, Side.LEFT: spaces.Discrete(2)})
    seen = {"b": ({"a": 1, "c": 2},), Side.LEFT: 1, (0, 1): 3}
    assert strangers(space, seen) == ["b/0/c", "(0, 1)"]
    assert strangers(space, {"b": ({"a": 1},), Side.LEFT: 0}) == []


def test_numbers_without_room_are_named():
    assert [leaf.name for leaf in Actions(spaces.Box(1, 1, (2,))).without_room]
    mixed = spaces.Dict(
        a=spaces.Discrete(1),
        b=spaces.Box(np.float32([0, 1]), np.float32([1, 1])),
        c=spaces.Discrete(2),
    )
    assert [leaf.name for leaf in Actions(mixed).without_room] == ["a", "b"]
    assert not Actions(spaces.MultiBinary(2)).without_room


def test_gymnasium_makes_what_these_tests_rely_on():
    assert list(spaces.Dict(b=spaces.Discrete(2), a=spaces.Discrete(2)).spaces) == ["b", "a"]
    assert gym.spaces.Box(-np.inf, np.inf, (1,), np.int64).bounded_below.tolist() == [False]


ENV = '''
import copy
import enum
from collections import OrderedDict

import gymnasium as gym
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-1, 1, (2,), np.float32)


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


class MyBox(spaces.Box):
    pass


def exactly_in(space, action):
    if isinstance(space, spaces.Dict):
        same = list(action) == list(space.spaces)
        return same and all(exactly_in(inner, action[key]) for key, inner in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return len(action) == len(space) and all(map(exactly_in, space.spaces, action))
    return action.dtype == space.dtype and space.contains(action)


class Strict(gym.Env):
    """Takes actions of its space alone, in its very types and order of keys."""

    observation_space, action_space = BOX, spaces.Discrete(3, start=-2, dtype=np.int8)

    def __init__(self):
        # With a generator of its own.
        self.observation_space = copy.deepcopy(self.observation_space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.see(), {}

    def see(self):
        return self.observation_space.sample()

    def step(self, action):
        assert exactly_in(self.action_space, action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        return self.see(), 1.0, self.time == 5, False, {}


MASKS = spaces.Dict(OrderedDict(gear=spaces.MultiBinary(3), buttons=spaces.MultiBinary(5)))


class Ordered(Strict):
    """Keys out of the alphabet's order, nested, and a mask by the same keys."""

    action_space = spaces.Dict(
        OrderedDict(
            steer=MyBox(-1, 1, (2,), np.float16),
            gear=spaces.Discrete(3, start=5, dtype=np.uint16),
            buttons=spaces.Tuple([spaces.MultiBinary([2]), spaces.MultiDiscrete([2, 3], np.uint8)]),
        )
    )
    observation_space = spaces.Dict(
        velocity=BOX,
        position=spaces.Box(-np.inf, np.inf, (2,), np.int64),
        action_mask=MASKS,
    )

    def see(self):
        mask = {"gear": np.array([0, 1, 1], np.int8), "buttons": np.ones(5, np.int8)}
        return super().see() | {"action_mask": mask}

    def step(self, action):
        assert action["gear"] in (6, 7)
        return super().step(action)


class OddKeys(Strict):
    """Keys that are no text."""

    observation_space = spaces.Dict(
        {Side.LEFT: BOX, Side.RIGHT: spaces.Box(0, 2**64 - 1, (1,), np.uint64), (0, 1): BOX, 3: BOX}
    )
    action_space = spaces.Dict({Side.LEFT: spaces.Discrete(2, dtype=np.int32), (0, "a/b"): BOX})


class Key:
    pass


class Unheard(Strict):
    observation_space = spaces.Dict({Key(): BOX})


class Swapped(Ordered):
    observation_space = spaces.Dict(
        [(key, Ordered.observation_space[key]) for key in ("position", "velocity", "action_mask")]
    )
'''


@pytest.fixture
def strict(here):
    (here / "strict.py").write_text(ENV)
    yield import_module("strict:Strict")
    del sys.modules["strict"]


@pytest.mark.parametrize("name", ["Strict", "Ordered", "OddKeys"])
def test_every_verb_and_every_process_sees_the_same_space(strict, here, name):
    env, made = f"strict:{name}", getattr(strict, name)
    evaluated = ["--run.eval-every", "2", "--run.eval-episodes", "1", "--quiet"]
    succeeded(train_in(env, *evaluated, "--run-dir", "s", "--run.engine", "torch", steps=128))
    agent = load("s")
    assert in_full(agent.obs_space) == in_full(made.observation_space)
    assert in_full(agent.action_space) == in_full(made.action_space)
    assert exactly_in(made.action_space, agent.act(made().reset(seed=1)[0]))
    processes = ["--env.backend", "workers", "--env.processes", "1", *evaluated]
    succeeded(train_in(env, *processes, "--run-dir", "w", "--run.engine", "torch", steps=128))
    ours, theirs = (Checkpoint(here / run / "checkpoints/last.safetensors") for run in "sw")
    assert theirs.record["spaces"] == ours.record["spaces"]
    assert theirs.tensors.keys() == ours.tensors.keys()
    for key, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[key], tensor, rtol=0, atol=0)
    succeeded(train_in(env, "--run-dir", "n", "--run.engine", "native", "--quiet", steps=64))
    succeeded(proximo("resume", "n", "--env", env, "--total-steps", "128", "--quiet"))
    succeeded(proximo("eval", "n", "--env", env, "--episodes", "1"))
    succeeded(proximo("check", env, "--steps", "20"))


def test_an_exported_policy_has_the_keys_in_their_order(strict, here):
    pytest.importorskip("onnxscript", reason="export is an extra")
    made = strict.OddKeys
    train(made, PPO(minibatch_size=32, epochs=1), num_envs=2, total_steps=64, run_dir="r")
    found = load("r").export(here / "policy.onnx")
    names = [put.rsplit(" [")[0].rsplit(" ", 1)[0] for put in found.inputs]
    assert names == ["obs/Side.LEFT", "obs/Side.RIGHT", "obs/(0, 1)", "obs/3"]
    assert [put.rsplit(" [")[0].rsplit(" ", 1)[0] for put in found.outputs[:-1]] == [
        "action/Side.LEFT",
        "action/(0, 'a/b')",
    ]


def test_what_no_file_can_hold_is_refused_before_training_and_nothing_is_left(strict, here):
    for backend in (["--run-dir", "r"], ["--env.backend", "workers"]):
        message = refusal(train_in("strict:Unheard", "--quiet", *backend))
        assert "has the key <strict.Key object" in message
        assert "use text, a number, a member of an Enum" in message
    assert not (here / "r").exists()
    # Each env has keys of its own, as it copies its space.
    algorithm = PPO(minibatch_size=32, epochs=1)
    train(strict.Unheard, algorithm, num_envs=1, total_steps=64, rollout=RolloutConfig(steps=64))


def test_a_run_goes_on_only_where_its_columns_mean_the_same(strict):
    succeeded(train_in("strict:Ordered", "--run-dir", "r", "--quiet"))
    message = refusal(proximo("resume", "r", "--env", "strict:Swapped", "--total-steps", "1024"))
    assert "the same keys in the same order" in message
    refusal(train_in("strict:Swapped", "--from", "r", "--run-dir", "new", "--quiet"))
    succeeded(proximo("eval", "r", "--env", "strict:Swapped", "--episodes", "2"))  # by its keys


def test_a_run_that_logged_its_choices_as_int64_goes_on(strict, here):
    """As older versions did, whatever the space said; its type was not stored either."""
    path = here / "r/checkpoints/last.safetensors"
    succeeded(train_in("strict:Strict", "--run-dir", "r", "--quiet"))
    saved = Checkpoint(path)
    logs = [name for name in saved.tensors if name.startswith("envs.actions.")]
    assert logs
    assert all(saved.tensors[name].dtype is torch.int8 for name in logs)
    record = {key: part for key, part in saved.record.items() if key != "schema"}
    del record["spaces"][1]["dtype"]
    write(path, saved.tensors | {name: saved.tensors[name].long() for name in logs}, record)
    words = ("resume", "r", "--env", "strict:Strict", "--quiet", "--total-steps")
    assert "new episodes" not in succeeded(proximo(*words, "1024")).out
    assert load("r").action_space == strict.Strict.action_space
