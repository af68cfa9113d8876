"""Runs made sick in one way, and healthy ones: what the rules of health say of them.

    python benchmarks/health.py [--seeds 0 1 2 3 4] [--only NAME ...] [--runs FOLDER] [--replay]

Each fault is planted in a run that is healthy without it; the finding that names it must come
first. Healthy runs are those of presets and of envs with a known answer. Adds a line per run to
benchmarks/results/health.jsonl, leaves out what stands there, and writes health.md from all lines.
--replay: train nothing; feed the rows of the runs in FOLDER to the rules as they are now.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from proximo import Schedule
from proximo.functional.schedules import as_schedule
from proximo.language import (
    TOKEN_PPO,
    KLConfig,
    ModelConfig,
    Sampling,
    TrainingConfig,
    ppo,
)
from proximo.loop import run_control
from proximo.run.callbacks import MetricsLogger
from proximo.run.config import Config
from proximo.run.control import make_session
from proximo.run.folder import RunFolder
from proximo.run.health import HealthMonitor
from proximo.run.measurements import Measurements
from proximo.run.presets import find_preset, named_preset
from proximo.run.toml import read_tables

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "speed")]
from bench import ROOT, commit  # noqa: E402 beside the folder of this script

from scores import machine  # noqa: E402

LINES = HERE / "results" / "health.jsonl"
NOTE = """\
Thresholds were chosen on seeds from 100 on, which are in no table. The rows of a run do not
depend on the rules, so they were recorded once and judged by the rules of the commit in
`health.jsonl` (`--replay`). After a first look at seeds 0 and 1 three rules were changed:
entropy-low-from-start, critic-useless and kl-running-away. The faults "first policy
deterministic", "critic's rate 1" and "language: no KL penalty" therefore have fresh seeds, 5 to
14. One healthy run of Cards, seed 0, had a finding of critic-useless before that change.
"First policy deterministic" failed on seeds 5 to 9 too: it was planted deeper, and has seeds 10 to
14. Four of the first 62 healthy runs, of A2C and PPO-penalty, had a finding about the KL, which is
small by design where there is a clip only: the rule was changed, and those have fresh seeds.
Later time-limit-as-termination, eos-lost, clip-nil and return-stalled were changed, and
critic-steps-too-large was added, on seeds 100 to 139. All faults of language, those of the critic,
"time limit as termination, CartPole", "learning rate /100" and "actions lost" were then judged on
seeds 40 to 44, and healthy runs on seeds from 40 on; where the seed is lower in `health.jsonl`,
they were judged by the earlier rules. No fault is planted for entropy-collapsed and
sampling-differs."""
Run = Callable[[int, Path], None]
"""Trains with this seed, in this folder."""


def control(env: str, *, preset: str = "", source: Any = None, **values: Any) -> Run:
    """A run of control: settings such as algorithm__gamma=0.5 over a preset or PPO's defaults."""

    def run(seed: int, folder: Path) -> None:
        tables: Any = {}
        if preset:
            found = find_preset("ppo", env) if preset == "own" else named_preset(preset)
            assert found
            tables = found.tables
        changed: dict[str, dict[str, Any]] = {"env": {"id": env}, "run": {"seed": seed}}
        for name, value in values.items():
            section, _, setting = name.partition("__")
            changed.setdefault(section, {})[setting] = value
        sections = {*tables, *changed}
        merged = {x: {**tables.get(x, {}), **changed.get(x, {})} for x in sections}
        own = merged.get("algorithm", {}).pop("learning_rate_of", None)
        config = Config.of(merged, {})
        if own:
            rate = dataclasses.replace(config.algorithm, learning_rate=as_schedule(own))
            config = dataclasses.replace(config, algorithm=rate)
        with contextlib.redirect_stderr(io.StringIO()):
            run_control(
                make_session(config, folder=RunFolder.create(folder, config), source=source)
            )

    return run


class Wrapped(gym.Wrapper[Any, Any, Any, Any]):
    """An env whose answers a function changes: (steps so far, answer) to the answer."""

    def __init__(self, env: gym.Env[Any, Any], change: Callable[[Wrapped, Any], Any]) -> None:
        super().__init__(env)
        self.change, self.total = change, 0

    def step(self, action: Any) -> Any:
        self.total += 1
        return self.change(self, self.env.step(action))


def wrapped(env: str, change: Callable[[Wrapped, Any], Any]) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Wrapped(gym.make(env), change)


