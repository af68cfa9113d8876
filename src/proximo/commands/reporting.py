"""`proximo report`."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from proximo import disk
from proximo.commands.arguments import closing, optional, parse, show
from proximo.commands.stored import allow_code
from proximo.errors import UsageError
from proximo.run.consent import Named

if TYPE_CHECKING:
    from proximo.agent import Agent
    from proximo.insight.report import Run
    from proximo.run.config import Config

CLIP = 600
"""States of a replay, at most."""
SMOOTH = 30
"""Frames a second of a replay, about: of faster envs states are left out evenly."""
MOST_PLAYED = 4
"""Groups whose best run is played."""
HEAD = 512
"""Bytes at the beginning of a file that show whether it is a report."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write all about one or several runs as one HTML page, which needs no network.

    Learning curves, health, replays, behaviour, every reading, settings, time and log. Runs that
    differ in their seeds alone are a group, with its mean and a band; several groups stand beside
    each other.
    """

    runs: Annotated[Positional[tuple[Path, ...]], optional("RUN [RUN ...]")]
    """Run folders, of control or of language models."""
    out: Annotated[Path | None, optional("FILE.html")] = None
    """The page; by default report.html in the run folder, of several runs in the current one."""
    open: bool = False
    """Show the page in the browser."""
    play: bool = True
    """Play episodes, for replays and for the behaviour of the policy."""
    live: bool = False
    """Serve the page to browsers of this machine instead, and follow runs that are training."""
    port: int = 0
    """Port of --live; 0: any that is free."""
    env: Annotated[str | None, optional("ENV")] = None
    """Environment of the runs; if it is code (module:Class), repeat its name as consent to import
    it."""
    wrappers: Annotated[tuple[str, ...], optional("WRAPPER ...")] = ()
    """Wrappers of the environment; likewise."""
    net: Annotated[str | None, optional("module:Class")] = None
    """Network; likewise."""
    algorithm: Annotated[str | None, optional("module:Class")] = None
    """Algorithm; likewise."""

    def allowed(self, run: Run, arguments: Sequence[str]) -> Config:
        """Configuration of a run, with consent to what it imports. Raises `UsageError`."""
        code = {name: getattr(self, name) for name in ("env", "wrappers", "net", "algorithm")}
        return allow_code(run.config, Named(**code), code, "report", arguments)


def main(arguments: list[str]) -> int:
    command = parse(Report, "report", arguments)
    if not command.runs:
        raise UsageError("name at least one run folder, as in: proximo report runs/cartpole")
    if not 0 <= command.port < 2**16:
        raise UsageError(f"--port is {command.port}: give a number from 0 to 65535")
    if command.live:
        return _serve(command)

    from proximo.insight.page import page
    from proximo.insight.report import document, read_runs

    out = command.out or (Path() if len(command.runs) > 1 else command.runs[0]) / "report.html"
    check_out(out)
    out = out.absolute()  # an env may change the current folder
    runs = read_runs(command.runs)
    for run in runs:
        if not len(run.table.axes["update"]):
            raise UsageError(
                f"{run.folder.name} has no metrics yet: nothing can be reported. To follow it "
                "while it trains: --live"
            )
    found = document(runs)
    found |= played(command, arguments, runs, found) if command.play else {}
    data = page(found)
    with disk.writable(out):
        disk.replace(out, data)
    for note in dict.fromkeys([*found.get("behaviour_notes", []), *found.get("replay_notes", [])]):
        show(note)
    show(f"report in {command.out or out} ({len(data) / 2**20:.1f} MiB)")
    if command.open:
        webbrowser.open(out.as_uri())
    return 0


def check_out(out: Path) -> None:
    """Raises `UsageError` where the page cannot stand, or where something else does."""
    from proximo.insight.page import MARK

    if not out.parent.is_dir():
        raise UsageError(f"the report {out} cannot be written: there is no folder {out.parent}")
    if not os.path.lexists(out):
        return
    begin = b""
    with contextlib.suppress(OSError), disk.opened(out) as file:
        begin = file.read(HEAD)
    if out.is_symlink() or MARK.encode() not in begin:
        raise UsageError(f"{out} exists and is no report of Proximo: name another file by --out")


def _serve(command: Report) -> int:
    from proximo.insight.live import LiveReport

    if command.out:
        raise UsageError(f"--out is {command.out}, but --live writes no file: give one of them")
    with LiveReport([run.absolute() for run in command.runs], command.port) as server:
        show(f"report at {server.url} (Ctrl-C ends it)")
        if command.open:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def played(
    command: Report, arguments: Sequence[str], runs: Sequence[Run], found: dict[str, Any]
) -> dict[str, Any]:
    """Replays and behaviour of the best run of each group, with notes on what is left out."""
    from proximo.insight.behaviour import STEPS

    parts: dict[str, Any] = {
        name: [] for name in ("replays", "replay_notes", "behaviour", "behaviour_notes")
    }
    if not runs[0].is_control:
        return parts
    groups, scores = found["groups"], [run["score"] for run in found["runs"]]
    if len(groups) > MOST_PLAYED:
        parts["behaviour_notes"].append(f"Played are the first {MOST_PLAYED} groups.")
    for group in groups[:MOST_PLAYED]:
        scored = [i for i in group["runs"] if scores[i] is not None]
        number = max(scored or group["runs"][:1], key=lambda i: scores[i])
        run = runs[number]
        with _noted(parts["behaviour_notes"], "behaviour"):
            config = command.allowed(run, arguments)
            share = STEPS // min(len(groups), MOST_PLAYED)
            parts["behaviour"].append({"run": number, **_behave(command, run, config, share)})
        with _noted(parts["replay_notes"], "replays"):
            config = command.allowed(run, arguments)
            for clip in _replays(command, run, config, few=len(groups) > 1):
                parts["replays"].append({"run": number, **clip})
    return parts


@contextlib.contextmanager
def _noted(notes: list[str], what: str) -> Iterator[None]:
    """Whatever cannot be played is left out, with the reason and what to type."""
    try:
        yield
    except UsageError as error:
        notes.append(f"{what.capitalize()} left out: {error}")


def _agent(command: Report, run: Run, checkpoint: str) -> Agent:
    import torch

    from proximo.agent import load
    from proximo.run.choices import choose_threads

    agent = load(run.folder.path, checkpoint, net=command.net, algorithm=command.algorithm)
    torch.set_num_threads(choose_threads(0, "torch", agent.policy, 1))
    return agent


def _behave(command: Report, run: Run, config: Config, steps: int) -> dict[str, Any]:
    """Behaviour of the last policy in so many steps."""
    from proximo.agent import check_spaces
    from proximo.envs.make import make_env
    from proximo.evaluation import step_limit
    from proximo.insight.behaviour import behaviour

    agent = _agent(command, run, "last")
    env = make_env(config.env)
    with closing(env):
        check_spaces(env, agent)
        limit = step_limit(config.env, config.run.eval_max_episode_steps)
        return behaviour(agent, env, run.folder, limit=limit, steps=steps)


def _replays(command: Report, run: Run, config: Config, *, few: bool) -> Iterator[dict[str, Any]]:
    """Clips of the first policy, of one in the middle and of the best. few: of the best alone."""
    from proximo.commands.playing import need_no_display

    need_no_display()
    folder = run.folder
    best = "best" if folder.checkpoint("best").is_file() else "last"
    chosen = [(best, best.capitalize())]
    numbered = sorted(number for number, _ in folder.numbered("update"))
    if not few and numbered:
        middle = min(numbered, key=lambda n: abs(n - numbered[-1] / 2))
        between = [(f"update-{middle}", "Middle")] if middle > 0 else []
        first = [("update-0", "First")] if numbered[0] == 0 else []
        chosen = [*first, *between, *chosen]
    for checkpoint, label in chosen:
        agent = _agent(command, run, checkpoint)
        yield {"label": label, "update": agent.result["updates"], **_clip(agent, config)}


def _clip(agent: Agent, config: Config) -> dict[str, Any]:
    """One deterministic episode as a video."""
    from proximo.agent import check_spaces
    from proximo.commands.playing import metadata_of
    from proximo.commands.video import Video, frame_rate
    from proximo.envs.make import in_step, make_env
    from proximo.evaluation import EpisodePlayer
    from proximo.run.config import EVALUATION_SEED

    env = make_env(config.env, render_mode="rgb_array")
    with closing(env), tempfile.TemporaryDirectory() as place:
        check_spaces(env, agent)
        rate, _ = frame_rate(metadata_of(env, "rgb_array"))
        path, states = Path(place, "replay.mp4"), itertools.count()
        stride = max(1, round(rate / SMOOTH))
        with Video(path, rate / stride, env) as video:
            scores = EpisodePlayer(in_step([env])).play(
                agent.policy,
                episodes=1,
                seed=EVALUATION_SEED,
                limit=CLIP,
                watch=lambda episode: None if next(states) % stride else video.watch(),
            )
        data = base64.b64encode(path.read_bytes()).decode()
    return {
        "mime": "video/mp4",
        "data": data,
        "return": scores.mean,
        "steps": max(episode.length for episode in scores.episodes),
        "cut": bool(scores.cut),
    }
