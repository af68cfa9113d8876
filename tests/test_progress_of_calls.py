"""Progress of calls from Python: in a terminal, in a notebook, in a pipe, and where it is off."""

import io
import re
import sys
import types

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live

import proximo
from proximo import PPO, RolloutConfig, UsageError
from proximo.run.display import (
    CONTROL,
    Display,
    Lines,
    Notebook,
    Panel,
    View,
    make_display,
    screen_for,
    screen_of_call,
)

ROW = {
    "steps": 512,
    "update": 1,
    "return_mean": 187.25,
    "best": 190.0,
    "approx_kl": 0.0081,
    "clip_fraction": 0.112,
    "entropy": 0.557,
    "explained_variance": None,
}


def quick(**more):
    settings = {"rollout": RolloutConfig(steps=16), "total_steps": 128, "num_envs": 2, "seed": 3}
    return proximo.train("CartPole-v1", PPO(minibatch_size=16, epochs=1), **{**settings, **more})


class Terminal(io.StringIO):
    """A stream that says of itself that it is a terminal."""

    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """Let stderr be a terminal; pytest replaces what a fixture sets."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    return stream


class Shell:
    """An IPython whose process is the kernel of a notebook, or not."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.outputs = []

    def get_ipython(self):
        return self

    def display(self, view, *, display_id):
        assert display_id is True
        self.outputs.append([view])
        update = self.outputs[-1].append
        return types.SimpleNamespace(update=update)


@pytest.fixture
def notebook(monkeypatch):
    shell = Shell(kernel=object())
    for name in ("IPython", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, shell)
    return shell


def test_a_call_without_a_terminal_is_silent(tmp_path, capfd):
    quick(run_dir=tmp_path / "run", callbacks=[lambda state, rollout, row: True])
    proximo.resume(tmp_path / "run")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "run/log").exists()


def test_progress_true_prints_lines_where_there_is_no_terminal(tmp_path, capfd):
    quiet = quick(run_dir=tmp_path / "quiet", progress=False)
    agent = quick(run_dir=tmp_path / "run", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    first, *setup, last = err.splitlines()
    assert first == f"ppo on CartPole-v1, run folder {tmp_path / 'run'}"
    assert any(line.startswith("engine: ") for line in setup)
    assert re.match(r"128/128 steps  return [\d.]+  .*KL [\d.]+  clip fraction", last)
    assert "\x1b" not in err
    assert last in (tmp_path / "run/log").read_text()
    for own, other in zip(agent.policy.parameters(), quiet.policy.parameters(), strict=True):
        assert own.equal(other)


def test_a_terminal_gets_a_panel_and_its_cursor_back(monkeypatch):
    terminal = terminal_of(monkeypatch)
    quick()
    shown = terminal.getvalue()
    assert "ppo on CartPole-v1" in shown
    assert re.search(r"128 of 128 steps  [\d,]+ steps/s  0:00 left", shown)
    assert shown.index("\x1b[?25h") < shown.index("128 of 128")  # a kill leaves it visible
    terminal.truncate(0)
    quick(progress=False)
    assert terminal.getvalue() == ""


def test_an_error_of_the_setup_leaves_the_terminal_as_it_was(monkeypatch, tmp_path):
    terminal = terminal_of(monkeypatch)
    with pytest.raises(UsageError, match="NoSuchEnv"):
        proximo.train("NoSuchEnv-v0", PPO(), run_dir=tmp_path / "run")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, name):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", name)
    quick()
    assert "\x1b" not in terminal.getvalue()
    assert "128/128 steps" in terminal.getvalue()


