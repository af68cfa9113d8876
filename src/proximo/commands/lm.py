"""`proximo lm`: language models."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from proximo.commands.arguments import parse, say, show
from proximo.errors import TrainingError, UsageError, nearest
from proximo.language.config import (
    KLConfig,
    ModelConfig,
    PPOConfig,
    PTXConfig,
    Sampling,
    ScoreConfig,
    Stage,
    StageConfig,
    SupervisedConfig,
    SupervisedRunConfig,
    TrainingConfig,
    read_stage,
)
from proximo.language.token_ppo import TOKEN_PPO, TokenPPO
from proximo.run.folder import RunFolder, free

if TYPE_CHECKING:
    from proximo.language.stages import Result
    from proximo.language.state import LanguageState

MODEL = arg(name="model", metavar="MODEL", help_behavior_hint="")
TEXT = arg(metavar="FILE", help_behavior_hint="")
SHORT = arg(help_behavior_hint="")
REWARD = arg(metavar="MODULE:FUNCTION|RUN ...", help_behavior_hint="")
ENV = arg(metavar="MODULE:CLASS", help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Begin:
    """What every stage is given."""

    path: Annotated[str | None, MODEL] = None
    """A folder that transformers reads, a run of proximo lm, or tiny (short for --model.path)."""
    updates: Annotated[int | None, SHORT] = None
    """Updates to train for (short for --run.updates)."""
    seed: Annotated[int | None, SHORT] = None
    """Seed of everything (short for --run.seed)."""
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A new folder for the run; by default runs/lm-STAGE-seedS."""
    quiet: bool = False
    """Print nothing but errors."""
    model: ModelConfig = field(default_factory=ModelConfig)
    run: TrainingConfig = field(default_factory=TrainingConfig)

    def sections(self) -> dict[str, Any]:
        """The model and the run, with the shorthands laid over them."""
        given = {"updates": self.updates, "seed": self.seed}
        run = {name: value for name, value in given.items() if value is not None}
        model = {"path": self.path} if self.path is not None else {}
        return {
            "model": dataclasses.replace(self.model, **model),  # type: ignore[arg-type]
            "run": dataclasses.replace(self.run, **run),  # type: ignore[arg-type]
        }


@dataclass(frozen=True, kw_only=True)
class Sft(Begin):
    """Fine-tune a language model on texts: the most likely answers, given their prompts.

    The data are lines of JSON with "prompt" and "completion", as text or as chat messages.
    """

    data: Annotated[Path | None, TEXT] = None
    """JSONL with prompt and completion."""
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass(frozen=True, kw_only=True)
class FitReward(Begin):
    """Fit a reward model to pairs of answers, of which one was preferred.

    The data are lines of JSON with "prompt", "chosen" and "rejected".
    """

    data: Annotated[Path | None, TEXT] = None
    """JSONL with prompt, chosen and rejected."""
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass(frozen=True, kw_only=True)
class Ppo(Begin):
    """Train a language model by PPO for a reward, near the model that it began as.

    The prompts are lines of JSON with "prompt"; other columns are handed to the reward. With an
    env, which speaks first, they are handed to its reset, or left out.
    """

    prompts: Annotated[Path | None, TEXT] = None
    """JSONL with prompt."""
    reward: Annotated[tuple[str, ...], REWARD] = ()
    """What scores completions (short for --score.reward)."""
    env: Annotated[str | None, ENV] = None
    """An env of text to talk with, for its rewards (short for --score.env)."""
    algorithm: TokenPPO = TOKEN_PPO
    sampling: Sampling = field(default_factory=Sampling)
    kl: KLConfig = field(default_factory=KLConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    ptx: PTXConfig = field(default_factory=PTXConfig)


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Complete prompts with a language model, and print what it says.

    The same command prints the same completions.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A run of proximo lm, or a folder that transformers reads."""
    prompt: Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """Prompts as text."""
    prompts: Annotated[Path | None, TEXT] = None
    """Prompts as JSONL."""
    seed: int = 0
    """Seed of the tokens."""
    json: bool = False
    """Print lines of JSON, with prompt and completion."""
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with a run of proximo lm exactly where its last checkpoint stands.

    The result is the same, to the bit, as if it had never stopped (on the same processor and
    versions).
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    updates: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Train to this many updates instead; schedules keep their horizon."""
    reward: Annotated[tuple[str, ...], REWARD] = ()
    """What scores completions, which a function of your own needs to hear again."""
    env: Annotated[str | None, ENV] = None
    """The env, likewise."""
    data: Annotated[Path | None, TEXT] = None
    """The data, where the file stands elsewhere now."""
    strict: bool = False
    """Refuse a last checkpoint that is damaged, instead of going on from the newest whole one."""
    quiet: bool = False
    """Print nothing but errors."""


STAGES: dict[str, tuple[type, str]] = {
    "sft": (Sft, "Fine-tune a language model on texts."),
    "reward": (FitReward, "Fit a reward model to pairs of answers."),
    "ppo": (Ppo, "Train a language model by PPO for a reward."),
    "generate": (Generate, "Complete prompts."),
    "resume": (Resume, "Go on with a run, exactly where it stopped."),
}


def usage() -> str:
    stages = "\n".join(f"  {stage:10}{text}" for stage, (_, text) in STAGES.items())
    return (
        "usage: proximo lm STAGE ...\n\n"
        "Train language models: fine-tuning, reward models, PPO with a KL penalty.\n\n"
        f"{stages}\n\n"
        "  proximo lm STAGE --help    everything a stage takes\n\n"
        "For example:\n"
        "  proximo lm sft --model tiny --data texts.jsonl --run-dir runs/base\n"
        "  proximo lm reward --model runs/base --data pairs.jsonl --run-dir runs/judge\n"
        "  proximo lm ppo --model runs/base --prompts prompts.jsonl --reward runs/judge\n"
        "  proximo lm ppo --model runs/base --env my_env:Env\n"
        "  proximo lm generate runs/lm-ppo-seed0 --prompt 'The weather'"
    )


def main(arguments: list[str]) -> int:
    stage, *rest = arguments or ["--help"]
    if stage in ("-h", "--help", "help"):
        show(usage())
        return 0
    if stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r} of proximo lm. {nearest(stage, STAGES)}")
    command: Any = parse(STAGES[stage][0], f"lm {stage}", rest)
    act: dict[str, Callable[[Any, list[str]], int]] = {"generate": _generate, "resume": _resume}
    return act.get(stage, _begin)(command, rest)


