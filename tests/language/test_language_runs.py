"""A stage is a run like any other: resumed by its folder, stopped at a score, watched, profiled."""

import dataclasses
import json
import re

import pytest
import torch

pytest.importorskip("transformers")

import proximo
import proximo.language
from language.test_stages import FEW, QUICK, SHORT, SMALL, count_a, rows_without_time, same_weights
from proximo import UsageError
from proximo.language import (
    KLConfig,
    ModelConfig,
    ScoreConfig,
    SupervisedConfig,
    TrainingConfig,
    fit_reward,
    ppo,
    resume,
    sft,
)
from proximo.run.callbacks import Callback
from proximo.run.folder import RunFolder
from proximo.run.health import diagnose_run

TEXTS = [{"prompt": "a", "completion": text} for text in ("b", "cab", "ab", "bb", "ccc")]
HELD_OUT = dataclasses.replace(FEW, updates=4, eval_every=1, held_out=0.4)


def stop_after(updates):
    return lambda state, rollout, row: state.updates == updates


def tune(run_dir=None, reward=count_a, run=FEW, **changes):
    options = {"algorithm": QUICK, "sampling": SHORT, "run": run, "run_dir": run_dir} | changes
    return ppo(ModelConfig(**SMALL), ["ab", "c", "ba", "b", "a"], reward, **options)


def test_a_run_of_ppo_is_resumed_by_its_folder_to_the_bit(tmp_path):
    straight = tune()
    tune(tmp_path / "run", callbacks=[stop_after(2)])
    with pytest.raises(UsageError, match="data were given by a program"):
        resume(tmp_path / "run", reward=count_a)
    prompts = ["ab", "c", "ba", "b", "a"]
    with pytest.raises(UsageError, match="reward was given by a program"):
        resume(tmp_path / "run", data=prompts)
    resumed = resume(tmp_path / "run", data=prompts, reward=count_a)
    assert same_weights(resumed.lm, straight.lm)
    assert rows_without_time(resumed) == rows_without_time(straight)
    assert resumed.result["stopped_by"] == "updates"


@pytest.mark.parametrize("stage", [sft, fit_reward])
def test_supervised_runs_are_resumed_by_their_folder_to_the_bit(tmp_path, stage):
    data = tmp_path / "data.jsonl"
    rows = [{**row, "chosen": row["completion"], "rejected": "cc"} for row in TEXTS]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {"algorithm": SupervisedConfig(batch_size=2), "run": FEW}
    straight = stage(ModelConfig(**SMALL), data, **options)
    stage(
        ModelConfig(**SMALL), data, run_dir=tmp_path / "run", **options, callbacks=[stop_after(2)]
    )
    resumed = resume(tmp_path / "run")
    assert same_weights(resumed.lm, straight.lm)
    assert resume(tmp_path / "run", updates=8).rows[-1]["update"] == 8


def test_code_that_a_run_names_is_imported_only_when_it_is_named_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_reward.py").write_text(
        "def score(completions):\n    return [float(text.count('a')) for text in completions]\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "c"}\n')
    options = {"algorithm": QUICK, "sampling": SHORT, "run": FEW, "run_dir": "run"}
    score = ScoreConfig(reward=("my_reward:score",))
    stop = [stop_after(1)]
    ppo(ModelConfig(**SMALL), "prompts.jsonl", score=score, callbacks=stop, **options)
    with pytest.raises(UsageError, match=r"my_reward:score, is code: .* resume\(.*, reward="):
        resume("run")
    assert resume("run", reward="my_reward:score").rows[-1]["update"] == 6


def test_a_run_ends_at_a_held_out_score(tmp_path):
    run = dataclasses.replace(HELD_OUT, stop_at=-1.0)
    result = tune(tmp_path / "run", run=run)
    assert [row["update"] for row in result.rows] == [1]
    assert result.result["stopped_by"] == "stop_at"
    assert (tmp_path / "run/model/model.safetensors").exists()
    with pytest.raises(UsageError, match=r"run\.stop_at is 1\.0.* run\.eval_every"):
        TrainingConfig(stop_at=1.0)


def test_a_profile_says_where_the_time_went(tmp_path):
    result = tune(tmp_path / "run", run=dataclasses.replace(FEW, updates=2, profile=True))
    phases = result.result["profile"]["phases"]
    assert {"act", "update", "evaluate"} <= {name for name, x in phases.items() if x["share"] > 0}
    assert sum(x["share"] for x in phases.values()) == pytest.approx(1)


