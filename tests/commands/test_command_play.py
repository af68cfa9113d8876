"""`proximo play`: replays, written without a display."""

import subprocess
import sys

import numpy as np
import pytest

from commands.command_line import proximo, refusal, succeeded, train_in
from proximo.commands.video import Video

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


def test_an_env_of_ones_own_needs_its_name_again(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", "--quiet"))
    (here / "imported").unlink()
    del sys.modules["own_env"]

    message = refusal(proximo("play", "r", "--video", "r.gif"))
    assert f"--env {own_env}" in message
    assert not (here / "imported").exists()
    assert not (here / "r.gif").exists()

    succeeded(proximo("play", "r", "--video", "r.gif", "--env", own_env))
    assert frames(here / "r.gif") == 11  # ten steps, and where they end


def test_the_line_to_type_for_an_env_of_ones_own_is_the_whole_line(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", "--quiet"))
    message = refusal(proximo("play", "r", "--video", "r.gif"))
    assert f"proximo play r --video r.gif --env {own_env}" in message


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
    ids=["no episodes", "a seed below 0", "unfit env"],
)
def test_play_refuses(here, trained, words, parts):
    message = refusal(proximo("play", trained, "--video", "replay.gif", *words))
    for part in parts:
        assert part in message


def test_an_env_may_draw_every_picture_in_one_and_the_same_array(tmp_path):
    class Canvas:
        picture = np.zeros((16, 16, 3), np.uint8)

        def render(self):
            self.picture += 60
            return self.picture

    with Video(tmp_path / "r.gif", 10.0, Canvas()) as video:
        for _ in range(3):
            video.watch()
    shown = imageio.imread(tmp_path / "r.gif", index=None)
    assert [int(picture.max()) for picture in shown] == pytest.approx([60, 120, 180], abs=2)


# What envs draw

SHOWS = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Show(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t >= 5, False, {}

    def picture(self):
        return np.full((17, 21, 3), 40 * self.t, np.uint8)


def of(draw=Show.picture, **attributes):
    return type("Drawn", (Show,), {"render": draw, **attributes})


Bytes = of()
Floats = of(lambda s: s.picture() / 255)
FloatBytes = of(lambda s: s.picture().astype(float))
Integers = of(lambda s: s.picture().astype(int))
Bits = of(lambda s: s.picture() % 80 > 0)
Grey = of(lambda s: s.picture()[..., :1])
Flat = of(lambda s: s.picture()[..., 0])
Transparent = of(lambda s: np.concatenate([s.picture(), s.picture()[..., :1]], -1))
Grows = of(lambda s: np.full((17 + 2 * s.t, 21 + s.t, 3), 40 * s.t, np.uint8))
Tiny = of(lambda s: np.full((1, 1, 3), 40 * s.t, np.uint8))
NoMetadata = of(metadata=None)
NoRate = of(metadata={"render_fps": None})
RateZero = of(metadata={"render_fps": 0})
RateBelow = of(metadata={"render_fps": -5})
RateWord = of(metadata={"render_fps": "fast"})
RateHuge = of(metadata={"render_fps": 1e9})
Nothing = of(lambda s: None)
Words = of(lambda s: "a board")
Frames = of(lambda s: [s.picture(), s.picture()])
First = of(lambda s: np.moveaxis(s.picture(), -1, 0))
NotFinite = of(lambda s: np.full((4, 4, 3), np.nan))
Beyond = of(lambda s: s.picture().astype(int) + 300)
Empty = of(lambda s: np.zeros((0, 4, 3), np.uint8))
Fails = of(lambda s: 1 // 0)
FailsLate = of(lambda s: s.picture() if s.t < 4 else None)
Ansi = of(metadata={"render_modes": ["ansi"]})


class NoMode(Show):
    def __init__(self):
        pass


class NoWords(Show):
    @property
    def metadata(self):
        raise RuntimeError("not connected")
"""


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A run in an env whose episodes are five steps long, and the module of envs to show."""
    place = tmp_path_factory.mktemp("shows")
    (place / "shows.py").write_text(SHOWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        succeeded(train_in("shows:Show", "--run-dir", place / "run", "--quiet", steps=128))
    return place


def pictures(path):
    """Of an mp4, as bytes: the package that reads them leaves files open."""
    words = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path]
    words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    return np.frombuffer(subprocess.run(words, capture_output=True, check=True).stdout, np.uint8)


RATE = "of its metadata is"
WELL = {
    **dict.fromkeys(("Bytes", "Floats", "FloatBytes", "Integers", "Bits", "Grey", "Flat"), ""),
    **dict.fromkeys(("Transparent", "Grows", "Tiny", "NoMetadata", "NoRate"), ""),
    **dict.fromkeys(("RateZero", "RateBelow", "RateWord", "RateHuge"), RATE),
}


@pytest.mark.parametrize("name", WELL)
def test_whatever_is_a_picture_is_written(show, monkeypatch, name):
    monkeypatch.chdir(show)
    for kind in ("gif", "mp4"):
        file = show / f"{name}.{kind}"
        played = succeeded(proximo("play", "run", "--env", f"shows:{name}", "--video", file))
        assert f"6 states in {file}" in played.out
        assert (RATE in played.out) == bool(WELL[name])
        assert frames(file) == 6
        height, width = {"Tiny": (1, 1)}.get(name, (17, 21))
        if kind == "mp4":  # which has even sides
            height, width = height + height % 2, width + width % 2
            last = pictures(file).reshape(6, height, width, 3)[5]
        else:
            last = imageio.imread(file, index=None)[5]
            assert last.shape[:2] == (height, width)
        assert abs(int(last[..., :3].mean()) - (255 if name == "Bits" else 200)) <= 5
    assert not list(show.glob(".proximo-*"))


REFUSED = {
    "Nothing": "render of Drawn returned None: with the render_mode rgb_array",
    "Words": "render of Drawn returned 'a board': ",
    "Frames": "an array of shape (2, 17, 21, 3): ",
    "First": "an array of shape (3, 17, 21): ",
    "NotFinite": "returned numbers from nan to nan: ",
    "Beyond": "returned numbers from 300 to ",
    "Empty": "an array of shape (0, 4, 3): ",
    "Fails": "the method render of Drawn failed: ZeroDivisionError",
    "FailsLate": "returned None",
    "Ansi": "cannot be shown by render_mode rgb_array: the render_modes of its metadata are ansi",
    "Show": "Show has no method render: with the render_mode rgb_array",
    "NoMode": "to be shown, it must take the argument render_mode, and keep it",
    "NoWords": "NoWords failed at its metadata: RuntimeError: not connected",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_is_refused_in_one_line_and_leaves_no_file(show, monkeypatch, name):
    monkeypatch.chdir(show)
    for kind in ("gif", "mp4"):
        file = show / f"refused.{kind}"
        message = refusal(proximo("play", "run", "--env", f"shows:{name}", "--video", file))
        assert REFUSED[name] in message
        assert not file.exists()
    assert not list(show.glob(".proximo-*"))


def test_an_older_video_stays_where_the_new_one_fails(show, monkeypatch):
    monkeypatch.chdir(show)
    (show / "old.gif").write_bytes(b"a video")
    refusal(proximo("play", "run", "--env", "shows:FailsLate", "--video", "old.gif"))
    assert (show / "old.gif").read_bytes() == b"a video"


def test_a_window_for_an_env_that_opens_none_is_refused(show, monkeypatch):
    monkeypatch.chdir(show)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    message = refusal(proximo("play", "run", "--env", "shows:Bytes"))
    assert (
        "render_mode human: the render_modes of its metadata are rgb_array; write a vid" in message
    )
