"""The compiled engine gives the numbers of the reference."""

import shutil

import pytest
import torch
from test_parity import assert_same, case, run

from proximo import PPO, NetConfig, PPOPenalty
from proximo.engines.torch import TorchEngine

pytestmark = [
    pytest.mark.skipif(
        not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
    ),
    # PyTorch's compiler uses what PyTorch deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

SMALL = NetConfig(hidden=(8,))


def compiled_and_not(algorithm, net, epochs, **shapes):
    return [run(name, algorithm, net, epochs=epochs, **shapes) for name in ("torch", "compile")]


def test_one_step_and_forty():
    algorithm = PPO(minibatch_size=64, entropy_coef=0.01, value_loss="clipped")
    one = compiled_and_not(algorithm, SMALL, 1)
    assert_same(one, weights=3e-3)
    assert_same(compiled_and_not(algorithm, SMALL, 40), gradients=None)


def test_continuous_actions_apart_and_a_smaller_last_minibatch():
    algorithm = PPO(minibatch_size=48, critic_learning_rate=2e-3)
    net = NetConfig(hidden=(8,), normalize_returns=True)
    assert_same(compiled_and_not(algorithm, net, 5, continuous=True), gradients=None)


def test_coefficients_that_move_compile_nothing_anew():
    algorithm = PPO(
        minibatch_size=32,
        epochs=1,
        clip="linear:0.2:0.1",
        entropy_coef="linear:0.1:0",
        learning_rate="linear:1e-3:0",
    )
    policy, optimizer, batch = case(algorithm, SMALL)
    engine = TorchEngine(policy, optimizer, compiled=True)
    optimizer.rates = [1e-3]
    weights = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        layout = algorithm.layout(batch, torch.Generator().manual_seed(0))
        with torch.compiler.set_stance("fail_on_recompile" if progress else "default"):
            engine.descend(algorithm, batch, layout, algorithm.coefficients(progress))
        weights.append(optimizer.flats[0].detach().clone())
    assert not torch.equal(weights[0], weights[-1])


def test_only_batches_of_the_first_size_are_compiled():
    """Whole batches may have any size: the others are computed operation by operation."""
    algorithm = PPOPenalty(minibatches="whole", epochs=2)
    policy, optimizer, batch = case(algorithm, SMALL)
    engine = TorchEngine(policy, optimizer, compiled=True)
    plain = run("torch", algorithm, SMALL, epochs=2)
    optimizer.rates = [1e-3]
    for size in (64, 40, 64):
        part = batch[:size]
        layout = algorithm.layout(part, torch.Generator().manual_seed(0))
        with torch.compiler.set_stance("default" if size == 64 else "fail_on_recompile"):
            engine.descend(algorithm, part, layout, algorithm.coefficients(0.0))
        if plain is not None:  # after the first of them
            weights = torch.cat([flat.detach() for flat in optimizer.flats])
            torch.testing.assert_close(weights, plain[2], rtol=1e-4, atol=1e-5)
            plain = None
