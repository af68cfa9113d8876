"""`proximo lm`: language models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from proximo.commands.arguments import optional, parse, show
from proximo.commands.stored import line_to_type
from proximo.errors import UsageError, nearest
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
    resumed,
)
from proximo.language.token_ppo import TOKEN_PPO, TokenPPO
from proximo.run.folder import RunFolder, free

TEXT = optional("FILE")
REWARD = optional("MODULE:FUNCTION|RUN ...")
ENV = optional("MODULE:CLASS")


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Flags of every stage."""

    run_dir: Annotated[Path | None, optional("DIR")] = None
    """A new folder for the run; by default runs/lm-STAGE-seedS."""
    quiet: bool = False  # Print nothing but errors.
    model: ModelConfig = field(default_factory=ModelConfig)
    run: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class Sft(Begin):
    """Fine-tune a language model on texts: the most likely answers, given their prompts.

    The data are lines of JSON with "prompt" and "completion", as text or as chat messages.
    """

    data: Annotated[Path | None, TEXT] = None  # JSONL with prompt and completion.
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass(frozen=True, kw_only=True)
class FitReward(Sft):
    """Fit a reward model to pairs of answers, of which one was preferred.

    The data are lines of JSON with "prompt", "chosen" and "rejected".
    """

    data: Annotated[Path | None, TEXT] = None  # JSONL with prompt, chosen and rejected.


@dataclass(frozen=True, kw_only=True)
class Ppo(Begin):
    """Train a language model by PPO for a reward, near the model that it began as.

    The prompts are lines of JSON with "prompt"; other columns are passed to the reward. An env
    speaks first: the columns are passed to its reset, and there may be no prompts.
    """

    prompts: Annotated[Path | None, TEXT] = None  # JSONL with prompt.
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
    prompt: Annotated[tuple[str, ...], optional("TEXT ...")] = ()  # Prompts as text.
    prompts: Annotated[Path | None, TEXT] = None  # Prompts as JSONL.
    seed: int = 0  # Seed of the tokens.
    json: bool = False  # Print lines of JSON, with prompt and completion.
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a run of proximo lm exactly where its last checkpoint stands.

    The result is the same, to the bit, as without the break (on the same processor and versions).
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]  # The run folder.
    updates: Annotated[int | None, optional("N")] = None
    """Train to this many updates instead; schedules keep their horizon."""
    reward: Annotated[tuple[str, ...], REWARD] = ()
    """Reward; if it is code (module:function), repeat its name as consent to import it."""
    env: Annotated[str | None, ENV] = None  # Environment; likewise.
    data: Annotated[Path | None, TEXT] = None  # Data, if the file has moved.
    strict: bool = False
    """Refuse a damaged last checkpoint, instead of continuing from the newest whole one."""
    quiet: bool = False  # Print nothing but errors.


STAGES: dict[str, tuple[type, str]] = {
    "sft": (Sft, "Fine-tune a language model on texts."),
    "reward": (FitReward, "Fit a reward model to pairs of answers."),
    "ppo": (Ppo, "Train a language model by PPO for a reward."),
    "generate": (Generate, "Complete prompts."),
    "resume": (Resume, "Continue a run, exactly where it stopped."),
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
    kind: type[StageConfig]
    if isinstance(command, Ppo):
        stage, kind, data, flag = "ppo", PPOConfig, command.prompts, "--prompts"
    else:
        stage = "reward" if isinstance(command, FitReward) else "sft"
        kind, data, flag = SupervisedRunConfig, command.data, "--data"
    score = getattr(command, "score", ScoreConfig())
    if data is None and not score.env:
        raise UsageError(f"name the data: {flag} FILE.jsonl")
    if stage == "ppo" and not (score.reward or score.env):
        raise UsageError("name what scores completions: --reward module:function, a run, or --env")
    names = [part.name for part in dataclasses.fields(kind) if part.name != "lm"]
    sections: dict[str, Any] = {name: getattr(command, name) for name in names}
    task: Any = {"stage": stage, "data": str(data or "")}
    config: StageConfig = kind(lm=Stage(**task), **sections)
    path = command.run_dir or free(Path("runs") / f"lm-{stage}-seed{config.run.seed}")
    return _train(config, path, quiet=command.quiet)


def _resume(command: Resume, arguments: list[str]) -> int:
    folder = RunFolder.open(command.run)
    folder.check_begun()
    stored, line = read_stage(folder.config_file), line_to_type("lm resume", arguments)
    config = resumed(stored, command.data, command.reward, command.env, command.updates, line)

    from proximo.run.checkpoint import Checkpoint, Damaged

    try:
        saved = Checkpoint(folder.checkpoint("last"))
        updates, finished = saved.updates, saved.record.get("finished")
    except Damaged:  # training continues, from an earlier one
        if command.strict:
            raise
        updates, finished = 0, False
    # Or it was killed before its result was written, or that is of another state.
    if updates >= config.run.updates and finished and folder.has_result("updates", updates):
        if not command.quiet:
            show(f"{command.run} is finished: {updates:,} updates. To train on, give --updates")
        return 0
    given = {"data": command.data, "rewards": command.reward}
    return _train(config, command.run, quiet=command.quiet, resume=given)


def _train(config: StageConfig, path: Path, *, quiet: bool, resume: Any = None) -> int:
    """resume: data and rewards of a run that continues, if they were given again."""
    from proximo.commands.running import supervise
    from proximo.language.build import Given, make_session
    from proximo.run.display import COMPLETIONS, FITTING, make_display, screen_for

    folder = RunFolder(path)
    columns = COMPLETIONS if isinstance(config, PPOConfig) else FITTING
    screen = None if quiet else screen_for()
    display = make_display(screen, columns, config.run.updates, folder)

    def make(interrupt: Any) -> Any:
        given, again = Given(**(resume or {})), resume is not None
        watching: Any = {"callbacks": [interrupt], "display": display}
        return make_session(config, given, run_dir=path, resume=again, **watching)

    def ending(session: Any, result: Any) -> list[str]:
        final = session.task.final.items()
        numbers = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in final]
        return [*numbers, f"run folder: {path}"]

    lines = [f"{config.lm.stage} of {config.model.path}, run folder {path}"]
    grace = config.run.grace
    return supervise(make, ending, folder, display, lines, grace=grace, resume="proximo lm resume")


def _generate(command: Generate, arguments: list[str]) -> int:
    if bool(command.prompt) == bool(command.prompts):
        raise UsageError("give prompts as text, by --prompt, or as a file, by --prompts")

    from proximo.language.blueprint import load_model
    from proximo.language.examples import Examples
    from proximo.language.stages import complete
    from proximo.language.tokenizer import content

    rows = Examples.read(command.prompts or command.prompt, "prompt").rows
    completions = complete(load_model(command.model), rows, command.sampling, seed=command.seed)
    for prompt, text in zip([row["prompt"] for row in rows], completions, strict=True):
        if command.json:
            show(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False))
        else:
            show(f"{prompt if isinstance(prompt, str) else content(prompt[-1])} | {text}")
    return 0
