"""Rollouts and updates of envs that hold tensors, as on a GPU: host reads, and replayed graphs.

There is no GPU here. Reads are counted on the CPU, as if its tensors were on a device; and a
stand-in for a CUDA graph records operations and repeats them in the same memory, without Python.
"""

import contextlib
import dataclasses

import pytest
import torch
from gymnasium.vector import AutoresetMode
from tests.envs.test_tensors import COUNT, MODES, Drift, the_same
from tests.host_reads import HostReads
from torch.utils._python_dispatch import TorchDispatchMode

from proximo import A2C, PPO, EnvConfig, NetConfig, RunConfig
from proximo.collect import collect
from proximo.engines import graphs
from proximo.run.config import Config, RolloutConfig
from proximo.run.control import make_session

STEPS = 16


class StandIn(TorchDispatchMode):
    """Records operations; a replay repeats them, with results where those of the recording lay."""

    def __init__(self, function):
        super().__init__()
        self.operations, self._before, self._made = [], {}, set()
        with self:
            function()
        for storage, bytes_before in self._before.values():  # recording runs nothing
            storage.copy_(bytes_before)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tensors_in((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()
        if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero"):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        result = function(*args, **kwargs)
        known = {x.untyped_storage().data_ptr() for x in tensors_in((args, kwargs))}
        self._made |= {x.untyped_storage().data_ptr() for x in tensors_in(result)} - known
        self.operations.append((function, args, kwargs, result))
        return result

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                    if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                        old.copy_(new)


def tensors_in(thing):
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from tensors_in(part)
    elif isinstance(thing, dict):
        yield from tensors_in(list(thing.values()))


@pytest.fixture
def captured(monkeypatch):
    """The stand-ins that were recorded."""
    recorded = []

    def capture(function, generators=()):
        recorded.append(StandIn(function))
        return recorded[-1].replay

    monkeypatch.setattr(graphs, "capture", capture)
    return recorded


class InPlace(Drift):
    """Its state stays where it is."""

    def __setattr__(self, name, value):
        if isinstance(value, torch.Tensor) and isinstance(vars(self).get(name), torch.Tensor):
            vars(self)[name].copy_(value)
        else:
            super().__setattr__(name, value)


def begin(kind, mode, algorithm, *, waits=True, recorded=False, net=None, seen="vector"):
    config = Config(
        algorithm=algorithm,
        rollout=RolloutConfig(steps=STEPS),
        env=EnvConfig(num_envs=COUNT),
        net=net or NetConfig(hidden=(8, 8)),
        run=RunConfig(total_steps=10 * STEPS * COUNT, seed=3, engine="torch"),
    )
    own = make_session(config, source=kind(torch, mode, seen))
    engine = own.state.engine
    engine.waits, engine.graphs, engine.graphs_of_rollouts = waits, recorded, recorded
    return own


def iterate(own, phase=lambda _: contextlib.nullcontext()):
    """One update, as `loop.learn` does it; returns the rollout and its row."""
    config, state = own.task.config, own.state
    with phase("rollout"):
        rollout = collect(own.task.envs, state, config.env, steps=STEPS)
    with phase("prepare"):
        batch = config.algorithm.prepare(state, rollout)
    with phase("update"):
        metrics = config.algorithm.update(state, batch)
    with phase("row"):
        return rollout, state.advance(rollout, metrics)


ALGORITHMS = {
    "ppo": PPO(epochs=2, minibatch_size=16, normalize_reward=True),
    "ppo, episodes": PPO(epochs=2, minibatch_size=16, normalize_advantage="episode"),
    "ppo, kl": PPO(epochs=3, minibatch_size=16, target_kl=10.0),
    "a2c": A2C(),
}
ENDS = {
    "nonzero at tensors.py account",
    "bincount at tensors.py _successors",
    ".tolist at tensors.py _successors",
    ".cpu at tensors.py account",
    ".numpy at tensors.py account",
}
READINGS = {
    ".__bool__ at torch.py descend",
    ".cpu at state.py numbers",
    ".tolist at state.py numbers",
}


@MODES
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_device_is_waited_for_at_the_end_of_a_rollout_and_of_an_update_only(mode, name):
    net = NetConfig(hidden=(8, 8), normalize_obs=True, normalize_returns=True)
    own = begin(Drift, mode, ALGORITHMS[name], net=net)
    iterate(own)
    found = {}

    @contextlib.contextmanager
    def phase(name):
        with HostReads() as reads:
            yield
        found[name] = reads.by_place

    iterate(own, phase)
    assert set(found["rollout"]) <= ENDS
    assert set(found["rollout"].values()) == {1}
    assert not found["prepare"]
    kl = {".__bool__ at ppo.py stops"} if name == "ppo, kl" else set()
    assert set(found["update"]) == READINGS | kl
    assert all(found["update"][place] == 1 for place in READINGS)
    assert all(found["update"][place] == 2 for place in kl)  # one after every epoch but the last
    assert set(found["row"]) <= {".__float__ at state.py advance"}


@MODES
@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_a_replayed_rollout_and_update_are_those_of_single_steps(captured, mode, recurrent):
    algorithm = PPO(epochs=2, minibatch_size=48)
    net = NetConfig(hidden=(8, 8), recurrent=recurrent)
    plain = begin(InPlace, mode, algorithm, net=net)
    other = begin(InPlace, mode, algorithm, net=net, recorded=True)
    for number in range(4):
        (rollout, row), (replayed, other_row) = iterate(plain), iterate(other)
        if number < 2:
            the_same(rollout, replayed)
        torch.testing.assert_close(rollout.obs, replayed.obs, rtol=1e-4, atol=1e-5)
        for one, two in zip(rollout.episodes, replayed.episodes, strict=True):
            assert tuple(one) == pytest.approx(tuple(two), rel=1e-3, abs=1e-5)
        assert row.pop("best") is other_row.pop("best") is None
        assert row == pytest.approx(other_row, rel=1e-3, abs=1e-5)
    # A rollout, and a step: anew where a batch is larger than those before, as in next-step mode.
    grown = mode is AutoresetMode.NEXT_STEP
    assert len(captured) in ({1} if recurrent == "gru" else {2, 2 + grown})
    assert other.task.envs.graph is not None
    for one, two in zip(*(own.state.policy.parameters() for own in (plain, other)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@MODES
def test_envs_that_put_their_state_elsewhere_are_named_and_stepped_one_by_one(captured, mode):
    told = []
    plain, other = (begin(Drift, mode, A2C(), recorded=recorded) for recorded in (False, True))
    other.state.engine.report = told.append
    other.state.engine.graphs = False
    for _ in range(4):
        the_same(iterate(plain)[0], iterate(other)[0])
    assert len(captured) == 1
    assert len(told) == 1
    assert "rollouts run without a CUDA graph: the env's" in told[0]
    assert "in place, as with copy_" in told[0]


class Reading(InPlace):
    """It reads a number on the host in every step, which no graph can."""

    def step(self, action):
        assert float(self.time.sum()) >= 0
        return super().step(action)


def test_a_failed_recording_is_told_and_training_continues(captured):
    told = []
    own = begin(Reading, AutoresetMode.NEXT_STEP, A2C(), recorded=True)
    own.state.engine.report = told.append
    own.state.engine.graphs = False
    for _ in range(3):
        rollout, row = iterate(own)
        assert rollout.obs.isfinite().all()
    assert len(told) == 1
    assert told[0].startswith("rollouts run without a CUDA graph, and new episodes begin: ")
    assert "not permitted when stream is capturing" in told[0]
    assert row["update"] == 3


def test_a_loss_that_cannot_be_recorded_is_told_and_computed_step_by_step(captured, monkeypatch):
    told = []
    algorithm = PPO(epochs=2, minibatch_size=40)
    plain, other = (
        begin(InPlace, AutoresetMode.SAME_STEP, algorithm, recorded=x) for x in (False, True)
    )
    other.state.engine.report = told.append
    other.state.engine.graphs_of_rollouts = False
    original = graphs.clip_gradient

    def reads(gradients, limit):
        assert float(gradients[0].sum()) < 1e9
        return original(gradients, limit)

    monkeypatch.setattr(graphs, "clip_gradient", reads)
    for _ in range(3):
        the_same(iterate(plain)[0], iterate(other)[0])
    assert len(told) == 1
    assert told[0].startswith("gradient steps run without a CUDA graph: Runtime")


def test_a_step_that_is_not_finite_is_taken_back_and_left_out(captured):
    own = begin(InPlace, AutoresetMode.SAME_STEP, PPO(epochs=1, minibatch_size=40), recorded=True)
    for _ in range(3):
        iterate(own)
    state, algorithm = own.state, own.task.config.algorithm
    rollout = collect(own.task.envs, state, own.task.config.env, steps=STEPS)
    batch = algorithm.prepare(state, rollout)
    broken = dataclasses.replace(batch, target=batch.target.clone())
    broken.target[7] = torch.nan
    metrics = algorithm.update(state, broken)
    assert state.skipped == 1
    assert metrics["gradient_steps"] == 1
    assert all(x.isfinite().all() for x in state.policy.parameters())


def test_images_of_tensor_envs_compute_in_bfloat16():
    config = Config(
        algorithm=PPO(epochs=2, minibatch_size=16),
        rollout=RolloutConfig(steps=STEPS),
        env=EnvConfig(num_envs=COUNT),
        net=NetConfig(hidden=(8,), cnn="small"),
        run=RunConfig(total_steps=999, seed=3, dtype="bfloat16"),
    )
    source = Drift(torch, AutoresetMode.SAME_STEP, "image", "discrete")
    own = make_session(config, source=source)
    own.state.engine.waits = True
    for _ in range(2):
        rollout, row = iterate(own)
    assert rollout.obs.dtype is torch.uint8
    assert own.state.policy.actor.half_precision
    assert row["approx_kl"] < 1
