"""Trackers get what metrics.jsonl gets, by their own readers; none of them can harm a run."""

import importlib.util
import io
import json
import re
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import proximo
from proximo import PPO, RolloutConfig, RunConfig, TensorBoard, Tracker, UsageError, train
from proximo.run import tracker as base
from proximo.run import trackers
from proximo.run.event_file import crc32c
from proximo.run.readings import DERIVED, READINGS, tag, tagged

SMALL = {"minibatch_size": 16, "epochs": 1}
GIF = b"GIF89a" + struct.pack("<HH", 3, 2) + b"\x00\x00\x00;"


@pytest.fixture(autouse=True)
def the_own_exit(monkeypatch):
    """W&B puts a function of its own in the place of `sys.exit`, and leaves it there."""
    monkeypatch.setattr(sys, "exit", sys.exit)


def quick(*names, updates=8, run_dir=None, callbacks=(), **run):
    """A run of 32 steps an update."""
    return train(
        "CartPole-v1",
        PPO(**SMALL),
        rollout=RolloutConfig(steps=16),
        total_steps=32 * updates,
        num_envs=2,
        seed=3,
        run_config=RunConfig(log=names, **run),
        run_dir=run_dir,
        callbacks=callbacks,
    )


def weights(agent):
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder, names="proximo", step="steps"):
    """Every number of metrics.jsonl: tag -> its steps and values."""
    found = {}
    for row in rows_of(folder):
        for name, value in tagged(row, names).items():
            found.setdefault(name, []).append((row[step], value))
    return found


def scores_of(folder):
    return {
        f"result/{name}": x
        for name, x in json.loads((folder / "result.json").read_text()).items()
        if isinstance(x, int | float)
    }


def assert_same(curves, wanted):
    assert curves.keys() == wanted.keys()
    for name, points in wanted.items():
        steps, values = zip(*points, strict=True)
        assert [step for step, _ in curves[name]] == list(steps), name
        assert [value for _, value in curves[name]] == pytest.approx(values, rel=1e-6), name


@pytest.fixture(autouse=True)
def patient(monkeypatch, tmp_path):
    """All rows, however slow the machine, and no service of the user's own."""
    monkeypatch.setattr(base, "FREE", 1e9)
    monkeypatch.setattr(base, "PATIENCE", 300.0)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# What is refused before any work.


def test_names_are_checked_and_may_stand_in_one_word():
    assert RunConfig(log=("tensorboard,wandb", "wandb")).log == ("tensorboard", "wandb")
    with pytest.raises(UsageError, match=r"run.log is 'tensorbord'. Did you mean tensorboard\?"):
        RunConfig(log=("tensorbord",))
    with pytest.raises(UsageError, match=r"run.log_names is 'sb4': it must be one of proximo, sb3"):
        RunConfig(log_names="sb4")
    with pytest.raises(UsageError, match=r"names is 'sb4'\. Did you mean sb3\?"):
        TensorBoard("here", names="sb4")


@pytest.mark.parametrize("name", list(trackers.KINDS))
def test_a_tracker_that_is_not_installed_leaves_nothing(name, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=rf'pip install "proximo\[{name}\]"'):
        quick(name, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_without_a_folder_is_refused():
    with pytest.raises(UsageError, match=r"TensorBoard has no folder: give it one, TensorBoard\("):
        quick("tensorboard")


# TensorBoard, by its own event loader.


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    loaded.Reload()
    return loaded


def curves_of(loaded):
    names = loaded.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in loaded.Scalars(name)] for name in names}


def test_tensorboard_has_every_reading_the_settings_and_the_scores(tmp_path):
    from tensorboard.plugins.hparams import plugin_data_pb2

    run = tmp_path / "run"
    plain = quick(eval_every=4, eval_episodes=1)
    logged = quick("tensorboard", run_dir=run, eval_every=4, eval_episodes=1)
    assert torch.equal(weights(plain), weights(logged))
    loaded = events(run)
    curves = curves_of(loaded)
    scores = {name: curves.pop(name)[0] for name in list(curves) if name.startswith("result/")}
    assert_same(curves, expected(run))
    assert curves["eval/evaluation"][0][0] == 128
    assert scores == {n: (256, pytest.approx(x)) for n, x in scores_of(run).items()}
    about = loaded.PluginTagToContent("hparams")
    assert about.keys() == {f"_hparams_/{x}" for x in ("experiment", "session_start_info")} | {
        "_hparams_/session_end_info"
    }
    data = plugin_data_pb2.HParamsPluginData.FromString(about["_hparams_/session_start_info"])
    settings = data.session_start_info.hparams
    assert settings["algorithm.minibatch_size"].number_value == 16
    assert settings["env.id"].string_value == "CartPole-v1"
    assert settings["algorithm.target_kl"].string_value == "none"


