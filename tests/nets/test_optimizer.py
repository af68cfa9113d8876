"""The flat optimizer beside one of PyTorch's for the same parameters, as a callback may hold."""

import pytest
import torch

from proximo import PPO, QActorCritic, RolloutConfig, RunConfig, train


@pytest.mark.parametrize(("algorithm", "steps"), [(PPO(), 32), (QActorCritic(), 1)])
def test_gradients_that_another_optimizer_has_removed_change_nothing(algorithm, steps):
    def remove(state, rollout, row):
        torch.optim.SGD(state.policy.parameters()).zero_grad(set_to_none=True)

    def weights(callbacks):
        settings = RunConfig(engine="torch", total_steps=600, seed=3)
        agent = train(
            "CartPole-v1",
            algorithm,
            rollout=RolloutConfig(steps=steps),
            run_config=settings,
            callbacks=callbacks,
        )
        return agent.policy.state_dict()

    apart, beside = weights([]), weights([remove])
    assert all(tensor.equal(beside[name]) for name, tensor in apart.items())
