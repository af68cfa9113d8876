"""The stages as public functions: `sft`, `fit_reward`, `ppo`, and `resume` for a run of any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from proximo.envs.base import Maker
from proximo.errors import UsageError, printable
from proximo.language.build import AnyReward, Given, make_session
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
from proximo.language.examples import Examples, Limit, Source
from proximo.language.generate import generate
from proximo.language.model import Decoding, LanguageModel
from proximo.language.reward import RewardModel
from proximo.language.task import StageTask
from proximo.language.token_ppo import TOKEN_PPO, TokenPPO
from proximo.language.tokenizer import Tokenizer
from proximo.loop import run_session
from proximo.run.callbacks import Callback
from proximo.run.consent import python_line
from proximo.run.display import COMPLETIONS, FITTING, make_display, screen_of_call
from proximo.run.folder import RunFolder
from proximo.run.result import RunResult, html_table
from proximo.types import Row


class Result:
    """A trained language model, or a reward model, with the rows and the result of its run."""

    def __init__(self, task: StageTask, result: Row) -> None:
        policy = task.state.policy
        self.lm = task.state.lm  # of `fit_reward`, the trunk of the reward model
        self.reward = policy if isinstance(policy, RewardModel) else None  # of `fit_reward`
        self.rows = task.rows  # one per logged update, as in metrics.jsonl
        self.config: StageConfig = task.config
        self.result = RunResult(result)  # how the training ended, as in result.json
        self.final = task.final  # held_out_loss, held_out_accuracy, best_held_out_score

    def __repr__(self) -> str:
        return f"Result({task_name(self.config)}, {self.result['updates']:,} updates)"

    def _repr_html_(self) -> str:
        return html_table(task_name(self.config), self.result.pairs())

    @property
    def scores(self) -> list[float]:
        """Of `ppo`: the mean score of the completions of each logged update."""
        return [row["score"] for row in self.rows]

    def generate(
        self, prompts: Source, sampling: Sampling | None = None, *, seed: int = 0
    ) -> list[str]:
        """One completion for each prompt, text or chat; the same seed gives the same ones."""
        trained = self.config.sampling if isinstance(self.config, PPOConfig) else Sampling()
        return complete(self.lm, prompts, sampling or trained, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Write the language model as a folder that transformers reads. Raises `UsageError`."""
        if self.reward is not None:
            raise UsageError(
                "a reward model is no language model that transformers reads: give fit_reward a "
                "run_dir, and read it from there by load_reward"
            )
        self.lm.save(Path(folder))


def task_name(config: StageConfig) -> str:
    """The stage and the model that it begins with, for people."""
    model = printable(config.model.path, keep="") or "a model of the program"
    return f"{config.lm.stage} of {model}"


def complete(lm: LanguageModel, prompts: Source, sampling: Sampling, *, seed: int = 0) -> list[str]:
    """One completion for each prompt, as text."""
    examples = Examples.read(prompts, "prompt")
    tokenizer = Tokenizer(lm.tokenizer, sampling.stop, lm.ends)
    ids = examples.prompts(tokenizer)
    examples.check_lengths(sampling.max_tokens, Limit(lm.context), ids)
    generator = torch.Generator().manual_seed(seed)
    completions = generate(lm, ids, Decoding(sampling, tokenizer.stops), generator)
    return [tokenizer.text(own) for own in completions.ids]


Model = str | Path | LanguageModel | Result | ModelConfig
Watching = Sequence[Callback | Callable[..., Any]]


def sft(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: SupervisedConfig | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Watching = (),
    progress: bool | None = None,
) -> Result:
    """Supervised fine-tuning: L = -1/B Σ log π(token | text before it), over the answers' tokens.

    model: "tiny", a folder of transformers, a run, a `LanguageModel`, an earlier `Result`, or a
    `ModelConfig`. data: rows with prompt and completion, or a JSONL file of them. updates, seed and
    lora_rank: shorthands for `TrainingConfig` and `ModelConfig`. run_dir: a new folder to keep the
    run in, or with `resume` the one to continue. callbacks: see `proximo.Callback`. progress: as
    for `proximo.train`. Raises `UsageError` for what does not fit, before any weights are loaded.
    """
    chosen, settings = _model(model, lora_rank=lora_rank), _training(run, updates, seed)
    options = {"run_dir": run_dir, "resume": resume, "callbacks": callbacks, "progress": progress}
    return _fit("sft", chosen, data, algorithm, settings, **options)


def fit_reward(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: SupervisedConfig | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Watching = (),
    progress: bool | None = None,
) -> Result:
    """Fit a reward model: L = -1/N Σ log σ(r(chosen) - r(rejected)), Bradley & Terry 1952.

    data: rows with prompt, chosen and rejected. The rest is as for `sft`.
    """
    chosen, settings = _model(model, lora_rank=lora_rank), _training(run, updates, seed)
    options = {"run_dir": run_dir, "resume": resume, "callbacks": callbacks, "progress": progress}
    return _fit("reward", chosen, data, algorithm, settings, **options)