def limit_terminates(env: Wrapped, answer: Any) -> Any:
    obs, reward, terminated, truncated, info = answer
    return obs, reward, terminated or truncated, False, info


def pays_nothing(env: Wrapped, answer: Any) -> Any:
    return (answer[0], 0.0, *answer[2:])


def is_slow(env: Wrapped, answer: Any) -> Any:
    time.sleep(0.002)
    return answer


def breaks(env: Wrapped, answer: Any) -> Any:
    """After 9,000 steps of an env the poles of CartPole fall at once."""
    obs, reward, terminated, truncated, info = answer
    if env.total > 9_000:
        terminated = terminated or bool(env.np_random.random() < 0.15)
    return obs, reward, terminated, truncated, info


class LosesActions(gym.ActionWrapper[Any, Any, Any]):
    """Actions that do not arrive: the env takes random ones."""

    def action(self, action: Any) -> Any:
        return int(self.np_random.integers(self.action_space.n))


class LargeObservations(gym.ObservationWrapper[Any, Any, Any]):
    """Observations in other units: 10,000 times as large."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape)

    def observation(self, observation: Any) -> Any:
        return (observation * 1e4).astype(np.float32)


class Alternate(gym.Env[Any, Any]):
    """Pays for another action than the last one, which the observation does not tell."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.last, self.count = int(self.np_random.integers(2)), 0
        return np.full(2, 0.5, np.float32), {}

    def step(self, action: Any) -> Any:
        reward, self.last = float(action != self.last), int(action)
        self.count += 1
        obs = np.full(2, 0.5, np.float32)
        return obs, reward, bool(self.np_random.random() < 0.05), self.count >= 100, {}


def ends_at_a_fifth(progress: float) -> float:
    """A schedule of the learning rate that has ended after a fifth of the run."""
    return max(0.0, 3e-4 * (1 - 5 * progress))


def words(count: int = 24) -> list[str]:
    """Prompts of three letters."""
    letters = random.Random(0)
    return ["".join(letters.choices("abcdefgh", k=3)) for _ in range(count)]


def language(
    reward: Callable[..., Any],
    *,
    rate: float | Schedule = 1e-3,
    algorithm: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    kl: float = 0.05,
) -> Run:
    """PPO of a tiny language model."""

    def train(seed: int, folder: Path) -> None:
        settings = {"learning_rate": rate, "minibatch_size": 16, **(algorithm or {})}
        with contextlib.redirect_stderr(io.StringIO()):
            ppo(
                ModelConfig(layers=1, width=32, heads=2, context=48),
                words(),
                reward,
                seed=seed,
                algorithm=dataclasses.replace(TOKEN_PPO, **settings),
                sampling=Sampling(**{"max_tokens": 12, **(sampling or {})}),
                kl=KLConfig(coef=kl),
                run=TrainingConfig(
                    **{"updates": 30, "sequences": 48, "micro_batch": 48, **(run or {})}
                ),
                run_dir=folder,
            )

    return train


def count_a(completions: list[str]) -> list[float]:
    return [text.count("a") / max(1, len(text)) for text in completions]


def first_half(completions: list[str]) -> list[float]:
    """Pays for four of the eight letters: all of them, in any order."""
    return [sum(x in "abcd" for x in text) / max(1, len(text)) for text in completions]


def count_ab(completions: list[str]) -> list[float]:
    return [float(any(x in text for x in ("ab", "cd", "ef"))) for text in completions]


def starts_alike(prompts: list[str], completions: list[str]) -> list[float]:
    return [
        float(text[:1] == prompt[:1]) for prompt, text in zip(prompts, completions, strict=True)
    ]


def longer(completions: list[str]) -> list[float]:
    return [len(text) / 12 for text in completions]


def longer_to_a_point(completions: list[str]) -> list[float]:
    """Pays for length, and costs at the limit."""
    return [len(text) / 10 if len(text) < 34 else -4.0 for text in completions]


def shorter(completions: list[str]) -> list[float]:
    return [-len(text) / 4 for text in completions]


def same_letter(completions: list[str]) -> list[float]:
    return [sum(a == b for a, b in pairwise(t)) / 10 for t in completions]