def test_no_color_means_no_color(monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    display = make_display(screen_of_call(None), CONTROL, 1024, None)
    with display:
        display.show({**ROW, "health": "kl-over-target"})
    codes = {
        code
        for part in re.findall(r"\x1b\[([\d;]*)m", terminal.getvalue())
        for code in part.split(";")
    }
    assert codes <= {"", "0", "1", "2", "39", "49"}  # bold and dim
    assert "━━" in terminal.getvalue()
    assert "──" in terminal.getvalue()


def test_a_pipe_gets_no_codes_though_color_is_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    assert screen_of_call(None) is None
    assert isinstance(screen_of_call(True), Lines)
    with make_display(screen_of_call(True), CONTROL, 1024, None) as display:
        display.show({**ROW, "health": "kl-over-target"})
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith("health kl-over-target\n")


def test_a_terminal_that_another_live_view_has_taken_is_left_to_it(monkeypatch):
    terminal_of(monkeypatch)
    with Live(console=Console(stderr=True), redirect_stderr=True):
        assert isinstance(sys.stderr, FileProxy)
        assert screen_of_call(None) is None
        assert isinstance(screen_of_call(True), Lines)
    assert isinstance(screen_of_call(None), Panel)


def test_a_program_without_streams_trains(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert screen_of_call(None) is screen_of_call(True) is None


@pytest.mark.parametrize("value", ["yes", 2, 0.5])
def test_what_is_no_choice_of_progress_is_refused_before_a_folder_is_made(tmp_path, value):
    with pytest.raises(UsageError, match=f"progress is {value!r}: give True, False or None"):
        quick(progress=value, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError("closed")], ids=repr)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_reader_that_goes_away_stops_no_run(monkeypatch, error, is_terminal):
    class Gone(io.StringIO):
        def isatty(self):
            return is_terminal

        def write(self, text):
            raise error

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(Lines, "INTERVAL", 0)
    assert quick(progress=True).result["steps"] == 128


def test_a_notebook_has_one_table_that_is_updated(notebook, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Notebook, "INTERVAL", 0)
    agent = quick(run_dir=tmp_path / "<b>run</b>")
    assert len(notebook.outputs) == 1
    views = notebook.outputs[0]
    assert len(views) > 2
    page, text = views[-1]._repr_html_(), repr(views[-1])
    assert "128 of 128 steps" in page
    assert "width:100.0%" in page
    assert "<b>run" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert text.startswith("ppo on CartPole-v1, run folder")
    assert f"{agent.result['return_mean']:.1f}" in text
    assert capfd.readouterr() == ("", "")
    quick(progress=False)
    assert len(notebook.outputs) == 1


def test_ipython_in_a_terminal_is_no_notebook(notebook):
    notebook.kernel = None
    assert screen_of_call(None) is None
    assert isinstance(screen_of_call(True), Lines)


# Any width, and a width that changes


def view(**more):
    row = ROW | more
    display = Display(CONTROL, 100_000, lambda text: None, Lines(Console(file=io.StringIO())))
    display._pace.update(41_000, 9_812.0)
    display._screen.scrolls = False
    display._activity = "evaluating: episode 3 of 10"
    display._row = row
    display._health = dict.fromkeys(["kl-over-target", "entropy-collapsed"])
    return display._view()


@pytest.mark.parametrize("width", [1, 2, 10, 20, 30, 39, 40, 50, 64, 80, 120, 200, 500])
def test_a_panel_of_any_width_holds_every_value(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    shown = view()
    lines = [line.plain for line in shown.lines(width)]
    assert max(map(len, lines)) <= width
    if width >= 30:
        together = "\n".join(lines)
        for label, value in shown.metrics:
            assert label in together
            assert value in together
        for word in shown.words:
            assert word in together
        assert [line for line in lines if line.startswith("health: kl-over")]
    for line in shown.lines(width):
        console.print(line)
    assert len(console.file.getvalue().splitlines()) == len(lines)  # none wraps


def test_a_panel_has_few_lines_and_its_bar_is_as_full_as_the_run():
    assert [len(view().lines(width)) for width in (30, 50, 80, 200)] == [11, 8, 5, 5]
    bar = view().lines(80)[0].plain.split()[0]
    assert bar.count("━") / len(bar) == pytest.approx(0.41, abs=0.03)
    plain = [line.plain for line in view().lines(30, ascii_only=True)]
    assert all(line.isascii() for line in plain)
    assert plain[0].startswith("####")


def test_a_value_that_does_not_exist_is_a_dash():
    assert view().metrics[-1] == ("explained variance", "-")


@pytest.mark.parametrize(("wide", "narrow"), [(100, 60), (100, 30), (60, 30), (30, 30), (30, 100)])
def test_a_terminal_that_becomes_narrower_keeps_no_remains(wide, narrow):
    """A small terminal that wraps what stands there, as most do."""
    stream = io.StringIO()
    console = Console(file=stream, width=wide, height=40, force_terminal=True, color_system=None)
    display = Display(CONTROL, 100_000, lambda text: None, Panel(console))
    with display:
        display.show(ROW)
        drawn = stream.getvalue()
        console.width = narrow
        display._due = 0
        display.show(ROW)
        moved = stream.getvalue()[len(drawn) :]
        upwards = moved[: moved.index("─")].count("\x1b[1A")
    lines = [
        len(line.rstrip()) for line in re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", drawn).split("\n")
    ]
    rows = sum(max(1, -(-line // narrow)) for line in lines)
    assert upwards == rows - 1


def test_health_is_one_line_that_collects_the_findings():
    display, written = Display, io.StringIO()
    console = Console(file=written, width=80, height=24, force_terminal=True, color_system=None)
    display = Display(CONTROL, 100_000, lambda text: None, Panel(console))
    with display:
        display.show({**ROW, "health": "kl-over-target"})
        display.show(ROW)
        display.show({**ROW, "health": "entropy-collapsed, kl-over-target\x1b[2J"})
        display._due = 0
        display.show(ROW)
    last = written.getvalue().rsplit("health: ", 1)[1].splitlines()[0]
    assert last.startswith(r"kl-over-target, entropy-collapsed, kl-over-target\u001b[2J")


def test_a_view_is_escaped_in_a_notebook():
    hostile = "<script>alert(1)</script>"
    readings = ((hostile, hostile),)
    page = View(hostile, 1, 2, hostile, (hostile,), readings, hostile, hostile, (hostile,))
    assert "<script>" not in page._repr_html_()


def test_the_command_line_shows_the_same_on_stdout():
    assert isinstance(screen_for(Console(file=Terminal(), force_terminal=True)), Panel)
    assert isinstance(screen_for(Console(file=io.StringIO(), force_terminal=True)), Lines)
