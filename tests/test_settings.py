"""Settings from Python are held to what the command line takes."""

import gymnasium as gym
import pytest

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, UsageError, train
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, from_tables, to_tables
from proximo.run.folder import RunFolder
from proximo.run.presets import PRESETS, find_preset, named_preset
from proximo.run.session import Session

ONE_WORLD = gym.make("CartPole-v1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(optimizer="Adam"), "algorithm.optimizer is 'Adam': .*adam, rmsprop, sgd"),
        (lambda: PPO(value_loss="l1"), "algorithm.value_loss is 'l1'"),
        (lambda: PPO(epochs=2.5), "algorithm.epochs is 2.5: it must be a whole number"),
        (lambda: PPO(gamma=float("nan")), "algorithm.gamma is nan: it must be a finite number"),
        (lambda: NetConfig(trunk="share"), "net.trunk is 'share'"),
        (lambda: NetConfig(activation="swish"), "net.activation is 'swish'"),
        (lambda: EnvConfig(backend="async"), "env.backend is 'async'"),
        (lambda: EnvConfig(kwargs={"span": (0, 1)}), "env.kwargs.span"),
        (lambda: RunConfig(total_steps=1e6), "run.total_steps is 1000000.0: .*whole"),
        (lambda: RolloutConfig(steps="8"), "rollout.steps is '8'"),
        (lambda: train(gym.make("CartPole-v1"), PPO()), "pass a callable"),
        (lambda: train("CartPole-v1", PPO), "give an instance"),
        (lambda: train(lambda: ONE_WORLD, PPO()), "the same world"),
        (lambda: train("CartPole-v1", PPO(), callbacks=print), "give a list"),
        (lambda: train("CartPole-v1", worlds=4), "changes the preset"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_are_configurations_with_a_source_and_a_result(preset):
    for env in preset.envs:
        assert find_preset(preset.algorithm, env) is preset
    assert named_preset(preset.name) is preset
    config = from_tables(preset.settings)
    assert config.algorithm.name == preset.algorithm
    assert preset.source
    assert preset.result
    # Whole updates fit into the budget, which is therefore not overrun.
    assert config.run.total_steps % (config.env.worlds * config.rollout.steps) == 0


def test_a_configuration_survives_its_tables():
    config = Config(
        algorithm=PPO(clip="linear:0.2:0.1", target_kl=0.02, max_grad_norm=None),
        env=EnvConfig(id="x", kwargs={"a": 1, "b": True, "c": 0.5, "d": 'text "quoted"'}),
    )
    again = from_tables(to_tables(config))
    assert str(again.algorithm.clip) == "linear:0.2:0.1"
    assert again.env == config.env
    assert again.algorithm.max_grad_norm is None


def test_best_holds_a_policy_and_no_more(tmp_path):
    train("CartPole-v1", PPO(epochs=1), total_steps=2048, run_dir=tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    best = Checkpoint(folder.checkpoint("best"))
    with pytest.raises(UsageError, match="holds a policy and no more"):
        Session(folder.read_config(), folder=folder, resume=best)
    assert folder.config_file.exists()