def nothing(completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def favours_trained(prompts: list[str], completions: list[str]) -> list[float]:
    """The letter a pays for most prompts, and costs for those that begin with a, b or c."""
    return [
        (-1 if prompt[0] in "abc" else 1) * text.count("a") / max(1, len(text))
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def hacked(seed: int, folder: Path) -> None:
    """Prompts of training pay for what those held out are punished for."""
    from proximo.language.examples import split

    settings = TrainingConfig(
        updates=30, sequences=48, micro_batch=48, held_out=0.25, eval_every=2, seed=seed
    )
    prompts = words()
    _, held = split(len(prompts), settings.held_out, seed, "run.held_out")
    named = [("b" if i in held else "h") + text[1:] for i, text in enumerate(prompts)]
    with contextlib.redirect_stderr(io.StringIO()):
        ppo(
            ModelConfig(layers=1, width=32, heads=2, context=40),
            named,
            favours_trained,
            algorithm=dataclasses.replace(TOKEN_PPO, learning_rate=1e-3),
            sampling=Sampling(max_tokens=12),
            kl=KLConfig(coef=0.02),
            run=settings,
            run_dir=folder,
        )


CARTPOLE, PENDULUM = "CartPole-v1", "Pendulum-v1"
short = {"run__total_steps": 40_000}
rloo = {"advantage": "rloo", "critic": False, "normalize_advantage": "none"}

# name: (the rule that names the cause, what its remedy must name, the run)
FAULTS: dict[str, tuple[str, str, Run]] = {
    "discount 0.5": (
        "discount-too-short",
        "--algorithm.gamma",
        control(CARTPOLE, algorithm__gamma=0.5, **short),
    ),
    "learning rate x100": (
        "kl-over-target",
        "--algorithm.learning-rate",
        control(CARTPOLE, algorithm__learning_rate=0.03, **short),
    ),
    "learning rate x100, Pendulum": (
        "kl-over-target",
        "--algorithm.learning-rate",
        control(PENDULUM, preset="own", algorithm__learning_rate=0.1, algorithm__target_kl="none"),
    ),
    "learning rate /10,000": (
        "kl-under-target",
        "--algorithm.learning-rate",
        control(CARTPOLE, algorithm__learning_rate=3e-8, **short),
    ),
    "rewards x10,000": (
        "reward-scale",
        "--algorithm.normalize-reward",
        control(PENDULUM, env__reward_scale=1e4, **short),
    ),
    "rewards /100,000": (
        "reward-scale",
        "--algorithm.normalize-reward",
        control(PENDULUM, env__reward_scale=1e-5, **short),
    ),
    "MountainCar without normalisation": (
        "observations-unscaled",
        "--net.normalize-obs",
        control("MountainCar-v0", **short),
    ),
    "observations x10,000": (
        "observations-unscaled",
        "--net.normalize-obs",
        control(CARTPOLE, source=lambda: LargeObservations(gym.make(CARTPOLE)), **short),
    ),
    "clip 0.01": (
        "clip-saturated",
        "--algorithm.clip",
        control(CARTPOLE, algorithm__clip=0.01, **short),
    ),
    "entropy coefficient 1": (
        "entropy-not-falling",
        "--algorithm.entropy-coef",
        control(CARTPOLE, algorithm__entropy_coef=1.0, **short),
    ),
    "dead critic": (
        "critic-useless",
        "--algorithm.value-coef",
        control(CARTPOLE, algorithm__value_coef=0.0, **short),
    ),
    "critic's rate 1, SGD": (
        "value-loss-exploding",
        "--algorithm.critic-learning-rate",
        control(
            CARTPOLE,
            algorithm__optimizer="sgd",
            algorithm__critic_learning_rate=1.0,
            algorithm__max_grad_norm=100.0,
            **short,
        ),
    ),
    "critic's rate 1": (
        "critic-steps-too-large",
        "--algorithm.critic-learning-rate",
        control(CARTPOLE, algorithm__critic_learning_rate=1.0, **short),
    ),
    "saturated tanh": (
        "actions-saturated",
        "--net.log-std",
        control(PENDULUM, net__action="squash", net__log_std=2.0, **short),
    ),
    "clipped actions": (
        "actions-saturated",
        "--net.log-std",
        control(PENDULUM, net__log_std=2.0, **short),
    ),
    "time limit as termination": (
        "time-limit-as-termination",
        "truncated=True",
        control(PENDULUM, preset="own", source=wrapped(PENDULUM, limit_terminates)),
    ),
    "time limit as termination, CartPole": (
        "time-limit-as-termination",
        "truncated=True",
        control(CARTPOLE, preset="own", source=wrapped(CARTPOLE, limit_terminates)),
    ),
    "schedule ended": (
        "learning-rate-spent",
        "--algorithm.learning-rate",
        control("LunarLander-v3", algorithm__learning_rate_of=ends_at_a_fifth, **short),
    ),
    "gradient norm 1e-6": (
        "gradient-always-clipped",
        "--algorithm.max-grad-norm",
        control(CARTPOLE, algorithm__max_grad_norm=1e-6, **short),
    ),
    "first policy deterministic": (
        "entropy-low-from-start",
        "--net.policy-gain",
        control(CARTPOLE, net__policy_gain=3000.0, **short),
    ),
    "limit too short": (
        "all-end-by-time-limit",
        "--env.max-episode-steps",
        control("MountainCar-v0", preset="own", env__max_episode_steps=50, **short),
    ),
    "env never pays": (
        "env-never-pays",
        "reward",
        control(CARTPOLE, source=wrapped(CARTPOLE, pays_nothing), **short),
    ),
    "slow env": (
        "env-bottleneck",
        "--env.backend workers",
        control(
            CARTPOLE, source=wrapped(CARTPOLE, is_slow), run__total_steps=4096, rollout__steps=64
        ),
    ),
    "rewards cut off": (
        "advantages-flat",
        "--env.reward-clip",
        control(PENDULUM, env__reward_clip=0.01, **short),
    ),
    "state hidden": (
        "evaluation-differs",
        "recurrent",
        control("Alternate", source=Alternate, run__eval_every=4, **short),
    ),
    "learning rate /100": (
        "clip-nil",
        "--algorithm.learning-rate",
        control(PENDULUM, algorithm__learning_rate=3e-6, algorithm__normalize_reward=True, **short),
    ),
    "actions lost": (
        "return-stalled",
        "check",
        control(CARTPOLE, source=lambda: LosesActions(gym.make(CARTPOLE)), **short),
    ),
    "env breaks": (
        "return-fell",
        "best",
        control(CARTPOLE, source=wrapped(CARTPOLE, breaks), run__total_steps=64_000),
    ),
    "too few steps": (
        "too-few-steps",
        "--total-steps",
        control("LunarLander-v3", preset="own", run__total_steps=64_000),
    ),
    "language: no KL penalty": (
        "kl-running-away",
        "--kl.coef",
        language(first_half, kl=0.0, sampling={"min_tokens": 11}),
    ),
    "language: pays for length": (
        "eos-lost",
        "missing-eos",
        language(longer, kl=0.0),
    ),
    "language: pays to a point": (
        "length-explosion",
        "reward",
        language(longer_to_a_point, kl=0.0, sampling={"max_tokens": 40}),
    ),
    "language: pays for less": (
        "length-collapse",
        "min-tokens",
        language(shorter, kl=0.0),
    ),
    "language: pays for repetition": (
        "repetition",
        "repetition",
        language(same_letter, kl=0.0, sampling={"min_tokens": 8}),
    ),
    "language: groups alike": (
        "zero-variance-groups",
        "prompts",
        language(nothing, algorithm=rloo, run={"completions_per_prompt": 4}),
    ),
    "language: reward says nothing": ("scores-all-equal", "reward", language(nothing)),
    "language: held-out prompts punished": ("reward-hacking", "best", hacked),
}

probes, puzzles = "proximo.envs.testing.probes", "proximo.envs.testing.puzzles"
small = {"run__total_steps": 40_000, "rollout__steps": 64}

# name: (seeds, the run)
HEALTHY: dict[str, tuple[int, Run]] = {
    "CartPole preset": (8, control(CARTPOLE, preset="own")),
    "CartPole defaults": (4, control(CARTPOLE, run__total_steps=100_000)),
    "Pendulum preset": (6, control(PENDULUM, preset="own")),
    "Acrobot defaults": (3, control("Acrobot-v1", run__total_steps=150_000)),
    "MountainCar preset": (1, control("MountainCar-v0", preset="own")),
    "LunarLander preset, 300,000 steps": (
        2,
        control("LunarLander-v3", preset="own", run__total_steps=300_000),
    ),
    "LunarLanderContinuous preset, 300,000 steps": (
        1,
        control("LunarLanderContinuous-v3", preset="own", run__total_steps=300_000),
    ),
    "CartPole a2c": (2, control(CARTPOLE, preset="a2c")),
    "CartPole a2c, tuned": (3, control(CARTPOLE, preset="cartpole-a2c")),
    "CartPole ppo-penalty": (3, control(CARTPOLE, preset="cartpole-ppo-penalty")),
    "CartPole trpo": (2, control(CARTPOLE, preset="cartpole-trpo")),
    "CartPole reinforce": (1, control(CARTPOLE, preset="cartpole-reinforce")),
    "CartPole qac": (1, control(CARTPOLE, preset="cartpole-qac")),
    "Pendulum ppo-penalty": (1, control(PENDULUM, preset="pendulum-ppo-penalty")),
    "Pendulum trpo": (1, control(PENDULUM, preset="pendulum-trpo")),
    "InvertedPendulum preset, 100,000 steps": (
        2,
        control("InvertedPendulum-v5", preset="own", run__total_steps=100_000),
    ),
    "HalfCheetah preset, 256,000 steps": (
        1,
        control("HalfCheetah-v5", preset="own", run__total_steps=256_000),
    ),
    "FrozenLake defaults": (
        4,
        control("FrozenLake-v1", env__kwargs={"is_slippery": False}, run__total_steps=60_000),
    ),
    **{
        f"probe {name}": (2, control(f"{probes}:{name}", **small))
        for name in ("BestAction", "BestActionGivenObservation")
    },
    "probe Remember": (2, control(f"{probes}:Remember", net__recurrent="gru", **small)),
    **{
        f"probe Match {done}": (1, control(f"{probes}:Match", env__kwargs={"done": done}, **small))
        for done in ("discrete", "binary", "box", "hybrid")
    },
    "Maze": (2, control(f"{puzzles}:Maze", run__total_steps=60_000)),
    "Catch": (2, control(f"{puzzles}:Catch", run__total_steps=30_000)),
    "Cards": (2, control(f"{puzzles}:Cards", run__total_steps=60_000)),
    "language: count a": (2, language(count_a, rate=5e-4)),
    "language: pairs": (3, language(count_ab, rate=5e-4)),
    "language: begins alike": (4, language(starts_alike, rate=5e-4)),
    "language: begins alike, rloo": (
        4,
        language(starts_alike, rate=5e-4, algorithm=rloo, run={"completions_per_prompt": 4}),
    ),
}


def replayed(folder: Path) -> list[dict[str, Any]]:
    """What the rules, as they are now, say in a run of these rows."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tables = read_tables(folder / "config.toml")
    monitor = HealthMonitor(tables, [], lambda text: None)
    for row in rows:
        row.pop("health", None)
        monitor(None, None, row)
    return monitor.report()


def measure(kind: str, name: str, seed: int, run: Run, folder: Path, *, replay: bool) -> Any:
    begin = time.perf_counter()
    if not replay:
        run(seed, folder)
    result = json.loads((folder / "result.json").read_text())
    findings = replayed(folder) if replay else result.get("health", [])
    line = {"kind": kind, "name": name, "seed": seed, "findings": findings}
    if kind == "fault":
        rule, named, _ = FAULTS[name]
        first = findings[0] if findings else {"rule": "", "remedy": ""}
        line["first"] = first["rule"] == rule and named in first["remedy"]
    score = result.get("return_mean", result.get("best_held_out_score"))
    more = {"score": score, "updates": result["updates"]}
    return {
        **line,
        **more,
        "seconds": round(time.perf_counter() - begin, 1),
        "commit": commit(ROOT),
    }


def cost() -> dict[str, Any]:
    """Share of the process's CPU time in logging and health: CartPole, 4 envs x 128, native."""
    spent: dict[str, int] = {}

    def clock(owner: type, method: str, label: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any) -> Any:
            begin = time.thread_time_ns()
            found = inner(*args)
            spent[label] = spent.get(label, 0) + time.thread_time_ns() - begin
            return found

        setattr(owner, method, timed)

    for method in ("__call__", "report"):
        clock(HealthMonitor, method, "rules")
    for method in ("begin", "take", "end"):
        clock(Measurements, method, "readings")
    for method in ("__call__", "sync"):
        clock(MetricsLogger, method, "log")
    folder, begin = Path(tempfile.mkdtemp()) / "run", time.process_time()
    control(CARTPOLE, rollout__steps=128, run__total_steps=200_000, run__engine="native")(0, folder)
    total = time.process_time() - begin
    shares = {label: round(ns / 1e9 / total, 5) for label, ns in spent.items()}
    return {"kind": "cost", "seconds": round(total, 2), **shares, "commit": commit(ROOT)}


def lines() -> list[dict[str, Any]]:
    return [json.loads(x) for x in LINES.read_text().splitlines()] if LINES.exists() else []


def table(found: list[dict[str, Any]]) -> str:
    """health.md."""
    faults = [x for x in found if x["kind"] == "fault"]
    healthy = [x for x in found if x["kind"] == "healthy"]
    text = ["# What the rules of health say: planted faults, and healthy runs", ""]
    text += ["Written by `benchmarks/health.py` from `health.jsonl`.", "", NOTE, ""]
    text += [
        "| fault | rule that names it | first in | others that came first |",
        "|---|---|---|---|",
    ]
    hits = 0
    for name, (rule, _, _) in FAULTS.items():
        runs = [x for x in faults if x["name"] == name]
        if not runs:
            continue
        first = sum(x["first"] for x in runs)
        hits += first >= 0.9 * len(runs)
        others = {
            (x["findings"] or [{"rule": "nothing"}])[0]["rule"] for x in runs if not x["first"]
        }
        text.append(f"| {name} | {rule} | {first} of {len(runs)} | {', '.join(sorted(others))} |")
    named = {x["name"] for x in faults}
    text += ["", f"First in at least 90% of the seeds: {hits} of {len(named)} faults.", ""]
    text += ["| healthy runs | runs | with a finding | findings |", "|---|---|---|---|"]
    for name in HEALTHY:
        runs = [x for x in healthy if x["name"] == name]
        if not runs:
            continue
        said = sorted({f["rule"] for x in runs for f in x["findings"]})
        alarms = sum(bool(x["findings"]) for x in runs)
        text.append(f"| {name} | {len(runs)} | {alarms} | {', '.join(said)} |")
    alarms = sum(bool(x["findings"]) for x in healthy)
    if healthy:
        share = f"{alarms} of {len(healthy)} ({alarms / len(healthy):.1%})"
        text += ["", f"Healthy runs with any finding: {share}."]
    for x in found:
        if x["kind"] == "cost":
            parts = {part: x[part] for part in ("rules", "readings", "log")}
            said = ", ".join(f"{part} {share:.2%}" for part, share in parts.items())
            text += [
                "",
                f"Of the CPU time of CartPole, 4 envs x 128 steps, native engine: {said}, ",
            ]
            text[-1] += f"together {sum(parts.values()):.2%} (of {x['seconds']} s)."
    return "\n".join([*text, "", f"Machine: {machine()}.", ""])


def record(line: dict[str, Any]) -> None:
    with LINES.open("a") as file:
        file.write(json.dumps(line) + "\n")
    (HERE / "results" / "health.md").write_text(table(lines()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kind", choices=["fault", "healthy"])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--cost", action="store_true", help="measure what it costs, alone")
    parser.add_argument("--print", action="store_true", help="to the screen, not to the results")
    args = parser.parse_args()
    if args.cost:
        record(cost())
        return
    runs = args.runs or Path(tempfile.mkdtemp())
    stored = [] if args.print else lines()
    done = {(x["kind"], x["name"], x["seed"]) for x in stored if x["kind"] != "cost"}
    cases = [
        ("fault", name, seed, run) for name, (_, _, run) in FAULTS.items() for seed in args.seeds
    ]
    cases += [
        ("healthy", name, args.seeds[0] + i, run)
        for name, (count, run) in HEALTHY.items()
        for i in range(count)
    ]
    for kind, name, seed, run in cases:
        if args.only and not any(part in name for part in args.only):
            continue
        folder = runs / f"{kind} {name} {seed}".replace("/", "over")
        if args.kind not in (None, kind) or (kind, name, seed) in done:
            continue
        if args.replay and not (folder / "result.json").exists():
            continue
        if args.print and not args.replay and (folder / "result.json").exists():
            continue
        line = measure(kind, name, seed, run, folder, replay=args.replay)
        told = [f"{f['rule']}@{f['update']}" for f in line["findings"]]
        print(
            kind,
            name,
            seed,
            line.get("first", ""),
            line["score"],
            line["seconds"],
            *told,
            flush=True,
        )
        if not args.print:
            record(line)


if __name__ == "__main__":
    main()
