"""A run folder that somebody made to do harm: links, pipes, endless files, code, escapes.

Whatever a verb makes of it, nothing outside the folder changes, nothing of it runs, nothing hangs,
little memory is taken, and nothing of it reaches the terminal but printable text.
"""

import json
import os
import random
import resource
import shutil
from pathlib import Path

import pytest

from commands.command_line import proximo, refusal, rows, succeeded
from proximo import UsageError, disk, load
from proximo.errors import printable
from proximo.run.folder import RunFolder

pytestmark = pytest.mark.timeout(120)

ALLOWED = 2**29
"""Bytes by which the peak of this process may rise: with PyTorch itself, less than 1 GiB."""
ESCAPE = "\x1b[2K\r\u202e\u200b\x9b[bold]$\\frac{$"

WRITTEN = [
    *("log", "metrics.jsonl", "result.json", "versions.json", "nonfinite", "curves.png"),
    *("policy.onnx", "play.gif", "checkpoints/best.safetensors", "checkpoints/last-8.safetensors"),
    *(".config.toml.partial", ".metrics.jsonl.partial", "checkpoints/.last.safetensors.partial"),
    *("checkpoints/last-1.safetensors", "checkpoints/update-9.safetensors", ".policy.onnx.partial"),
    "report.html",
]
"""Names in a run folder that some verb writes, or once wrote through."""
READ = ["config.toml", "checkpoints/last.safetensors", "metrics.jsonl", "result.json"]
VERBS = [
    ("eval", "r", "--episodes", "1"),
    ("resume", "r", "--total-steps", "576", "--quiet"),
    ("plot", "r"),
    ("play", "r", "--video", "r/play.gif", "--episodes", "1"),
    ("train", "--config", "r/config.toml", "--total-steps", "64", "--run-dir", "new", "--quiet"),
    ("train", "ppo", "CartPole-v1", "--from", "r", "--run-dir", "new", "--total-steps", "64"),
    ("lm", "resume", "r"),
    ("lm", "generate", "r", "--prompt", "a"),
    ("report", "r", "--no-play"),
]
EXPORT = ("export", "r", "--overwrite")


READERS = {
    "config.toml": [VERBS[1], VERBS[2], VERBS[4], VERBS[6], VERBS[7]],
    "checkpoints/last.safetensors": [*VERBS[:2], VERBS[5]],
    "metrics.jsonl": [*VERBS[1:3], VERBS[8]],
    "result.json": [VERBS[1], VERBS[8]],
}
"""Those that read a file, for the short test."""


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


def hollow(path):
    """A terabyte of which one page is there, as a checkpoint that claims all of it."""
    header = {"policy.x": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**40)


TRICKS = {
    "link": lambda path: path.symlink_to(Path("victim/file").resolve()),
    "relative link": lambda path: path.symlink_to(os.path.relpath("victim/file", path.parent)),
    "dangling link": lambda path: path.symlink_to(Path("victim/new").resolve()),
    "hard link": lambda path: path.hardlink_to("victim/file"),
    "link to a folder": lambda path: path.symlink_to(Path("victim").resolve()),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a file without end": lambda path: path.symlink_to("/proc/self/pagemap"),
    "sparse": sparse,
    "hollow": hollow,
}


def plant(run, names, trick):
    for name in names:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        TRICKS[trick](path)


def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def state(place):
    """Everything in a folder: names, contents, modes, times."""
    found = {}
    for path in sorted(place.rglob("*")):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path.name] = content, about.st_mode, about.st_mtime_ns, about.st_ino
    return found, place.stat().st_mtime_ns


@pytest.fixture
def victim(here):
    """Files of the user's, beside the run: they must stay as they are."""
    place = here / "victim"
    place.mkdir()
    for name in ("file", "last.safetensors", "last-1.safetensors", "config.json", "metrics.jsonl"):
        (place / name).write_text("keep me\n")
        os.utime(place / name, (1, 1))
    return place


@pytest.fixture
def evil(here):
    """The name of a module that leaves a file when it is imported."""
    (here / "evil.py").write_text("open('ran', 'w').close()\n")
    return "evil"


@pytest.fixture
def unharmed(here, victim, evil):
    """To be called after each verb; `done`: how that ended."""
    before, memory = state(victim), peak()

    def check(ended):
        assert ended.code in (0, 1, 2), ended
        assert "Traceback" not in ended.err, ended.err
        assert len(ended.err) < 5000
        assert printable(ended.out + ended.err) == ended.out + ended.err
        assert state(victim) == before
        assert not (here / "ran").exists()
        assert peak() - memory < ALLOWED
        shutil.rmtree(here / "new", ignore_errors=True)

    return check


