"""What is not finite in a loss or a gradient never reaches the weights."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from commands.command_line import SMALL, proximo, result, rows, succeeded
from commands.command_line import train as train_command
from proximo import (
    PPO,
    TRPO,
    EnvConfig,
    NetConfig,
    PPOPenalty,
    QActorCritic,
    RolloutConfig,
    RunConfig,
    train,
)
from proximo.engines.native import NativeEngine
from proximo.engines.torch import TorchEngine
from proximo.errors import TrainingError, UsageError
from proximo.loop import run_control
from proximo.nets.actor_critic import ActorCritic
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import ALGORITHMS
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.types import Batch, Layout

OBS, ACTIONS = gym.spaces.Box(-1, 1, (3,), np.float32), gym.spaces.Discrete(4)
COUNT, SIZE, EPOCHS, BAD = 48, 12, 2, slice(12, 24)  # samples, of which the second minibatch is bad
HUGE = 1e30  # finite, and its square is not

GENEROUS = '''
from commands.command_line import ENV

exec(ENV)


class Generous(Env):
    """From its step 150 on it earns what is finite, and its square is not."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, 1e30 if self.steps >= 150 else reward, *rest
'''


def case(algorithm):
    """A policy, its optimizer, and samples that it might have drawn."""
    torch.manual_seed(0)
    policy = ActorCritic(OBS, ACTIONS, NetConfig(hidden=(8,)))
    optimizer = algorithm.make_optimizer(policy)
    optimizer.rates = [1e-2] * len(optimizer.flats)
    obs, action = torch.randn(COUNT, 3), torch.randint(4, (COUNT,))
    with torch.no_grad():
        new = policy.evaluate(obs, action, entropy=False)
    batch = Batch(
        obs=obs,
        action=action,
        log_prob=new.log_prob,
        parameters=new.distribution.parameters,
        value=new.value,
        advantage=torch.randn(COUNT),
        target=torch.randn(COUNT),
        episode=torch.zeros(COUNT, dtype=torch.int64),
        segment_id=torch.zeros(COUNT, dtype=torch.int64),
        initial_state=torch.zeros(COUNT, 0),
    )
    return policy, optimizer, batch


def in_order(count):
    orders = torch.arange(count).expand(EPOCHS, count)
    return Layout(orders, [[*range(0, count, SIZE), count]] * EPOCHS)


def numbers(optimizer):
    records = [x for record in optimizer.records for x in record.values()]
    return [x.detach().clone() for x in (*optimizer.flats, *records)]


def engine_of(name, policy, optimizer):
    if name.startswith("native"):
        return NativeEngine(policy, optimizer, 2 if "threads" in name else 1)
    engine = TorchEngine(policy, optimizer, compiled=name == "compile")
    engine._looks = name != "torch, as on a GPU"
    return engine


COMPILE = [pytest.mark.long, pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")]
SPOILT = {
    "inf loss": {"target": HUGE},
    "nan loss": {"advantage": torch.nan},
    "inf gradient": {"target": 1e15},  # its square is finite, the gradient's square is not
}


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        "torch, as on a GPU",
        pytest.param("compile", marks=COMPILE),
        "native",
        "native, threads",
    ],
)
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "algorithm",
    [
        PPO(max_grad_norm=None, value_coef=1e6),
        PPO(critic_learning_rate=1e-2, value_coef=1e6, optimizer="rmsprop"),
        PPOPenalty(value_coef=1e6, optimizer="sgd"),
        TRPO(value_coef=1e6),
    ],
    ids=["ppo", "ppo in two", "ppo-penalty", "trpo's critic"],
)
def test_a_minibatch_that_is_not_finite_is_as_if_it_had_never_been(name, how, algorithm):
    if name == "compile" and (how != "nan loss" or algorithm.optimizer != "adam"):
        pytest.skip("compiling takes long")
    if how == "nan loss" and isinstance(algorithm, TRPO):
        pytest.skip("a critic alone has no use for advantages")
    policy, optimizer, batch = case(algorithm)
    start = copy.deepcopy((policy.state_dict(), optimizer.records))
    coefficients = algorithm.coefficients(0.0)
    left = torch.cat([torch.arange(COUNT)[: BAD.start], torch.arange(COUNT)[BAD.stop :]])
    engine = engine_of(name, policy, optimizer)
    without = engine.descend(algorithm, batch[left], in_order(len(left)), coefficients)
    expected = numbers(optimizer)

    policy.load_state_dict(start[0])
    for record, old in zip(optimizer.records, start[1], strict=True):
        for key, tensor in record.items():
            tensor.copy_(old[key])
    spoilt = {key: getattr(batch, key).clone() for key in SPOILT[how]}
    for key, value in SPOILT[how].items():
        spoilt[key][BAD] = value
    told = []
    found = engine.descend(
        algorithm,
        dataclasses.replace(batch, **spoilt),
        in_order(COUNT),
        coefficients,
        lambda what, *place: told.append((what, *place[:2], len(place[2]))),
    )
    for x, y in zip(numbers(optimizer), expected, strict=True):
        assert torch.equal(x, y)
    assert found[1:] == (EPOCHS, without.steps, EPOCHS)
    for key, total in without.terms.items():
        torch.testing.assert_close(found.terms[key], total)
    assert [place for _, *place in told] == [[1, 2, SIZE], [2, 2, SIZE]]
    words = {"inf loss": "loss is inf", "nan loss": "loss is nan", "inf gradient": "gradient norm"}
    assert words[how] in told[0][0]


# Whole runs


@dataclass(frozen=True, kw_only=True)
class Spoilt(PPO):
    """In the update at half of its steps, some minibatches have no loss."""

    def coefficients(self, progress, beta=None):
        return {**super().coefficients(progress, beta), "half": float(progress == 0.5)}

    def loss_of(self, policy, new, batch, coefficients):
        loss, terms = super().loss_of(policy, new, batch, coefficients)
        if coefficients["half"] and batch.obs[0, 0] < -0.08:
            loss = loss / 0.0
        return loss, {**terms, "loss": loss.detach()}


def go(algorithm, run_dir=None, callbacks=(), net=None, **run):
    return train(
        EnvConfig(id="CartPole-v1", num_envs=2),
        algorithm,
        net=net,
        rollout=RolloutConfig(steps=32),
        run_config=RunConfig(total_steps=512, seed=4, **run),
        run_dir=run_dir,
        callbacks=callbacks,
    )


SOME = {"minibatch_size": 16, "epochs": 2}


def checkpoint(run, name="last"):
    return (Path(run) / "checkpoints" / f"{name}.safetensors").read_bytes()


@pytest.fixture
def storable(monkeypatch):
    """Lets a run folder hold an algorithm that is made up here."""
    monkeypatch.setattr("proximo.run.folder.check_storable", lambda config, own: None)


@pytest.mark.usefixtures("storable")
def test_what_is_left_out_is_counted_named_and_kept_and_the_run_goes_on(here):
    agent = go(Spoilt(**SOME), "r")
    skipped = [row.get("skipped_steps") for row in rows("r")]
    assert skipped[:4] == [None] * 4  # half of the steps is after the fourth update
    assert len(set(skipped[4:])) == 1
    assert 0 < skipped[4] <= 8
    assert rows("r")[4]["gradient_steps"] == 8 - skipped[4]
    assert rows("r")[4]["policy_loss"] is not None
    [kept] = Path("r/nonfinite").iterdir()
    assert kept.name == "update-5.safetensors"
    [doubt] = [doubt for doubt in agent.result["warnings"] if "left out" in doubt]
    assert "is inf in update 5, epoch 1, minibatch" in doubt or "is -inf" in doubt
    assert str(kept) in doubt
    assert Path("r/log").read_text().count("a gradient step was left out") == skipped[4]
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


@pytest.mark.usefixtures("storable")
def test_a_run_that_was_stopped_knows_what_it_had_left_out(here):
    go(Spoilt(**SOME), "straight")
    go(Spoilt(**SOME), "parts", [lambda state, *_: state.updates == 6])
    folder = RunFolder("parts")
    config = dataclasses.replace(folder.read_config(), algorithm=Spoilt(**SOME))
    run_control(make_session(config, folder=folder, resume=Checkpoint(folder.checkpoint("last"))))
    assert checkpoint("parts") == checkpoint("straight")
    assert rows("parts")[-1]["skipped_steps"] == rows("straight")[-1]["skipped_steps"]


@pytest.mark.usefixtures("storable")
def test_with_no_budget_the_first_ends_the_run(here):
    with pytest.raises(TrainingError, match=r"is -?inf in update 5, epoch 1, .* for that: 1, but"):
        go(Spoilt(**SOME, skip_budget=0), "r")
    assert Path("r/nonfinite/update-5.safetensors").exists()
    assert Checkpoint(Path("r/checkpoints/last.safetensors")).updates < 5


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_run_that_cannot_go_on_stops_and_what_it_kept_gives_the_same_loss(here, engine):
    Path("generous.py").write_text(GENEROUS)
    words = ("--total-steps", "1024", "--run-dir", "r", "--run.engine", engine)
    done = proximo("train", "ppo", "generous:Generous", *SMALL, *words)
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    for said in ("the loss is", "minibatch", "algorithm.skip_budget is 10", "learning rate"):
        assert said in done.err
    [kept] = Path("r/nonfinite").iterdir()
    assert str(kept) in done.err
    assert "proximo resume r" in done.err

    saved = Checkpoint(kept)
    config = RunFolder("r").read_config()
    policy = ActorCritic(
        gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2), config.net
    )
    saved.load_policy(policy)
    batch = Batch(**{f.name: saved.tensors[f"batch.{f.name}"] for f in dataclasses.fields(Batch)})
    with torch.no_grad():
        loss, _ = config.algorithm.loss(policy, batch, saved.record["coefficients"])
    assert not torch.isfinite(loss)
    assert f"the loss is {float(loss)}" == saved.record["what"]
    last = Checkpoint(Path("r/checkpoints/last.safetensors"))
    assert all(x.isfinite().all() for x in last.tensors.values() if x.is_floating_point())


def test_in_the_first_update_too_the_run_is_kept_for_what_it_shows(here):
    Path("generous.py").write_text(GENEROUS.replace(">= 150", ">= 0"))
    done = proximo(
        "train",
        "ppo",
        "generous:Generous",
        *SMALL,
        "--total-steps",
        "512",
        "--run-dir",
        "r",
        "--algorithm.skip-budget",
        "0",
        "--env.no-check",
    )
    assert done.code == 1
    assert list(Path("r/nonfinite").iterdir())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_checkpoint_ever_holds_what_is_not_finite(here, name):
    Path("generous.py").write_text(GENEROUS)
    words = ["train", name, "generous:Generous", "--preset", "none", "--env.num-envs", "2"]
    words += ["--rollout.steps", "8", "--total-steps", "640", "--run-dir", "r"]
    words += ["--run.save-every", "1", "--algorithm.optimizer", "sgd", "--env.no-check"]
    if ALGORITHMS[name].minibatches == "shuffled":
        words += ["--algorithm.minibatch-size", "16"]
    done = proximo(*words)
    assert done.code in (0, 1), done.err
    for path in Path("r/checkpoints").iterdir():
        for key, tensor in Checkpoint(path).tensors.items():
            assert not tensor.is_floating_point() or tensor.isfinite().all(), (path, key)


@dataclass(frozen=True, kw_only=True)
class SpoiltActor:
    """In the update at half of its steps, the policy's objective is no number."""

    def objective(self, policy, new, batch, advantage, coefficients):
        found = super().objective(policy, new, batch, advantage, coefficients)
        return found * torch.nan if coefficients["half"] else found

    def coefficients(self, progress, beta=None):
        return {**super().coefficients(progress, beta), "half": float(progress == 0.5)}


@dataclass(frozen=True, kw_only=True)
class SpoiltTRPO(SpoiltActor, TRPO):
    pass


@dataclass(frozen=True, kw_only=True)
class SpoiltQ(SpoiltActor, QActorCritic):
    pass


@pytest.mark.usefixtures("storable")
@pytest.mark.parametrize(
    "algorithm", [SpoiltTRPO(minibatch_size=64), SpoiltQ()], ids=["trpo", "qac"]
)
def test_an_actor_that_has_no_gradient_stays_and_its_critic_moves_on(here, algorithm):
    actors, critics = {}, {}

    def look(state, rollout, metrics):
        actors[state.updates] = state.optimizer.flats[0].detach().clone()
        critics[state.updates] = state.optimizer.flats[1].detach().clone()

    go(algorithm, "r", [look])
    assert [row.get("skipped_steps") for row in rows("r")] == [None] * 4 + [1] * 4
    assert torch.equal(actors[4], actors[5])
    assert not torch.equal(actors[5], actors[6])
    assert not torch.equal(critics[4], critics[5])
    assert "policy_loss" not in rows("r")[4]
    [kept] = Path("r/nonfinite").iterdir()
    assert "the loss is nan in update 5, step of the" in Path("r/log").read_text()
    saved = Checkpoint(kept)
    assert saved.record["coefficients"]["half"] == 1


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_finite_gradient_that_leads_to_no_number_ends_the_run(here, engine):
    """0/0, where a unit is dead and the optimizer's eps too small for single precision."""
    algorithm = PPO(minibatches="whole", epochs=1, optimizer_eps=1e-60, skip_budget=10**6)
    with pytest.raises(UsageError, match="weights or running moments became infinite in update 1"):
        go(algorithm, "r", net=NetConfig(activation="relu"), engine=engine)
    assert not Path("r").exists()


def test_large_weights_are_finite():
    policy, optimizer, _ = case(PPO(critic_learning_rate=1.0))
    engine = TorchEngine(policy, optimizer)
    for value, finite in ((1.0, True), (3e38, True), (torch.inf, False), (torch.nan, False)):
        optimizer.flats[1].data[3] = value
        assert engine.finite(*engine.weights) is finite


def test_a_reward_that_single_precision_cannot_hold_is_named(here):
    Path("generous.py").write_text(GENEROUS.replace("1e30", "1e39"))
    done = proximo("train", "ppo", "generous:Generous", *SMALL, "--run-dir", "r")
    assert done.code == 1
    assert "gave the reward 1e+39 at step" in done.err


def test_what_is_finite_is_not_told_otherwise(here):
    succeeded(train_command("--run-dir", "r"))
    assert not Path("r/nonfinite").exists()
    assert all("skipped_steps" not in row for row in rows("r"))
    assert "warnings" not in result("r")
