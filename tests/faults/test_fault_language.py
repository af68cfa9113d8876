"""Checkpoints of language models: passed over where they are damaged, and disks that fail."""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from commands.command_line import proximo, refusal, result, rows, succeeded
from proximo import UsageError
from proximo.language import Sampling, ScoreConfig, TokenPPO, TrainingConfig, load_model, ppo, tiny
from proximo.run import checkpoint
from proximo.run.checkpoint import Checkpoint
from proximo.run.folder import RunFolder

TINY = ["--model", "tiny", "--model.layers", "1", "--model.width", "16", "--model.heads", "2"]
TINY += ["--model.context", "16", "--data", "texts.jsonl", "--algorithm.batch-size", "2"]
LAST = "checkpoints/last.safetensors"


@pytest.fixture
def run(here, monkeypatch):
    """A finished run of 6 updates that saved after each."""
    monkeypatch.setattr(checkpoint, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(checkpoint, "SAVE_SHARE", float("inf"))
    texts = [{"prompt": "a", "completion": c} for c in ("bc", "cab", "e", "eb")]
    (here / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    succeeded(proximo("lm", "sft", *TINY, "--updates", "6", "--run-dir", "r", "--quiet"))
    return here / "r"


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(run):
    whole, samples = (run / LAST).read_bytes(), (run / "samples.jsonl").read_bytes()
    (run / LAST).write_bytes(whole[:-1])
    assert "last.safetensors is damaged" in refusal(proximo("lm", "resume", "r", "--strict"))
    went = proximo("lm", "resume", "r", "--quiet")
    assert went.code == 0
    assert f"going on from {run}/checkpoints/last-5.safetensors, after update 5" in went.err
    assert (run / LAST).read_bytes() == whole
    assert [row["update"] for row in rows("r")] == list(range(1, 7))
    assert (run / "samples.jsonl").read_bytes() == samples
    assert "is finished" in succeeded(proximo("lm", "resume", "r")).out


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("counters", []),
        ("counters", {"updates": 6, "tokens": 1}),
        ("counters", {"updates": -1, "tokens": 1, "horizon": 6}),
        ("counters", {"updates": 6, "tokens": 1, "horizon": 0}),
        ("finished", 1),
        ("data", None),
        ("stage", "ppo"),
    ],
)
def test_a_forged_record_is_refused(run, place, value):
    saved = Checkpoint(run / LAST)
    checkpoint.write(run / LAST, saved.tensors, {**saved.record, place: value})
    message = refusal(proximo("lm", "resume", "r", "--strict", "--updates", "7"))
    assert LAST in message


def test_a_tensor_that_does_not_fit_is_refused(run):
    saved = Checkpoint(run / LAST)
    for name in ("optimizer.0.exp_avg", "moments.mean", min(saved.tensors)):
        tensors = {**saved.tensors, name: saved.tensors[name].double()[None]}
        checkpoint.write(run / LAST, tensors, saved.record)
        assert name in refusal(proximo("lm", "resume", "r", "--updates", "7"))


def test_samples_that_are_none_are_left_out(run):
    with (run / "samples.jsonl").open("ab") as file:
        file.write(b"[" * 10**5 + b"\n[]\n7\n\xff\n" + b'{"update": "x"}\n{"update": 9}\n{"upd')
    succeeded(proximo("lm", "resume", "r", "--updates", "7", "--quiet"))
    assert b"[]" not in (run / "samples.jsonl").read_bytes()


def test_a_run_of_control_is_no_run_of_a_language_model(run, trained):
    shutil.copy(trained / LAST, run / LAST)
    assert "is of no run of sft" in refusal(proximo("lm", "resume", "r", "--updates", "7"))
    shutil.copytree(trained, "control")
    shutil.copy(run / "checkpoints/last-5.safetensors", "control/" + LAST)
    assert "is no checkpoint of a policy for envs" in refusal(proximo("resume", "control"))
    refusal(proximo("eval", "control"))