@pytest.mark.parametrize("trick", TRICKS)
def test_nothing_is_written_out_of_the_folder(here, trained, unharmed, trick):
    # Some of them end a verb at its beginning, so that it does not come to the others.
    most = [name for name in WRITTEN if name not in ("nonfinite", "metrics.jsonl")]
    verbs = [VERBS[0], VERBS[1], VERBS[3], VERBS[8]]
    verbs += {"link": [VERBS[2], EXPORT], "hard link": [VERBS[2]]}.get(trick, [])  # they take long
    for words, names in [*((words, most) for words in verbs), (VERBS[1], WRITTEN)]:
        shutil.copytree(trained, here / "r")
        plant(here / "r", names, trick)
        unharmed(proximo(*words))
        shutil.rmtree(here / "r")


def test_what_can_still_be_done_is_done(here, trained, unharmed):
    """A link in the place of a file that is replaced is replaced."""
    shutil.copytree(trained, here / "r")
    names = ["metrics.jsonl", "result.json", "curves.png", "play.gif", ".config.toml.partial"]
    shutil.copy(here / "r/metrics.jsonl", here / "r/rows")
    plant(here / "r", names[1:], "link")
    (here / "r/metrics.jsonl").unlink()
    (here / "r/metrics.jsonl").symlink_to("rows")
    ended = proximo("resume", "r", "--total-steps", "640", "--quiet")
    unharmed(succeeded(ended))
    assert [row["update"] for row in rows("r")] == list(range(1, 11))
    unharmed(succeeded(proximo("plot", "r")))
    unharmed(succeeded(proximo(*VERBS[3])))
    assert not any((here / "r" / name).is_symlink() for name in names)
    assert not (here / "r/.config.toml.partial").exists()


@pytest.mark.parametrize("trick", ["link to a folder", "link", "pipe"])
@pytest.mark.parametrize("folder", ["checkpoints", "nonfinite"])
def test_a_folder_that_leads_elsewhere_is_refused_before_training(
    here, trained, unharmed, folder, trick
):
    shutil.copytree(trained, here / "r")
    shutil.copytree(trained / "checkpoints", here / "elsewhere")
    plant(here / "r", [folder], trick)
    if (folder, trick) == ("checkpoints", "link to a folder"):
        (here / "r" / folder).unlink()
        (here / "r" / folder).symlink_to(here / "elsewhere")
        before = state(here / "elsewhere")
        assert "checkpoints is a link" in refusal(proximo(*VERBS[1]))
        assert state(here / "elsewhere") == before
        succeeded(proximo(*VERBS[0]))
    unharmed(proximo(*VERBS[1]))


def read_tricks(count):
    """So many pairs of a file and a trick, every trick and every file among them."""
    pairs = [(file, trick) for file in READ for trick in TRICKS]
    random.Random(4).shuffle(pairs)
    return pairs[:count]


@pytest.mark.parametrize("most", [16, pytest.param(1000, marks=pytest.mark.long)])
def test_nothing_that_is_read_hangs_or_fills_the_memory(here, trained, unharmed, most):
    for file, trick in read_tricks(most):
        for words in VERBS if most > 100 else READERS[file]:
            shutil.copytree(trained, here / "r")
            plant(here / "r", [file], trick)
            unharmed(proximo(*words))
            shutil.rmtree(here / "r")


def test_a_run_folder_that_is_itself_a_link_is_the_users_choice(here, trained):
    shutil.copytree(trained, here / "valid")
    (here / "r").symlink_to("valid")
    succeeded(proximo("resume", "r", "--total-steps", "576", "--quiet"))
    assert len(rows("valid")) == 9
    (here / "out").mkdir()
    (here / "way").symlink_to("out")
    succeeded(proximo("plot", "r", "--out", "way/curves.svg"))
    succeeded(proximo("play", "r", "--episodes", "1", "--video", "way/play.mp4"))
    assert sorted(path.name for path in (here / "out").iterdir()) == ["curves.svg", "play.mp4"]


