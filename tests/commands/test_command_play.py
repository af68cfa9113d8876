"""`proximo play`: replays, written without a display."""

import sys

import numpy as np
import pytest

from commands.command_line import proximo, refusal, succeeded, train_in
from proximo.commands.pictures import Video

imageio = pytest.importorskip("imageio.v3", reason="pictures are an extra")
ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="pictures are an extra")


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the command sets
        monkeypatch.delenv(name)


def frames(path):
    """How many frames a video has."""
    if path.suffix == ".mp4":
        return ffmpeg.count_frames_and_secs(str(path))[0]
    return len(imageio.imread(path, index=None))


@pytest.mark.parametrize("name", ["replay.gif", "replay.mp4"])
def test_a_replay_is_written_without_a_display(here, trained, name):
    said = succeeded(proximo("play", trained, "--video", name)).out
    assert frames(here / name) > 1
    assert name in said
    assert "episode 1 (seed 1000000): return" in said


def test_what_is_shown_is_what_was_scored(here, trained):
    shown = succeeded(proximo("play", trained, "--video", "r.gif", "--seed", "5")).out
    scored = succeeded(proximo("eval", trained, "--episodes", "1", "--seed", "5")).out
    assert shown.split("return ")[1].split()[0] == scored.split("return ")[1].split()[0]


def test_several_episodes_follow_each_other(here, trained):
    said = succeeded(proximo("play", trained, "--video", "r.gif", "--episodes", "2")).out
    assert "episode 2 (seed 1000001): return" in said


def test_a_world_of_ones_own_needs_its_name_again(here, own_world):
    succeeded(train_in(own_world, "--run-dir", "r", "--quiet"))
    (here / "imported").unlink()
    del sys.modules["own_world"]

    message = refusal(proximo("play", "r", "--video", "r.gif"))
    assert f"--env {own_world}" in message
    assert not (here / "imported").exists()
    assert not (here / "r.gif").exists()

    succeeded(proximo("play", "r", "--video", "r.gif", "--env", own_world))
    assert frames(here / "r.gif") == 11  # ten steps, and where they end


def test_the_line_to_type_for_a_world_of_ones_own_is_the_whole_line(here, own_world):
    succeeded(train_in(own_world, "--run-dir", "r", "--quiet"))
    message = refusal(proximo("play", "r", "--video", "r.gif"))
    assert f"proximo play r --video r.gif --env {own_world}" in message


@pytest.mark.parametrize("name", ["replay.avi", "replay", "replay.gif.txt"])
def test_a_video_of_another_kind_is_refused(here, trained, name):
    message = refusal(proximo("play", trained, "--video", name))
    assert name in message
    assert ".gif or .mp4" in message


def test_a_video_into_a_folder_that_is_not_there_is_refused_before_playing(here, trained):
    played = proximo("play", trained, "--video", "nowhere/replay.gif")
    assert "nowhere" in refusal(played)
    assert played.out == ""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--episodes", "0"], ["--episodes", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--env", "Pendulum-v1"], ["Pendulum-v1", "(3,)", "(4,)"]),
    ],
    ids=["no episodes", "a seed below 0", "unfit world"],
)
def test_play_refuses(here, trained, words, parts):
    message = refusal(proximo("play", trained, "--video", "replay.gif", *words))
    for part in parts:
        assert part in message


def test_a_world_may_draw_every_picture_in_one_and_the_same_array(tmp_path):
    class Canvas:
        picture = np.zeros((16, 16, 3), np.uint8)

        def render(self):
            self.picture += 60
            return self.picture

    video = Video(tmp_path / "r.gif", 10.0, Canvas())
    for _ in range(3):
        video.watch()
    video.close()
    shown = imageio.imread(tmp_path / "r.gif", index=None)
    assert [int(picture.max()) for picture in shown] == pytest.approx([60, 120, 180], abs=2)