def test_a_reward_that_says_nothing_is_a_finding(tmp_path, capsys):
    result = tune(tmp_path / "run", reward=lambda completions: [0.0 for _ in completions])
    assert result.result["health"][0]["rule"] == "scores-all-equal"
    assert capsys.readouterr().err.count("health: scores-all-equal: ") == 1
    assert [row["health"] for row in result.rows if "health" in row] == ["scores-all-equal"]
    assert diagnose_run(RunFolder.open(tmp_path / "run"))[0].rule == "scores-all-equal"
    assert {"repetition", "grad_clip_fraction"} <= result.rows[0].keys()


class Watch(Callback):
    """Every method that a stage calls."""

    def __init__(self):
        self.seen = []

    def start(self, state):
        self.seen.append("start")

    def before_advantages(self, state, rollout):
        return dataclasses.replace(rollout, reply_reward=0 * rollout.reply_reward + 2)

    def loss(self, policy, batch):
        assert batch.sequences.response.sum() == len(batch)
        return 0.0 * policy.value_head.weight.sum()

    def evaluate(self, state):
        return {"evaluation": 7.0, "held_out_score": float(state.updates)}

    def __call__(self, state, rollout, row):
        self.seen.append((state.updates, len(rollout.texts), row["reward"], row["evaluation"]))

    def end(self, state, result):
        self.seen.append(result["stopped_by"])


def test_a_callback_sees_and_changes_what_it_does_in_control():
    watch = Watch()
    run = dataclasses.replace(HELD_OUT, updates=2)
    kl = KLConfig(coef=0)
    result = tune(run=run, callbacks=[watch], kl=kl)
    assert watch.seen == ["start", (1, 8, 2.0, 7.0), (2, 8, 2.0, 7.0), "updates"]
    assert result.final["best_held_out_score"] == 2.0
    with pytest.raises(UsageError, match="a callback has a loss: sft takes none"):
        sft(ModelConfig(**SMALL), TEXTS, updates=1, callbacks=[Watch()])


class Counting(Callback):
    """Has something to remember."""

    def __init__(self):
        self.count = torch.tensor(0)

    def __call__(self, state, rollout, row):
        self.count += 1
        return state.updates == 2

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, saved):
        self.count = saved["count"]


def test_a_callback_continues_where_it_stood(tmp_path):
    tune(tmp_path / "run", callbacks=[Counting()])
    again = Counting()
    resume(tmp_path / "run", data=["ab", "c", "ba", "b", "a"], reward=count_a, callbacks=[again])
    assert again.count == 6
    (tmp_path / "run/checkpoints/last.safetensors").write_bytes(b"no checkpoint")
    options = {"data": ["ab", "c", "ba", "b", "a"], "reward": count_a, "callbacks": [again]}
    with pytest.raises(UsageError, match="damaged"):
        resume(tmp_path / "run", strict=True, **options)


def test_what_a_callback_adds_is_logged(tmp_path):
    def add(state, rollout, row):
        row["mine"] = torch.tensor(state.updates / 2)

    result = tune(tmp_path / "run", callbacks=[add])
    assert [row["mine"] for row in result.rows] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_progress_and_the_result_are_shown(tmp_path, capfd):
    quiet = tune(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    shown = tune(tmp_path / "run", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    first, *_, last = err.splitlines()
    assert first == f"ppo of tiny, run folder {tmp_path / 'run'}"
    assert re.match(rf"{FEW.updates}/{FEW.updates} updates  score [\d.]+  .*KL", last)
    assert same_weights(quiet.lm, shown.lm)
    assert repr(shown) == f"Result(ppo of tiny, {FEW.updates} updates)"
    assert "<td" in shown._repr_html_()
    table = proximo.read_metrics(tmp_path / "run")
    assert list(table["score"]) == shown.scores
    done = sft(ModelConfig(**SMALL), TEXTS, run=FEW, run_dir=tmp_path / "sft")
    resume(tmp_path / "sft", data=TEXTS, updates=FEW.updates + 1, progress=True)
    said = capfd.readouterr().err
    assert re.search(rf"^{FEW.updates + 1}/{FEW.updates + 1} updates  loss [\d.]+", said, re.M)
    assert "updates" in str(done.result)


def test_every_public_name_is_listed():
    assert set(proximo.language.__all__) <= set(dir(proximo.language))
    for name in proximo.language.__all__:
        assert getattr(proximo.language, name) is not None


def test_every_field_of_the_state_is_in_its_checkpoints_or_declared_as_derived():
    from proximo.language.state import COUNTERS, DERIVED, PPO_COUNTERS, SCORES, LanguageState

    saved = {*PPO_COUNTERS, *COUNTERS, *SCORES, "skipped", "stage", "policy", "optimizer"}
    saved |= {"generators", "moments", "reference", "frozen_in", "data"}
    fields = {field.name for field in dataclasses.fields(LanguageState)}
    assert saved | DERIVED == fields
    assert not saved & DERIVED