def test_a_killed_run_continues_in_tensorboard_and_no_step_stands_twice(tmp_path):
    def fail(state, rollout, row):
        if state.updates == 6:
            raise RuntimeError("killed")

    whole = quick()
    with pytest.raises(RuntimeError, match="killed"):
        quick("tensorboard", run_dir=tmp_path / "run", callbacks=[fail])
    before = curves_of(events(tmp_path / "run"))["time/update"]
    saved = json.loads(proximo_checkpoint(tmp_path / "run"))["updates"]
    assert before[-1][1] > saved  # rows after the checkpoint, which are made again
    again = proximo.resume(tmp_path / "run")
    assert torch.equal(weights(again), weights(whole))
    curves = curves_of(events(tmp_path / "run"))
    updates = [value for _, value in curves["time/update"]]
    assert len(set(updates)) == len(updates)
    assert updates[saved:] == list(range(saved + 1, 9))


def proximo_checkpoint(folder):
    from proximo.run.checkpoint import Checkpoint

    return json.dumps(Checkpoint(folder / "checkpoints" / "last.safetensors").record)


def test_the_names_of_other_libraries(tmp_path):
    from proximo import language

    run = tmp_path / "sb3"
    quick("tensorboard", run_dir=run, log_names="sb3")
    curves = curves_of(events(run))
    rows = rows_of(run)
    for name, key in (("rollout/ep_rew_mean", "return_mean"), ("time/fps", "steps_per_second")):
        wanted = [row[key] for row in rows if row[key] is not None]
        assert [value for _, value in curves[name]] == pytest.approx(wanted)
    assert curves["train/entropy_loss"][0][1] == pytest.approx(-rows[0]["entropy"])
    assert [value for _, value in curves["train/n_updates"]] == list(range(1, 9))
    assert "rollout/return_smoothed" in curves  # which has no name there
    run = tmp_path / "trl"
    language.ppo(
        "tiny",
        ["a", "b"],
        lambda completions: [1.0] * len(completions),
        updates=2,
        sampling=language.Sampling(max_tokens=2),
        run=language.TrainingConfig(log=("tensorboard",), log_names="trl"),
        run_dir=run,
    )
    curves = curves_of(events(run))
    rows = rows_of(run)
    assert curves["objective/scores"] == [(1, 1.0), (2, 1.0)]  # updates are its steps
    assert curves["objective/kl"][1] == (2, pytest.approx(rows[1]["kl"]))
    entropy = rows[0]["entropy"] * rows[0]["length"]
    assert curves["objective/entropy"][0][1] == pytest.approx(entropy)


def test_the_page_has_each_reading_and_its_names_elsewhere():
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in page.splitlines() if line.count(" | ") == 3]
    listed = {}
    for keys, _, _, names in lines:
        found = re.findall(r"(SB3|CleanRL|TRL) (-?)`(.*?)`", names)
        for key in re.findall(r"`(.*?)`", keys.partition("(")[0]):
            listed[key] = {library.lower(): sign + name for library, sign, name in found}
    assert listed == {
        key: {style: name for style, name in reading._asdict().items() if name and style != "group"}
        for key, reading in READINGS.items()
    }
    for library, names in DERIVED.items():
        for name in names:
            assert f"`{name}`" in page, (library, name)


def test_each_reading_has_one_name_in_each_style():
    for style in ("proximo", "sb3", "cleanrl", "trl"):
        names = [tag(name, style)[0] for name in READINGS] + list(DERIVED.get(style, ()))
        assert len(set(names)) == len(names), style


def test_a_video_of_the_run_reaches_its_trackers(tmp_path):
    from proximo.run.folder import RunFolder

    run, said = tmp_path / "run", []
    quick("tensorboard", run_dir=run)
    video = tmp_path / "replay.gif"
    video.write_bytes(GIF)
    folder = RunFolder.open(run)
    trackers.show_video(folder, folder.read_config(), video, said.append)
    loaded = events(run)
    (image,) = loaded.Images("replay")
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, GIF)
    assert image.step == 256
    assert len(loaded.Scalars("time/update")) == 8
    assert said == []


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 900, 1023, 1024, 1026, 5000])
def test_the_checksum_of_a_record_is_the_one_of_tensorboard(length):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as theirs

    data = bytes(i * i % 251 for i in range(length))
    assert crc32c(data) == theirs(data)


def test_a_link_in_the_run_folder_is_not_written_through(tmp_path, capsys):
    class Writing(Kept):
        def open(self, run, key, settings):
            base.subfolder(run, "inner")

    (tmp_path / "elsewhere").mkdir()
    quick(run_dir=tmp_path / "run", callbacks=[lambda state, rollout, row: True])
    (tmp_path / "run" / "inner").symlink_to(tmp_path / "elsewhere")
    assert proximo.resume(tmp_path / "run", callbacks=[Writing()]).result["updates"] == 8
    assert "Writing is switched off (OSError: " in capsys.readouterr().err