def _begin(command: Sft | FitReward | Ppo, arguments: list[str]) -> int:
    config: StageConfig
    if isinstance(command, Ppo):
        data, score = command.prompts, _scored(command.score, command)
        if data is None and not score.env:
            raise UsageError("name the data: --prompts FILE.jsonl")
        if not (score.reward or score.env):
            raise UsageError(
                "name what scores completions: --reward module:function, or a run, or --env"
            )
        config = PPOConfig(
            lm=Stage(stage="ppo", data=str(data or "")),
            algorithm=command.algorithm,
            sampling=command.sampling,
            kl=command.kl,
            score=score,
            ptx=command.ptx,
            **command.sections(),
        )
    else:
        if command.data is None:
            raise UsageError("name the data: --data FILE.jsonl")
        stage: Any = "sft" if isinstance(command, Sft) else "reward"
        task = Stage(stage=stage, data=str(command.data))
        config = SupervisedRunConfig(lm=task, algorithm=command.algorithm, **command.sections())
    path = command.run_dir or free(Path("runs") / f"lm-{config.lm.stage}-seed{config.run.seed}")
    return _train(config, path, resume=False, quiet=command.quiet)


def _resume(command: Resume, arguments: list[str]) -> int:
    folder = RunFolder.open(command.run)
    folder.check_begun()
    config = read_stage(folder.config_file)
    if isinstance(config, PPOConfig):
        config = dataclasses.replace(config, score=_scored(config.score, command))
        _check_code(config.score, command, arguments)
    if command.data is not None:
        config = dataclasses.replace(
            config, lm=dataclasses.replace(config.lm, data=str(command.data))
        )
    if not config.lm.data and not (isinstance(config, PPOConfig) and config.score.env):
        raise UsageError("this run's data were given by a program: name them by --data")
    if command.updates is not None:
        run = dataclasses.replace(config.run, updates=command.updates)
        config = dataclasses.replace(config, run=run)

    from proximo.run.checkpoint import Checkpoint, Damaged

    try:
        saved = Checkpoint(folder.checkpoint("last"))
        done, finished = saved.updates, saved.record.get("finished")
    except Damaged:  # then there is more to do, from an earlier one
        if command.strict:
            raise
        done, finished = 0, False
    result = folder.read_result()  # of this state, or it was killed before that was written
    written = (result.get("stopped_by"), result.get("updates")) == ("updates", done)
    if done >= config.run.updates and finished and written:
        if not command.quiet:
            show(f"{command.run} is finished: {done:,} updates. To train further, give --updates")
        return 0
    return _train(config, command.run, resume=True, quiet=command.quiet)


def _scored(score: ScoreConfig, command: Ppo | Resume) -> ScoreConfig:
    """With the shorthands laid over it."""
    given: dict[str, Any] = {"reward": command.reward, "env": command.env}
    return dataclasses.replace(score, **{name: value for name, value in given.items() if value})


