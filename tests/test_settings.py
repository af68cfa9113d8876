"""Settings from Python are held to what the command line takes."""

import gymnasium as gym
import pytest

from proximo import (
    A2C,
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    PPOPenalty,
    QActorCritic,
    Reinforce,
    RolloutConfig,
    RunConfig,
    UsageError,
    train,
)
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import Config, from_tables, read_config, to_tables
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.run.presets import find_preset, named_preset, presets


class Unbounded(gym.Env):
    """An env whose actions have no bounds."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-float("inf"), float("inf"), (1,))


ONE_ENV = gym.make("CartPole-v1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO(optimizer="Adam"), "algorithm.optimizer is 'Adam': .*adam, rmsprop, sgd"),
        (lambda: PPO(value_loss="l1"), "algorithm.value_loss is 'l1'"),
        (lambda: PPO(epochs=2.5), "algorithm.epochs is 2.5: it must be a whole number"),
        (lambda: PPO(gamma=float("nan")), "algorithm.gamma is nan: it must be a finite number"),
        (lambda: PPO(clip=None, dual_clip=3.0), r"algorithm\.clip is none, but .* dual_clip"),
        (lambda: PPO(dual_clip=1.0), r"algorithm\.dual_clip is 1\.0: it must be above 1"),
        (lambda: PPO(adam_betas=(0.9, 1.0)), r"algorithm\.adam_betas is \(0\.9, 1\.0\)"),
        (lambda: PPOPenalty(beta=0.0), r"algorithm\.beta is 0, which neither"),
        (lambda: PPOPenalty(kl_target=0.0), r"algorithm\.kl_target is 0\.0: it must be above 0"),
        (
            lambda: TRPO(learning_rate=1e-3),
            r"algorithm\.learning_rate is 0\.001, .*nothing where the algorithm is trpo",
        ),
        (lambda: TRPO(critic_learning_rate=None), r"critic_learning_rate is none: in trpo"),
        (lambda: TRPO(max_kl=0.0), r"algorithm\.max_kl is 0\.0: it must be above 0"),
        (
            lambda: QActorCritic(lam=0.5),
            r"algorithm\.lam is 0\.5, but it does nothing where the algorithm is qac",
        ),
        (
            lambda: Reinforce(n=7),
            r"algorithm\.n is 7, but it does nothing where the algorithm is reinforce",
        ),
        (
            lambda: NetConfig(mean="tanh", action="squash"),
            r"net\.mean is tanh and net\.action squash",
        ),
        (lambda: A2C(minibatch_size=16), r"minibatch_size is 16, but .*minibatches is whole"),
        (lambda: A2C(adam_betas=(0.8, 0.9)), r"adam_betas is .*optimizer is rmsprop"),
        (lambda: Reinforce(advantage="gae"), r"advantage is gae, but it does nothing where"),
        (lambda: PPO(critic=False, value_coef=3.0), r"value_coef is 3\.0, .*critic is off"),
        (lambda: TRPO(critic=False), r"algorithm\.critic is False, .* trpo"),
        (lambda: TRPO(line_search_decay=0.0), r"line_search_decay is 0\.0: .* in \(0, 0\.99\]"),
        (
            lambda: train("CartPole-v1", QActorCritic(normalize_advantage="batch"), num_envs=1),
            r"normalize_advantage is batch, but an update has one sample",
        ),
        (
            lambda: train(
                "CartPole-v1",
                Reinforce(),
                rollout=RolloutConfig(episodes=2),
                run_config=RunConfig(engine="compile"),
            ),
            r"run\.engine is compile, but a batch of whole episodes",
        ),
        (lambda: RunConfig(total_episodes=0), r"run\.total_episodes is 0: it must be at least 1"),
        (
            lambda: train("CartPole-v1", TRPO(), net=NetConfig(trunk="shared")),
            r"net\.trunk is shared, but trpo",
        ),
        (
            lambda: train(Unbounded, PPO(), net=NetConfig(mean="tanh")),
            r"net\.mean is tanh, but .* has no bounds: use linear",
        ),
        (lambda: NetConfig(trunk="share"), "net.trunk is 'share'"),
        (lambda: NetConfig(activation="swish"), "net.activation is 'swish'"),
        (lambda: EnvConfig(backend="async"), "env.backend is 'async'"),
        (lambda: EnvConfig(kwargs={"span": (0, 1)}), "env.kwargs.span"),
        (lambda: RunConfig(total_steps=1e6), "run.total_steps is 1000000.0: .*whole"),
        (lambda: RolloutConfig(steps="8"), "rollout.steps is '8'"),
        (lambda: train(gym.make("CartPole-v1"), PPO()), "pass a callable"),
        (lambda: train("CartPole-v1", PPO), "give an instance"),
        (lambda: train(lambda: ONE_ENV, PPO()), "the same env"),
        (lambda: train("CartPole-v1", PPO(), callbacks=print), "give a list"),
        (lambda: train("CartPole-v1", num_envs=4), "changes the preset"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"value_clip": 0.1}, "algorithm.value_loss is mse"),
        ({"huber_delta": 2.0}, "algorithm.value_loss is mse"),
        ({"n": 3}, "neither algorithm.advantage nor algorithm.value_target is n-step"),
        ({"optimizer": "sgd", "optimizer_eps": 1e-3}, "algorithm.optimizer is sgd"),
    ],
)
def test_what_does_nothing_is_refused_in_a_new_run(setting, why):
    algorithm = PPO(**setting)  # as a file of before may have it
    name = list(setting)[-1]
    with pytest.raises(UsageError, match=rf"{name} is .* where {why}: .* set it back to") as told:
        train("CartPole-v1", algorithm)
    assert str(getattr(PPO(), name)) in str(told.value)


def test_a_note_on_a_setting_is_kept_with_the_result():
    agent = train("CartPole-v1", PPO(clip=1.0), rollout=RolloutConfig(steps=64), total_steps=64)
    assert any("algorithm.clip is 1.0" in doubt for doubt in agent.result["warnings"])


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_presets_are_configurations_with_a_source_and_a_result(preset):
    for env in preset.envs:
        assert (find_preset(preset.algorithm, env) is preset) == (not preset.by_name)
    assert named_preset(preset.name) is preset
    config = from_tables(preset.tables)
    assert config.algorithm.name == preset.algorithm
    assert preset.source
    assert preset.result != "RESULT"
    assert preset.result or preset.by_name
    # Whole updates fit into the budget, which is therefore not overrun.
    if not config.rollout.episodes and not preset.by_name:
        assert config.run.total_steps % (config.env.num_envs * config.rollout.steps) == 0


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
        make_session(folder.read_config(), folder=folder, resume=best)
    assert folder.config_file.exists()


def test_names_of_an_earlier_version_are_read_and_said_once(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text('[env]\nid = "x"\nworlds = 3\n[net]\nmemory = "gru"\n')
    for _ in range(2):
        config = read_config(path)
    assert (config.env.num_envs, config.net.recurrent) == (3, "gru")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "env.worlds is now env.num_envs, net.memory is now net.recurrent" in said
    path.write_text("[env]\nworlds = 3\nnum_envs = 4\n")
    with pytest.raises(UsageError, match=r"there is no setting env\.worlds. Did you mean num_envs"):
        read_config(path)
