"""How the work of an update grows with the number of envs: in calls and in memory, no clock."""

import math
import sys
import tracemalloc
from itertools import pairwise

import pytest

from proximo import PPO, EnvConfig, RunConfig
from proximo.run.config import Config, RolloutConfig
from proximo.run.control import make_session

SIZES = (16, 64, 512)
STEPS = 16


def of_an_update(backend, num_envs):
    """Calls of Python and C functions, and the bytes at the peak, of one update."""
    config = Config(
        algorithm=PPO(epochs=1, minibatch_size=256),
        rollout=RolloutConfig(steps=STEPS),
        env=EnvConfig(id="CartPole-v1", num_envs=num_envs, backend=backend),
        run=RunConfig(total_steps=2**40, seed=1),
    )
    session = make_session(config)
    task, state, calls = session.task, session.state, 0

    def update():
        rollout = task.collect(state)
        metrics = task.update(state, task.prepare(state, rollout))
        state.advance(rollout, metrics)

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    for _ in range(5):  # those that are measured for the rules of health, and some that are not
        update()
    sys.setprofile(count)
    try:
        update()
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    update()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    task.close()
    return calls, peak


@pytest.mark.parametrize("backend", ["native", "vector", "sync"])
def test_neither_calls_nor_memory_grow_faster_than_the_envs(backend):
    found = {n: of_an_update(backend, n) for n in SIZES}
    for a, b in pairwise(SIZES):
        for one, other in zip(found[a], found[b], strict=True):
            assert math.log(other / one, b / a) < 1.05
    if backend != "sync":  # what grows is told per episode and env, not per step
        more = found[512][0] - found[64][0]
        assert more < 20 * (512 - 64)