def _check_code(score: ScoreConfig, command: Resume, arguments: list[str]) -> None:
    """Refuse to import code because a file names it. Raises `UsageError` with the line to type."""
    own, again = "", [""]
    code = [name for name in score.reward if not Path(name).is_dir()]
    if code and not command.reward:
        own, again = f"reward, {' and '.join(code)}", ["--reward", *score.reward]
    if ":" in score.env and not command.env:
        own, again = f"env, {score.env}", ["--env", score.env]
    if own:
        line = shlex.join(["proximo", "lm", "resume", *arguments, *again])
        raise UsageError(
            f"this run's {own}, is code: importing it needs your word. "
            f"If you trust it, type: {line}"
        )
    if not (score.reward or score.env):
        raise UsageError(
            "this run's reward was given by a program: name it by --reward, or an env by --env"
        )


def _train(config: StageConfig, path: Path, *, resume: bool, quiet: bool) -> int:
    from proximo.commands.signals import Interrupt
    from proximo.language.build import Given, make_session
    from proximo.language.stages import run_stage
    from proximo.run.callbacks import Watcher

    folder = RunFolder(path)
    if not quiet:
        say(f"{config.lm.stage} of {config.model.path}, run folder {path}")
    display = None if quiet else Lines(config.run.updates)
    again = f"proximo lm resume {path}"
    with Interrupt(folder, config.run.grace, "proximo lm resume") as interrupt:
        try:
            session = make_session(
                config,
                Given(),
                run_dir=path,
                resume=resume,
                callbacks=[interrupt],
                display=display,
            )

            def check_signals(state: LanguageState, rollout: object, row: object) -> None:
                if interrupt.asked:
                    interrupt.asked = False
                    if session.save():
                        folder.note(text := f"SIGUSR1: saved after update {state.updates}")
                        if not quiet:
                            say(text)

            session.callbacks.append(Watcher(check_signals))  # after all others
            result = run_stage(session)
        except KeyboardInterrupt:
            show(interrupt.stopped_at_once(), file=sys.stderr)
            return 128 + (interrupt.signal or signal.SIGINT)
        except TrainingError as error:
            raise TrainingError(f"{error}\nThe run is kept; go on by: {again}") from error
    if interrupt.signal is not None:
        show(f"stopped; go on by: {again}", file=sys.stderr)
        return 128 + interrupt.signal
    if display:
        display.end(result, path)
    return 0


READINGS = (
    ("score", "score", "{:.3f}"),
    ("held out", "held_out_score", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("accuracy", "accuracy", "{:.2f}"),
    ("KL", "kl", "{:.3f}"),
    ("beta", "beta", "{:.3g}"),
    ("length", "length", "{:.1f}"),
    ("turns", "turns", "{:.1f}"),
    ("stopped", "stopped", "{:.2f}"),
    ("repeated", "repeated", "{:.2f}"),
    ("explained variance", "explained_variance", "{:.2f}"),
)
"""Label, key of the row, format; what a stage has no reading of is not shown."""


class Lines:
    """A line every five seconds, and the last one."""

    INTERVAL = 5.0

    def __init__(self, total: int) -> None:
        self._total, self._printed = total, time.perf_counter()
        self._row: dict[str, Any] | None = None

    def show(self, row: dict[str, Any]) -> None:
        self._row = row
        if time.perf_counter() - self._printed >= self.INTERVAL:
            self._print()

    def end(self, result: Result, path: Path) -> None:
        """The last line, and what was measured at the end."""
        self._print()
        for name, value in result.final.items():
            say(f"{name.replace('_', ' ')} {value:.4f}")
        say(f"run folder: {path}")

    def _print(self) -> None:
        if self._row is None:
            return
        row, self._row, self._printed = self._row, None, time.perf_counter()
        words = [f"{label} {form.format(row[key])}" for label, key, form in READINGS if key in row]
        if "score" in row:
            words = [word for word in words if not word.startswith("loss ")]
        line = f"{row['update']:,}/{self._total:,} updates  {'  '.join(words)}"
        say(f"{line}  {row['seconds']:.0f} s")


def _generate(command: Generate, arguments: list[str]) -> int:
    if bool(command.prompt) == bool(command.prompts):
        raise UsageError("give prompts as text, by --prompt, or as a file, by --prompts")

    from proximo.language.blueprint import load_model
    from proximo.language.examples import Examples
    from proximo.language.stages import complete
    from proximo.language.tokenizer import content

    rows = Examples.read(command.prompts or command.prompt, "prompt").rows
    said = complete(load_model(command.model), rows, command.sampling, seed=command.seed)
    for prompt, text in zip([row["prompt"] for row in rows], said, strict=True):
        if command.json:
            show(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False))
        else:
            show(f"{prompt if isinstance(prompt, str) else content(prompt[-1])} | {text}")
    return 0