def test_an_end_that_cannot_be_saved_ends_badly(run):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ended = f"training has ended, but {run}/model could not be written"
    size = (run / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, hard))
    try:
        failed = proximo("lm", "resume", "r", "--updates", "20", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert failed.code == 1
    assert "Traceback" not in failed.err
    assert failed.err.count("training goes on") == 2  # of the metrics, and of the last
    assert ended in failed.err
    good = f"the last good checkpoint is {run}/checkpoints/last.safetensors, after update 6"
    assert good in failed.err
    succeeded(proximo("lm", "resume", "r", "--quiet"))
    assert result("r")["updates"] == 20
    assert [row["update"] for row in rows("r")] == list(range(1, 21))


@pytest.mark.parametrize("how", ["pickle", "code"])
def test_a_model_that_would_run_code_is_refused(tmp_path, how):
    tiny(["abc"], width=8, heads=1).save(tmp_path)
    marker = tmp_path / "marker"
    act = f"open({str(marker)!r}, 'w').close()"
    if how == "pickle":
        (tmp_path / "model.safetensors").unlink()
        data = b"cbuiltins\nexec\n(V" + act.encode() + b"\ntR."
        (tmp_path / "pytorch_model.bin").write_bytes(data)
    else:
        (tmp_path / "evil.py").write_text(act)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        load_model(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("sampling", "lengths"),
    [
        (Sampling(max_tokens=4, stop=(*"abc", "<unknown>")), {1}),  # whatever is said
        (Sampling(max_tokens=4, min_tokens=3, temperature=1e-3), {4}),  # no end until the last
        (Sampling(max_tokens=1), {1}),
    ],
    ids=["all end at once", "none ends", "one token"],
)
@pytest.mark.parametrize("critic", [True, False])
def test_completions_that_hold_nothing_or_never_end_are_learned_from(sampling, lengths, critic):
    seen = set()

    def reward(completion_ids):
        seen.update(map(len, completion_ids))
        return [float(ids[0]) for ids in completion_ids]

    method = {} if critic else {"advantage": "monte-carlo", "critic": False}
    algorithm = TokenPPO(minibatch_size=4, epochs=2, **method)
    run = TrainingConfig(updates=3, sequences=8, seed=5)
    score = ScoreConfig(missing_eos_penalty=1.0, normalize=True)
    lm = tiny(["abc"], layers=1, width=16, heads=2, context=16)
    tuned = ppo(
        lm, ["ab", "c"], reward, algorithm=algorithm, sampling=sampling, run=run, score=score
    )
    assert seen == lengths
    assert all(x.isfinite().all() for x in tuned.lm.state_dict().values())
    assert all("skipped_steps" not in row for row in tuned.rows)


def score_a(completions):
    return [float(text.count("a")) for text in completions]


def small_stage(run_dir, *, resume=False, updates=2):
    run = TrainingConfig(updates=updates, sequences=16)
    sampling = Sampling(max_tokens=2)
    return ppo(
        tiny(["a", "b"], layers=1, width=16, heads=2, context=8),
        ["a", "b"],
        score_a,
        sampling=sampling,
        run=run,
        run_dir=run_dir,
        resume=resume,
    )


def left_by(run):
    """All that a stage comes to, but for the time that it took."""
    ended = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for timed in (ended, *rows):
        del timed["seconds"]
        timed.pop("tokens_per_second", None)
    files = "checkpoints/last.safetensors", "model/model.safetensors", "samples.jsonl"
    return ended, rows, [(run / name).read_bytes() for name in files]


def test_a_stage_that_is_killed_at_its_end_or_its_beginning_ends_as_if_it_never_was(tmp_path):
    run = tmp_path / "r"
    small_stage(run)
    whole = left_by(run)
    (run / "result.json").unlink()  # killed before it was written
    small_stage(run, resume=True)
    assert left_by(run) == whole
    (run / "result.json").unlink()  # killed before its first checkpoint
    for file in [*run.glob("checkpoints/*"), run / "model/model.safetensors"]:
        file.unlink()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).write_bytes(b"")
    with pytest.raises(UsageError, match="holds no checkpoint yet"):
        RunFolder.open(run).check_begun()
    small_stage(run)  # the same line again
    assert left_by(run) == whole
    with pytest.raises(UsageError, match="exists"):
        small_stage(run)


def test_rows_of_a_stage_that_a_power_cut_took_are_named(tmp_path, capsys):
    run = tmp_path / "r"
    small_stage(run)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).write_bytes(b"")
    small_stage(run, resume=True, updates=3)
    said, warnings = (
        capsys.readouterr().err,
        json.loads((run / "result.json").read_text())["warnings"],
    )
    assert "samples.jsonl lacks" in said
    for words in ("metrics.jsonl lacks the rows of 2 updates, from 1 to 2", "samples.jsonl lacks"):
        assert words in "".join(warnings)


def test_a_reward_may_change_the_current_folder(run):
    """When it is imported and whenever it is asked: what else the command names is found."""
    pairs = [{"prompt": "a", "chosen": "bc", "rejected": "e"}] * 2
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    judge = ("--data", "pairs.jsonl", "--updates", "1", "--algorithm.batch-size", "2", "--quiet")
    succeeded(proximo("lm", "reward", "--model", "r", *judge, "--run-dir", "judge"))
    Path("leaving_reward.py").write_text(
        "import os\nos.chdir('/')\n"
        "def score(completions):\n    os.chdir('/usr')\n    return [1.0] * len(completions)\n"
    )
    few = ("--sampling.max-tokens", "2", "--run.sequences", "2", "--algorithm.minibatch-size", "2")
    few += ("--ptx.coef", "0.1", "--ptx.data", "texts.jsonl", "--prompts", "texts.jsonl", "--quiet")
    for rewards in (("leaving_reward:score", "judge"), ("judge", "leaving_reward:score")):
        sys.modules.pop("leaving_reward", None)
        begin = ("lm", "ppo", "--model", "r", *few, "--updates", "1", "--run-dir", "p")
        for words in (begin, ("lm", "resume", "p", "--updates", "2", "--quiet")):
            try:
                succeeded(proximo(*words, "--reward", *rewards))
                assert os.getcwd() == "/usr"
            finally:
                os.chdir(run.parent)
        assert result("p")["updates"] == 2
        assert 'path = "r"' in Path("p/config.toml").read_text()
        shutil.rmtree("p")