# Weights & Biases: its file reader is a program of its own, so the records are read here.


def wandb_records(path):
    """Records of a .wandb file: blocks of 32 KiB, each record in parts with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data.ljust(place + 7, b"\0"), place)
        if place + 7 + length > len(data):  # which is being written
            return
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def wandb_content(folder):
    """Settings, curves, summary and exit code of an offline run."""
    settings, curves, summary, code = {}, {}, {}, None
    (path,) = folder.glob("*.wandb")
    for _ in range(600):  # until its process has written all of it
        if any(x.WhichOneof("record_type") == "exit" for x in wandb_records(path)):
            break
        time.sleep(0.1)
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            settings |= {x.key: json.loads(x.value_json) for x in record.run.config.update}
        elif kind == "history":
            values = {
                x.key or "/".join(x.nested_key): json.loads(x.value_json)
                for x in record.history.item
            }
            for name, value in values.items():
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((record.history.step.num, value))
        elif kind == "summary":
            summary |= {
                x.key or "/".join(x.nested_key): json.loads(x.value_json)
                for x in record.summary.update
            }
        elif kind == "exit":
            code = record.exit.exit_code
    return settings, curves, summary, code


def test_wandb_is_offline_and_has_every_reading_the_settings_and_the_scores(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    plain, stop = quick(), lambda state, rollout, row: state.updates == 5
    quick("wandb", run_dir=run, callbacks=[stop])
    resumed = proximo.resume(run)
    assert torch.equal(weights(plain), weights(resumed))
    key = (run / "tracker-key").read_text()
    first, second = sorted((run / "wandb").glob("offline-run-*"))  # by time
    assert first.name.endswith(key)
    assert second.name.endswith(key)  # the same run, continued
    settings, curves, _, code = wandb_content(first)
    assert settings["env.id"] == "CartPole-v1"
    assert settings["algorithm.minibatch_size"] == 16
    assert code == 0
    _, after, summary, code = wandb_content(second)
    assert code == 0
    both = {name: points + after.get(name, []) for name, points in curves.items()}
    assert_same(both, expected(run))
    assert {name: summary[name] for name in scores_of(run)} == pytest.approx(scores_of(run))


# MLflow and trackio, in an environment of their own (`make trackers`).


def stopped_and_resumed(name, run):
    """A run that failed at update 6 and continued."""

    def fail(state, rollout, row):
        if state.updates == 6:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        quick(name, run_dir=run, callbacks=[fail])
    (run.parent / "replay.gif").write_bytes(GIF)
    assert proximo.resume(run).result["updates"] == 8
    from proximo.run.folder import RunFolder

    folder, said = RunFolder.open(run), []
    trackers.show_video(folder, folder.read_config(), run.parent / "replay.gif", said.append)
    assert said == []


@pytest.mark.filterwarnings("ignore")  # of the library itself
def test_mlflow_has_every_reading_once_the_settings_the_scores_and_the_video(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = tmp_path / "run"
    stopped_and_resumed("mlflow", run)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("proximo")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert found.data.params["env.id"] == "CartPole-v1"
    assert found.data.params["algorithm.minibatch_size"] == "16"
    curves = {
        name: [(x.step, x.value) for x in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    scores = {name: curves.pop(name)[-1] for name in list(curves) if name.startswith("result/")}
    wanted = expected(run)
    for name in ("time/seconds", "time/steps_per_second"):  # of the first time, which stay
        curves.pop(name), wanted.pop(name)
    assert_same(curves, wanted)
    assert scores == {n: (256, pytest.approx(x)) for n, x in scores_of(run).items()}
    videos = client.list_artifacts(found.info.run_id, "videos")
    assert [file.path for file in videos] == ["videos/replay.gif"]


@pytest.mark.filterwarnings("ignore")  # of the library itself
def test_trackio_has_every_reading_once_the_settings_the_scores_and_the_video(
    tmp_path, monkeypatch
):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    storage, run = sqlite_storage.SQLiteStorage, tmp_path / "run"
    stopped_and_resumed("trackio", run)
    key = (run / "tracker-key").read_text()
    assert storage.get_runs("proximo") == ["run"]
    assert storage.get_run_config("proximo", "run", run_id=key)["env.id"] == "CartPole-v1"
    curves, other = {}, {}
    for log in storage.get_logs("proximo", "run", run_id=key):
        for name, value in log.items():
            if name not in ("timestamp", "step"):
                group = other if name.startswith(("result/", "replay")) else curves
                group.setdefault(name, []).append((log["step"], value))
    wanted = expected(run)
    for name in ("time/seconds", "time/steps_per_second"):  # of the first time, which stay
        curves.pop(name), wanted.pop(name)
    assert_same(curves, wanted)
    assert other.pop("replay")[0][1]["_type"] == "trackio.video"
    assert {n: x[-1] for n, x in other.items()} == {
        n: (256, pytest.approx(x)) for n, x in scores_of(run).items()
    }


# Trackers that fail.


class Kept(Tracker):
    """Keeps what it is told; fails where it is asked to."""

    def __init__(self, fails="", **more):
        super().__init__(**more)
        self.fails, self.written, self.flushed = fails, [], 0

    def open(self, run, key, settings):
        self.fail("open")
        self.key, self.settings = key, settings
        return -1

    def write(self, values, step, when):
        self.fail("write")
        self.written.append((step, values))

    def flush(self):
        self.flushed += 1

    def finish(self, scores, step, *, well):
        self.fail("finish")
        self.scores, self.well = scores, well

    def fail(self, place):
        if self.fails == place:
            raise SystemExit(f"{place} is out of order")


def test_a_logger_of_the_users_own_has_all_that_the_others_have(tmp_path):
    kept = Kept(names="cleanrl")
    quick(run_dir=tmp_path / "run", callbacks=[kept, lambda s, r, row: row.update(mine=2.0)])
    assert [step for step, _ in kept.written] == list(range(32, 257, 32))
    assert kept.written[0][1]["mine"] == 2.0  # of a callback, though it was given later
    assert "losses/approx_kl" in kept.written[0][1]
    assert kept.settings["run.seed"] == 3
    assert kept.well
    assert kept.scores["result/updates"] == 8
    assert "callbacks = []" in (tmp_path / "run" / "config.toml").read_text()  # it only watches


@pytest.mark.parametrize("place", ["open", "write", "finish"])
def test_a_tracker_that_fails_is_named_once_and_harms_no_run(place, tmp_path, capsys):
    plain, other = quick(), Kept()
    agent = quick(run_dir=tmp_path / "run", callbacks=[Kept(place), other])
    assert torch.equal(weights(plain), weights(agent))
    said = capsys.readouterr().err
    assert said.count("Kept is switched off (SystemExit: " + place) == 1
    assert "training goes on, and metrics.jsonl has every reading" in said
    assert len(other.written) == 8
    assert len(rows_of(tmp_path / "run")) == 8


def test_a_disk_that_is_full_switches_tensorboard_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "grow", lambda path: io.FileIO("/dev/full", "wb"))
    plain, agent = quick(), quick("tensorboard", run_dir=tmp_path / "run")
    assert torch.equal(weights(plain), weights(agent))
    assert "tensorboard is switched off (OSError: " in capsys.readouterr().err


def test_a_tracker_that_hangs_is_left_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(base, "PATIENCE", 0.01)
    monkeypatch.setattr(base, "MOST_WAITING", 4)
    release = threading.Event()

    class Hanging(Kept):
        def open(self, run, key, settings):
            release.wait()
            return -1

    hanging = Hanging()
    quick(run_dir=tmp_path / "run", callbacks=[hanging])
    release.set()
    said = capsys.readouterr().err
    assert "Hanging is switched off (4 updates wait for it, it is slower than the run)" in said
    assert said.count("switched off") == 1
    quick(run_dir=tmp_path / "short", updates=2, callbacks=[Hanging()])
    release.clear()


def test_rows_are_left_out_but_never_an_evaluation_or_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "FREE", 0.0)
    monkeypatch.setattr(base, "SHARE", 0.0)
    monkeypatch.setattr(base, "INTERVAL", 0.01)
    kept = Kept()
    quick(run_dir=tmp_path / "run", eval_every=5, eval_episodes=1, updates=12, callbacks=[kept])
    steps = [step // 32 for step, _ in kept.written]
    assert {1, 5, 10, 12} <= set(steps)

    paced = Kept()
    quick(updates=64, callbacks=[paced])
    steps = [step // 32 for step, _ in paced.written]
    assert steps[0] == 1
    assert steps[-1] == 64
    assert len(steps) <= 4  # those with further readings: of the first episodes


def test_the_key_of_a_run_is_data(tmp_path):
    from proximo.run.folder import RunFolder

    (tmp_path / "tracker-key").write_text("../../../elsewhere")
    key = base.run_key(RunFolder(tmp_path))
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert (tmp_path / "tracker-key").read_text() == key == base.run_key(RunFolder(tmp_path))
    (tmp_path / "tracker-key").unlink()
    (tmp_path / "tracker-key").mkdir()  # which no file replaces
    assert re.fullmatch("[0-9a-f]{16}", base.run_key(RunFolder(tmp_path)))