def ppo(
    model: Model,
    prompts: Source | None = None,
    reward: AnyReward | Result | Sequence[AnyReward | Result] = (),
    *,
    env: Maker | None = None,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: TokenPPO = TOKEN_PPO,
    sampling: Sampling | None = None,
    kl: KLConfig | None = None,
    score: ScoreConfig | None = None,
    ptx: PTXConfig | None = None,
    critic: Literal["shared", "separate", "reward"] | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Watching = (),
    progress: bool | None = None,
) -> Result:
    """PPO on a language model: L = L^CLIP - c1 L^VF over tokens, r_t = score_T - β KL_t.

    prompts: rows with a prompt and any columns that the reward takes, plain texts, or a JSONL file.
    reward: a function (see `Reward`), a reward model, or several, whose weighted sum counts.
    env: instead, a Gymnasium env of text to talk with (its class, or what makes one), see
    `TextEnvs`; prompts, if any, are then the `options` of its episodes, a row each.
    critic, lora_rank: shorthands for `ModelConfig`. The rest is as for `sft`.
    """
    chosen, lm = _model(model, critic=critic, lora_rank=lora_rank)
    config = PPOConfig(
        lm=Stage(stage="ppo", data="" if prompts is None else _file(prompts)),
        model=chosen,
        algorithm=algorithm,
        run=_training(run, updates, seed),
        **_given(sampling=sampling, kl=kl, score=score, ptx=ptx),
    )
    given = Given(data=prompts, model=lm, rewards=_rewards(reward), env=env)
    options = {"run_dir": run_dir, "resume": resume, "callbacks": callbacks}
    return _run(config, given, progress=progress, **options)


def resume(
    run_dir: str | Path,
    *,
    data: Source | None = None,
    reward: str | AnyReward | Result | Sequence[str | AnyReward | Result] = (),
    env: str | Maker | None = None,
    updates: int | None = None,
    callbacks: Watching = (),
    strict: bool = False,
    progress: bool | None = None,
) -> Result:
    """Continue a run of any stage exactly where its last checkpoint stands.

    The result is the same, to the bit, as without the break. updates: train to this many instead.
    data, reward, env: those of the run, where a program gave them; rewards and envs that are code
    (`module:name`) must be named again, because importing code needs your consent. strict: refuse
    a damaged last checkpoint instead of using an older one. Raises `UsageError`.
    """
    stored = read_stage(RunFolder.open(run_dir).config_file)
    line = python_line(f"resume({str(run_dir)!r}")
    config = resumed(stored, data, reward, env, updates, line)
    maker = None if isinstance(env, str) else env
    given = Given(data=data, rewards=_rewards(reward), env=maker)
    options = {"resume": True, "strict": strict, "callbacks": callbacks}
    return _run(config, given, run_dir=run_dir, progress=progress, **options)


def _run(config: StageConfig, given: Given, *, progress: bool | None, **options: Any) -> Result:
    """Train as a call from Python. options: of the session."""
    columns = COMPLETIONS if isinstance(config, PPOConfig) else FITTING
    folder = RunFolder(options["run_dir"]) if options["run_dir"] is not None else None
    screen = screen_of_call(progress)
    display = make_display(screen, columns, config.run.updates, folder, task_name(config))
    session = make_session(config, given, display=display, **options)
    result = run_session(session, display)
    task: Any = session.task
    return Result(task, result)


def _rewards(reward: Any) -> list[Any] | None:
    """The rewards as a list; None: those that the configuration names."""
    several = reward if isinstance(reward, list | tuple) else [reward]
    return [r.reward if isinstance(r, Result) else r for r in several] or None


def _model(model: Model, **shorthands: Any) -> tuple[ModelConfig, LanguageModel | None]:
    """The settings of the model, and the model itself where a program gives it."""
    lm = model.lm if isinstance(model, Result) else model
    chosen = _given(**shorthands)
    if isinstance(lm, LanguageModel):
        return ModelConfig(path="", **chosen), lm
    config = lm if isinstance(lm, ModelConfig) else ModelConfig(path=str(lm))
    return dataclasses.replace(config, **chosen), None


def _file(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else ""


def _training(run: TrainingConfig | None, updates: int | None, seed: int | None) -> TrainingConfig:
    return dataclasses.replace(run or TrainingConfig(), **_given(updates=updates, seed=seed))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _fit(
    stage: Literal["sft", "reward"],
    model: tuple[ModelConfig, LanguageModel | None],
    data: Source,
    algorithm: SupervisedConfig | None,
    run: TrainingConfig,
    **options: Any,
) -> Result:
    lm, algorithm = Stage(stage=stage, data=_file(data)), algorithm or SupervisedConfig()
    config = SupervisedRunConfig(lm=lm, model=model[0], algorithm=algorithm, run=run)
    return _run(config, Given(data=data, model=model[1]), **options)
