"""What a user adds trains, is named in the run, loads, resumes to the bit, or is refused before."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import own_code
import proximo
from own_code import Bare, Bonus, Odd, Penalised, Scored, Steps, Taking, Unpackable, falling
from proximo import PPO, Callback, RolloutConfig, RunConfig, Schedule, UsageError, load, train
from proximo.run.checkpoint import Checkpoint
from proximo.run.folder import RunFolder

SMALL = {"minibatch_size": 16, "epochs": 1}
NAMED = {"algorithm": "own_code:Penalised", "schedules": ["own_code:falling"]}


def quick(algorithm=None, **more):
    settings = {"rollout": RolloutConfig(steps=16), "total_steps": 256, "num_envs": 2, "seed": 3}
    return train("CartPole-v1", algorithm or PPO(**SMALL), **{**settings, **more})


def logged(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "steps_per_second", "env_time_fraction", "env_step_seconds"}
    return [{k: x for k, x in row.items() if k not in clock} for row in rows]


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def mine(**more):
    return Penalised(weight=3.0, learning_rate=falling, **SMALL, **more)


def stop(state, rollout, row):
    return state.updates == 4


def test_all_of_it_is_named_asked_for_again_and_resumed_to_the_bit(tmp_path):
    all_of_it = tmp_path / "whole"
    whole = quick(mine(), run_dir=all_of_it, callbacks=[Bonus(coef=0.25)])
    text = (all_of_it / "config.toml").read_text()
    assert 'name = "own_code:Penalised"' in text
    assert "weight = 3.0" in text
    assert 'learning_rate = "own_code:falling"' in text
    part = tmp_path / "part"
    assert quick(mine(), run_dir=part, callbacks=[Bonus(coef=0.25), stop]).result["updates"] == 4
    resumed = proximo.resume(part, **NAMED, callbacks=["own_code:Bonus"])
    assert torch.equal(weights(resumed), weights(whole))
    assert logged(part) == logged(all_of_it)
    assert logged(part)[-1]["seen"] == 8
    saved = [
        Checkpoint(tmp_path / name / "checkpoints/last.safetensors") for name in ("part", "whole")
    ]
    assert saved[0].record["callbacks"] == saved[1].record["callbacks"]
    for name, tensor in saved[1].tensors.items():
        assert torch.equal(tensor, saved[0].tensors[name]), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            r"algorithm, .*:Penalised, and its schedule, .*falling, and its callback, .*Bonus",
        ),
        ({"algorithm": Penalised}, r"schedule, own_code:falling, and its callback, own_code:Bonus"),
        (NAMED, r"callback, own_code:Bonus, is code: .*callbacks=\['own_code:Bonus'\]"),
        ({**NAMED, "algorithm": PPO, "callbacks": [Bonus]}, None),
    ],
)
def test_code_that_is_not_named_again_is_not_imported(tmp_path, given, said):
    run = tmp_path / "run"
    quick(mine(), run_dir=run, callbacks=[Bonus(), stop])
    if said is None:
        with pytest.raises(UsageError, match=r"no setting algorithm\.weight"):
            proximo.resume(run, **given)
        return
    with pytest.raises(UsageError, match=said):
        proximo.resume(run, **given)


def test_a_run_of_an_own_algorithm_loads_and_is_evaluated_by_its_name_or_class(tmp_path):
    run = tmp_path / "run"
    quick(mine(), run_dir=run)
    with pytest.raises(UsageError, match=r"load\('.*', algorithm='own_code:Penalised'\)"):
        load(run)
    agents = [load(run, algorithm=code) for code in (Penalised, "own_code:Penalised")]
    assert torch.equal(*map(weights, agents))
    scores = proximo.evaluate(run, algorithm=Penalised, episodes=2, max_episode_steps=20)
    assert len(scores.returns) == 2
    agents[0].export(tmp_path / "policy.onnx")
    with pytest.raises(UsageError, match="is no algorithm"):
        load(run, algorithm="own_code:Bonus")
    quick(run_dir=tmp_path / "plain")
    with pytest.raises(UsageError, match="but this run's algorithm is Proximo's: leave it out"):
        load(tmp_path / "plain", algorithm=Penalised)


def test_a_subclass_without_settings_or_name_is_itself_and_never_its_parent(tmp_path):
    quick(Bare(**SMALL), run_dir=tmp_path / "run", callbacks=[stop])
    assert type(load(tmp_path / "run", algorithm=Bare).config.algorithm) is Bare
    with pytest.raises(UsageError, match="own_code:Bare, is code"):
        proximo.resume(tmp_path / "run")
    resumed = proximo.resume(tmp_path / "run", algorithm=Bare)
    assert type(resumed.config.algorithm) is Bare
    assert resumed.result["updates"] == 8


def test_what_cannot_be_named_is_refused_before_training_and_trains_without_a_folder(tmp_path):
    @dataclass
    class Local(Callback):
        pass

    class Inner(PPO):
        pass

    for more, said in (
        ({"algorithm": Inner(**SMALL)}, "algorithm: .*Inner is not a name that leads to it"),
        (
            {"algorithm": PPO(learning_rate=lambda p: 1e-3, **SMALL)},
            "learning_rate: .*<la",
        ),
        ({"callbacks": [Local()]}, r"callbacks\[0\]: .*Local is not a name"),
        ({"callbacks": [Taking("x")]}, r"callbacks\[0\]: own_code:Taking takes arguments"),
        ({"callbacks": [Odd(object())]}, r"own_code:Odd: its field thing is <object"),
    ):
        with pytest.raises(UsageError, match=f"(?s){said}.*leave run_dir out"):
            quick(run_dir=tmp_path / "run", **more)
        assert list(tmp_path.iterdir()) == []
        assert quick(**more).result["updates"] == 8
    with pytest.raises(UsageError, match=r"state_dict of Unpackable\.things\[0\] is <object"):
        quick(run_dir=tmp_path / "run", callbacks=[Unpackable()])
    assert list(tmp_path.iterdir()) == []


# Schedules


def test_any_function_of_progress_is_a_schedule(tmp_path):
    rows = []
    quick(
        PPO(learning_rate=lambda p: 1e-3 * (1 - p), clip=falling, **SMALL),
        callbacks=[lambda state, rollout, row: rows.append(row)],
    )
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [1e-3 * (1 - i / 8) for i in range(8)])
    with pytest.raises(UsageError, match="learning_rate"):
        PPO(learning_rate=lambda p: -p)
    with pytest.raises(UsageError, match="must give a number for progress"):
        PPO(learning_rate=lambda p: "fast")


def test_a_subclass_of_schedule_is_stored_as_itself(tmp_path):
    run = tmp_path / "run"
    quick(PPO(learning_rate=Steps("linear", 1e-3, 1e-4), **SMALL), run_dir=run, callbacks=[stop])
    load(run)  # which needs no schedule
    with pytest.raises(UsageError, match="schedule, own_code:Steps, is code"):
        proximo.resume(run)
    resumed = proximo.resume(run, schedules=[Steps])
    assert resumed.config.algorithm.learning_rate == Steps("linear", 1e-3, 1e-4)
    assert [row["learning_rate"] for row in logged(run)] == [1e-3] * 4 + [1e-4] * 4


def test_a_schedule_of_ours_needs_no_name(tmp_path):
    quick(PPO(learning_rate=Schedule("linear", 1e-3, 1e-4), **SMALL), run_dir=tmp_path / "run")
    assert str(load(tmp_path / "run").config.algorithm.learning_rate) == "linear:0.001:0.0001"


# Callbacks


def test_a_callback_sees_the_whole_row_start_and_end():
    scored, rows = Scored(), []
    agent = quick(
        run_config=RunConfig(eval_every=2, keep_best="evaluation"),
        callbacks=[scored, lambda state, rollout, row: rows.append(dict(row))],
    )
    assert scored.calls[0] == "start"
    assert scored.calls.count("evaluate") == 4
    assert scored.calls[-2:] == ["end", "close"]
    assert scored.calls.count("end") == 1
    assert {"return_mean", "seconds", "steps_per_second", "approx_kl"} <= rows[-1].keys()
    assert (rows[-1]["evaluation"], rows[-1]["other"]) == (8, 0.5)
    assert "evaluation" not in rows[-2]
    assert agent.result["best"] == 8


def test_the_rewards_of_a_callback_are_learned_from_and_its_loss_term_means_torch():
    plain = quick(PPO(**SMALL), run_config=RunConfig(engine="torch"))
    assert plain.config.run.engine == "torch"
    changed = quick(callbacks=[Bonus(coef=0.5)])
    assert changed.config.run.engine == "torch"
    assert not torch.equal(weights(plain), weights(changed))
    nothing = quick(callbacks=[Bonus(coef=0.0)])
    assert torch.equal(weights(plain), weights(nothing))
    with pytest.raises(UsageError, match=r"run\.engine is native, but a callback adds a loss term"):
        quick(run_config=RunConfig(engine="native"), callbacks=[Bonus()])


def test_callbacks_by_name_are_made_with_their_settings(tmp_path):
    names = ("own_code:Bonus{coef = 0.5}", "own_code:watching")
    quick(run_config=RunConfig(callbacks=names), run_dir=tmp_path / "run", callbacks=[stop])
    assert RunFolder.open(tmp_path / "run").read_config().run.callbacks == names
    assert logged(tmp_path / "run")[-1]["watched"] == 1
    resumed = proximo.resume(tmp_path / "run", callbacks=[own_code.watching, Bonus, stop])
    assert resumed.config.run.callbacks == names
    assert logged(tmp_path / "run")[-1]["seen"] == 8
    for name, said in (
        ("own_code:Bonus{coef = }", r"write module:Class\{setting = value\}"),
        ("own_code:Bonus{power = 1}", r"no setting own_code:Bonus\.power"),
        ("own_code:Bonus{coef = true}", r"own_code:Bonus\.coef is True: it must be a number"),
        ("own_code", "names no code"),
        ("own_code:Nothing", "own_code has no 'Nothing'"),
    ):
        with pytest.raises(UsageError, match=said):
            quick(run_config=RunConfig(callbacks=(name,)))


def test_an_instance_that_is_given_again_has_settings_of_its_own(tmp_path):
    quick(run_dir=tmp_path / "run", callbacks=[Bonus(coef=0.5), stop])
    resumed = proximo.resume(tmp_path / "run", callbacks=[Bonus(coef=0.25)])
    assert "coef = 0.25" in resumed.config.run.callbacks[0]
    assert RunFolder.open(tmp_path / "run").read_config() == resumed.config


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    class Other(Bonus):
        __qualname__ = "Bonus"

        def load_state_dict(self, saved):
            raise KeyError("net")

    quick(run_dir=tmp_path / "run", callbacks=[Bonus(), stop])
    with pytest.raises(UsageError):
        proximo.resume(tmp_path / "run", callbacks=[Other()])
    assert proximo.resume(tmp_path / "run", callbacks=[Bonus]).result["updates"] == 8


def test_code_that_has_moved_is_recorded_by_its_new_name(tmp_path):
    run = tmp_path / "run"
    quick(run_dir=run, callbacks=[Bonus(coef=0.5), stop])
    file = run / "config.toml"
    file.write_text(file.read_text().replace("own_code:Bonus", "__main__:Bonus"))
    with pytest.raises(UsageError, match=r"callbacks=\['module:Class'\]"):
        proximo.resume(run)
    resumed = proximo.resume(run, callbacks=[Bonus])
    assert resumed.config.run.callbacks[0].startswith("own_code:Bonus{coef = 0.5")
    assert logged(run)[-1]["seen"] == 8


def test_a_class_is_a_callback_made_without_settings():
    rows = []
    quick(callbacks=[Bonus, lambda state, rollout, row: rows.append(row)])
    assert rows[-1]["seen"] == 8