def test_text_of_a_file_reaches_the_terminal_as_text(here, trained, unharmed):
    config = (trained / "config.toml").read_text()
    shown = printable(ESCAPE).replace("'", "'\"'\"'")
    for name, asks in (
        ('id = "CartPole-v1"', f"evil{ESCAPE}:Env"),
        ("wrappers = []", f"evil:{ESCAPE}"),
        ('module = ""', f"evil{ESCAPE}\nproximo: type yes:Net"),
    ):
        shutil.copytree(trained, here / "r")
        assert name in config
        value = json.dumps([asks] if "[" in name else asks)
        changed = config.replace(name, f"{name.split(' =')[0]} = {value}")
        (here / "r/config.toml").write_text(changed)
        for words in VERBS[:2]:
            ended = proximo(*words)
            unharmed(ended)
            assert "needs your word" in refusal(ended)
            assert shown in ended.err
        unharmed(proximo(*VERBS[4][:-3], "--help"))
        shutil.rmtree(here / "r")
    shutil.copytree(trained, here / "r")
    for number in range(300):
        (here / f"r/checkpoints/\x1b[2K\r\n{number}.safetensors").write_bytes(b"x")
    (here / "r/checkpoints/last.safetensors").write_bytes(b"x")
    (here / "r/config.toml").write_text(config + f'[no\u202e"{ESCAPE!r}"]\n')
    unharmed(proximo("eval", "r"))
    (here / "r/config.toml").write_text(config)
    unharmed(proximo("eval", "r"))


def test_a_name_with_mathematics_in_it_can_be_drawn(here, trained):
    shutil.copytree(trained, here / "r")
    config = here / "r/config.toml"
    config.write_text(config.read_text().replace("CartPole-v1", r"$\\frac{$:\u001b[2K\u202e"))
    succeeded(proximo("plot", "r", "--out", "curves.svg"))
    assert r"\u001b[2K\u202e" in (here / "curves.svg").read_text()


@pytest.mark.parametrize("text", ["plain", "漢\u3000字", "tab\tand\nline", "é ± ∑"])
def test_what_is_printable_stays(text):
    assert printable(text) == text


def test_every_character_that_controls_a_terminal_is_shown_as_text():
    for code in (*range(32), *range(127, 160), 0x200B, 0x202E, 0x2066, 0x2028, 0xFEFF, 0xE0041):
        shown = printable(f"a{chr(code)}b", keep="")
        assert shown.isascii()
        assert json.loads(f'"{shown}"') == f"a{chr(code)}b"
    assert str(UsageError("one\ntwo")) == r"one\ntwo"
    assert printable("\udcff") == r"\udcff"


def test_the_log_holds_text_alone(here):
    (here / "r").mkdir()
    RunFolder("r").note(f"{ESCAPE}\nnext")
    assert (here / "r/log").read_text() == f"{printable(ESCAPE)}\nnext\n"


def test_lines_are_read_one_by_one_and_long_ones_left_out(here):
    (here / "file").write_bytes(b"a\n" + b"x" * 100 + b"\nb\n\nlast")
    assert list(disk.lines(here / "file", 8, 1000)) == [b"a\n", b"b\n", b"\n", b"last"]
    sparse(here / "holes")
    with pytest.raises(OSError, match="only 0 are on the disk"):
        disk.read(here / "holes", 2**50)
    with pytest.raises(OSError, match="more than 50 bytes"):
        list(disk.lines(here / "file", 8, 50))
    assert disk.read(here / "file", 110) == (here / "file").read_bytes()
    with pytest.raises(OSError, match="more than 109 bytes"):
        disk.read(here / "file", 109)


def test_of_a_long_log_of_metrics_some_rows_are_held(here, monkeypatch):
    monkeypatch.setattr("proximo.run.folder.KEPT_ROWS", 1000)
    (here / "r").mkdir()
    text = "".join(f'{{"update": {i}, "seconds": 1, "x": [1]}}\n' for i in range(1, 1001))
    (here / "r/metrics.jsonl").write_text(text)
    found = [row["update"] for row in RunFolder("r").read_metrics()]
    assert found[0] == 1
    assert found[-1] == 1000
    assert 10 < len(found) < 40
    held, lost = RunFolder("r").cut_metrics(990, 2, ended=False)
    assert not lost.number
    assert held[-1] == {"update": 990, "seconds": 1}
    cut = (here / "r/metrics.jsonl").read_text().splitlines()
    assert cut == [line for i, line in enumerate(text.splitlines(), 1) if i <= 990 and i % 2 == 0]


def test_loading_from_python_changes_nothing_either(here, trained, unharmed):
    shutil.copytree(trained, here / "r")
    plant(here / "r", WRITTEN, "link")
    agent = load("r")
    agent.export("r/policy.onnx", overwrite=True)
    assert not (here / "r/policy.onnx").is_symlink()
    unharmed(proximo("eval", "r", "--episodes", "1"))
