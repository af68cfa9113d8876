"""`proximo plot`: learning curves of one run or several."""

import shutil

import pytest

from commands.command_line import proximo, refusal, succeeded, train, train_in
from proximo.insight.groups import group_runs
from proximo.run.folder import RunFolder

pytest.importorskip("matplotlib", reason="pictures are an extra")

PNG = b"\x89PNG\r\n\x1a\n"


def is_picture(path):
    return path.read_bytes()[:8] == PNG and path.stat().st_size > 10_000


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two more runs of the same task: longer, and logged more sparsely."""
    place = tmp_path_factory.mktemp("others")
    succeeded(train("--run-dir", place / "longer", "--seed", "1", steps=768))
    succeeded(train("--run-dir", place / "sparse", "--seed", "2", "--run.log-every", "3"))
    return [place / "longer", place / "sparse"]


def test_the_curves_of_a_run_stand_in_its_folder(here, trained):
    shutil.copytree(trained, here / "r")
    said = succeeded(proximo("plot", "r")).out
    assert is_picture(here / "r/curves.png")
    assert "r/curves.png" in said


def test_the_curves_of_a_run_where_they_were_asked_for(here, trained):
    succeeded(proximo("plot", trained, "--out", "curves.png"))
    assert is_picture(here / "curves.png")
    assert not (trained / "curves.png").exists()


def test_several_runs_of_one_task_make_one_picture(here, trained, others):
    succeeded(proximo("plot", trained, *others, "--out", "all.png"))
    assert is_picture(here / "all.png")


def test_runs_of_other_algorithms_and_settings_are_curves_of_their_own(here, others):
    succeeded(train("--run-dir", "clip", "--algorithm.clip", "0.1"))
    settings = ["--preset", "none", "--total-steps", "64", "--rollout.steps", "32"]
    for name in ("a2c", "reinforce"):
        succeeded(proximo("train", name, "CartPole-v1", "--run-dir", name, *settings))
    runs = [others[0], "clip", "a2c", "reinforce", others[1]]
    folders = [RunFolder.open(run) for run in runs]
    configs = [folder.read_config() for folder in folders]
    assert group_runs(folders, configs) == {
        "ppo, clip 0.2": [0, 4],
        "ppo, clip 0.1": [1],
        "a2c": [2],
        "reinforce": [3],
    }
    assert group_runs(folders[2:4], configs[2:4]) == {"a2c": [0], "reinforce": [1]}
    assert group_runs(folders[::4], configs[::4]) == {"ppo": [0, 1]}
    said = succeeded(proximo("plot", *runs, "--out", "all.svg")).out
    assert "the mean of ppo, clip 0.2 ends at 512 steps" in said
    text = (here / "all.svg").read_text()
    for label in ("ppo, clip 0.2 (2 runs)", "ppo, clip 0.1", "a2c", "ppo, a2c, reinforce on"):
        assert f">{label}" in text


def test_runs_that_differ_in_much_are_told_apart_by_their_folders(here, trained):
    words = ["--rollout.steps", "16", "--env.num-envs", "4", "--algorithm.gamma", "0.9"]
    succeeded(train("--run-dir", "other", *words, "--net.hidden", "8"))
    folders = [RunFolder.open(trained), RunFolder.open("other")]
    labels = group_runs(folders, [folder.read_config() for folder in folders])
    assert labels == {f"ppo, {trained.name}": [0], "ppo, other": [1]}


def test_a_run_of_one_update_can_be_drawn(here):
    succeeded(train("--run-dir", "r", steps=64))
    succeeded(proximo("plot", "r"))
    assert is_picture(here / "r/curves.png")


def test_a_run_in_which_no_episode_ended_can_be_drawn(here):
    succeeded(train_in("Acrobot-v1", "--run-dir", "r", steps=128))
    succeeded(proximo("plot", "r"))
    assert is_picture(here / "r/curves.png")


def test_a_run_with_evaluations_can_be_drawn(here):
    succeeded(train("--run-dir", "r", "--run.eval-every", "3", "--run.eval-episodes", "2"))
    succeeded(proximo("plot", "r"))
    assert is_picture(here / "r/curves.png")


def test_runs_of_different_envs_are_refused(here, trained):
    succeeded(train_in("Acrobot-v1", "--run-dir", "r", steps=64))
    message = refusal(proximo("plot", trained, "r", "--out", "all.png"))
    assert "CartPole-v1" in message
    assert "Acrobot-v1" in message
    assert not (here / "all.png").exists()


@pytest.mark.parametrize("content", [None, "", '{"update": 1, "st'], ids=["no", "empty", "torn"])
def test_a_run_without_metrics_is_refused(here, trained, content):
    shutil.copytree(trained, here / "r")
    (here / "r/metrics.jsonl").unlink()
    if content is not None:
        (here / "r/metrics.jsonl").write_text(content)
    message = refusal(proximo("plot", "r"))
    assert "r has no metrics" in message
    assert not (here / "r/curves.png").exists()


def test_no_run_at_all_is_refused():
    assert "at least one run folder" in refusal(proximo("plot"))


def test_a_missing_run_is_called_a_missing_run(here):
    message = refusal(proximo("plot", "nowhere"))
    assert "nowhere is no run folder" in message


@pytest.mark.parametrize("out", ["nowhere/curves.png", "curves.abc"])
def test_a_picture_that_cannot_be_written_is_refused(here, trained, out):
    assert out in refusal(proximo("plot", trained, "--out", out))
