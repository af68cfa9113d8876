"""The three stages, as public functions: `sft`, `fit_reward`, `ppo`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from proximo.disk import writable
from proximo.envs.base import Maker
from proximo.errors import UsageError
from proximo.language.adapters import copy_trainable
from proximo.language.blueprint import Blueprint, blueprint, read_blueprint
from proximo.language.config import (
    FitConfig,
    Fitting,
    KLConfig,
    ModelConfig,
    PPOConfig,
    PTXConfig,
    Sampling,
    ScoreConfig,
    StageConfig,
    Task,
    TrainingConfig,
    read_stage,
)
from proximo.language.envs import TextEnv, TextEnvs, characters, text_envs
from proximo.language.examples import Examples, Limit, Source, split
from proximo.language.fitting import Fit, Likelihood, Preference
from proximo.language.generate import generate
from proximo.language.model import LanguageModel, LanguagePolicy
from proximo.language.policy_fit import PolicyFit
from proximo.language.reference import make_reference
from proximo.language.reward import Reward, RewardModel, RewardSum, find_reward
from proximo.language.session import Callback, Display, Learner, Row, read_checkpoint, train
from proximo.language.token_ppo import TOKENS, TokenPPO
from proximo.language.tokenizer import Tokenizer
from proximo.run.checkpoint import Checkpoint, newest
from proximo.run.config import check_storable
from proximo.run.folder import RunFolder


class Result:
    """What a stage has made: a language model, or a reward model, and how it went."""

    def __init__(self, learner: Learner, rows: list[Row], config: StageConfig) -> None:
        self.lm = learner.lm
        """The language model; of `fit_reward`, the trunk of the reward model."""
        self.reward = learner.module if isinstance(learner.module, RewardModel) else None
        """The reward model that `fit_reward` has made."""
        self.rows = rows
        """One row per logged update, as in metrics.jsonl."""
        self.config = config
        self.final = learner.final
        """What was measured at the end: held_out_loss, held_out_accuracy."""

    @property
    def scores(self) -> list[float]:
        """Of `ppo`: the mean score of the completions of each logged update."""
        return [row["score"] for row in self.rows]

    def generate(
        self,
        prompts: Source,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
    ) -> list[str]:
        """One completion for each prompt, text or chat; the same seed gives the same ones."""
        own = self.config.sampling if isinstance(self.config, PPOConfig) else Sampling()
        return complete(self.lm, prompts, sampling or own, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Write the language model as a folder that transformers reads. Raises `UsageError`."""
        if self.reward is not None:
            raise UsageError(
                "a reward model is no language model that transformers reads: give fit_reward a "
                "run_dir, and read it from there by load_reward"
            )
        self.lm.save(Path(folder))


def complete(
    lm: LanguageModel,
    prompts: Source,
    sampling: Sampling,
    *,
    seed: int = 0,
) -> list[str]:
    """One completion for each prompt, as text."""
    examples = Examples.read(prompts, "prompt")
    tokenizer = Tokenizer(lm.tokenizer, sampling.stop, lm.ends)
    ids = examples.prompts(tokenizer)
    examples.check_lengths(sampling.max_tokens, Limit(lm.context), ids)
    generator = torch.Generator().manual_seed(seed)
    drawn = generate(lm, ids, sampling, tokenizer.stops, generator)
    return [tokenizer.text(own) for own in drawn.ids]


Config = TypeVar("Config", FitConfig, PPOConfig)
Model = str | Path | LanguageModel | Result | ModelConfig


def sft(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: Fitting | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Supervised fine-tuning: L = -1/B Σ log π(token | text before it), over the answers' tokens.

    model: "tiny", a folder of transformers, a run, a `LanguageModel`, an earlier `Result`, or a
    `ModelConfig`. data: rows with prompt and completion, or a JSONL file of them. updates, seed and
    lora_rank: shorthands for `TrainingConfig` and `ModelConfig`. run_dir: a new folder to keep the
    run in, or with `resume` the one to go on in. Raises `UsageError` for what does not fit, before
    any weights are loaded.
    """
    config, given = _fit_config("sft", model, data, updates, seed, algorithm, lora_rank, run)
    return run_fit(config, data, model=given, run_dir=run_dir, resume=resume, callbacks=callbacks)


def fit_reward(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: Fitting | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Fit a reward model: L = -1/N Σ log σ(r(chosen) - r(rejected)), Bradley & Terry 1952.

    data: rows with prompt, chosen and rejected. The rest is as for `sft`.
    """
    config, given = _fit_config("reward", model, data, updates, seed, algorithm, lora_rank, run)
    return run_fit(config, data, model=given, run_dir=run_dir, resume=resume, callbacks=callbacks)


def ppo(
    model: Model,
    prompts: Source | None = None,
    reward: Reward | RewardModel | Result | Sequence[Reward | RewardModel | Result] = (),
    *,
    env: Maker | None = None,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: TokenPPO = TOKENS,
    sampling: Sampling | None = None,
    kl: KLConfig | None = None,
    score: ScoreConfig | None = None,
    ptx: PTXConfig | None = None,
    critic: Literal["shared", "separate", "reward"] | None = None,
    lora_rank: int | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """PPO on a language model: L = L^CLIP - c1 L^VF over tokens, r_t = score_T - β KL_t.

    prompts: rows with a prompt and any columns that the reward wants, plain texts, or a JSONL file.
    reward: a function (see `Reward`), a reward model, or several, whose weighted sum counts.
    env: instead, a Gymnasium env of text to talk with (its class, or what makes one), see
    `TextEnvs`; prompts, if any, are then the `options` of its episodes, a row each.
    critic, lora_rank: shorthands for `ModelConfig`. The rest is as for `sft`. The result's `scores`
    hold the mean score of each update.
    """
    chosen, given = _model(model, critic=critic, lora_rank=lora_rank)
    config = PPOConfig(
        lm=Task(stage="ppo", data="" if prompts is None else _file(prompts)),
        model=chosen,
        algorithm=algorithm,
        sampling=sampling or Sampling(),
        kl=kl or KLConfig(),
        score=score or ScoreConfig(),
        ptx=ptx or PTXConfig(),
        run=_training(run, updates, seed),
    )
    several = reward if isinstance(reward, list | tuple) else [reward]
    return run_ppo(
        config,
        prompts,
        rewards=[r.reward if isinstance(r, Result) else r for r in several] or None,  # type: ignore[misc]
        env=env,
        model=given,
        run_dir=run_dir,
        resume=resume,
        callbacks=callbacks,
    )


def run_fit(
    config: FitConfig,
    data: Source,
    *,
    model: LanguageModel | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    display: Display | None = None,
) -> Result:
    """`sft` or `fit_reward`, from a whole configuration."""
    for name in ("critic", "critic_warmup") if not resume else ():
        if (value := getattr(config.model, name)) != getattr(ModelConfig, name):
            raise UsageError(
                f"model.{name} is {value}, but {config.lm.stage} has no critic: leave it out"
            )
    pairs = config.lm.stage == "reward"
    columns = ("chosen", "rejected") if pairs else ("completion",)
    examples = Examples.read(data, "prompt", *columns)
    device = _device(config.run)
    config, folder = _again(config, run_dir, resume=resume)
    plan = _plan(config.model, model, examples.texts(), folder)
    tokenizer = Tokenizer(plan.tokenizer, ends=plan.ends)
    ids = examples.prompts(tokenizer)
    answers = [examples.answers(tokenizer, column) for column in columns]
    examples, parts = examples.check_lengths(0, _limit(plan, config.run), ids, *answers)
    _set_threads(config.run)
    lm = plan.build(config.run.seed, random=folder is not None).set_up(config.model, config.run)
    lm.end_by(tokenizer.ends)
    module = RewardModel(lm) if pairs else lm
    module.to(device)
    learner = Fit(module, lm, Preference() if pairs else Likelihood(), config, parts)
    return _run(learner, config, examples.digest, folder, run_dir, callbacks, display)


def run_ppo(
    config: PPOConfig,
    prompts: Source | None,
    *,
    rewards: Sequence[Reward | RewardModel] | None = None,
    env: Maker | None = None,
    model: LanguageModel | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    display: Display | None = None,
) -> Result:
    """`ppo`, from a whole configuration. rewards, env: None takes those that it names."""
    here = Path.cwd()  # an env or a reward may change the current folder
    if run_dir is not None:
        run_dir = here / run_dir
    if env and config.score.env:
        raise UsageError(
            f"there are two envs, the one given and score.env {config.score.env}: leave one out"
        )
    with_env = bool(env or config.score.env)
    if with_env:
        _check_env(config, rewards)
    elif prompts is None:
        raise UsageError("there are no prompts: only an env does without")
    elif config.sampling.max_turns != Sampling.max_turns:
        raise UsageError(
            f"sampling.max_turns is {config.sampling.max_turns}, but without an env every prompt "
            "is completed once: leave it out"
        )
    if not resume:
        config.check_lone(with_env=with_env)
    columns = () if with_env else ("prompt",)
    examples = Examples.read([{}] if prompts is None else prompts, *columns)
    ptx = Examples.read(config.ptx.data, "prompt", "completion") if config.ptx.coef else None
    config, folder = _again(config, run_dir, resume=resume)
    count = config.run.sequences if with_env else 0
    with text_envs(config.score.env, env, count) as envs:
        found = _within(here, config)
        learner, digest = _policy_fit(found, examples, ptx, rewards, envs, model, folder)
        return _run(learner, config, digest, folder, run_dir, callbacks, display)


def _within(here: Path, config: PPOConfig) -> PPOConfig:
    """With the whole path of each folder that it names from `here`."""

    def whole(name: str) -> str:
        return str(here / name) if name != "tiny" and (here / name).is_dir() else name

    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=whole(config.model.path)),
        score=dataclasses.replace(config.score, reward=tuple(map(whole, config.score.reward))),
    )


def _check_env(config: PPOConfig, rewards: Sequence[Reward | RewardModel] | None) -> None:
    """Refuse what has no meaning in an env. Raises `UsageError`."""
    if rewards or config.score.reward:
        raise UsageError("there are an env and a reward: an env gives its own, so leave one out")
    if config.run.overlong != TrainingConfig.overlong and not config.ptx.coef:
        raise UsageError(
            f"run.overlong is {config.run.overlong}, but with an env there are no rows that could "
            "be too long: an episode ends where the next reply would be; leave it out"
        )
    if config.score.weights:
        raise UsageError("score.weights is set, but an env gives its own reward: leave it out")
    if config.score.normalize:
        raise UsageError(
            "score.normalize is set, but shifting the rewards of an env would pay for long or for "
            "short episodes: scale them in the env"
        )
    if config.model.path == "tiny" and config.model.symbols == "words":
        raise UsageError(
            "model.symbols is words, but of an env only the characters are known: use characters, "
            "or begin with a model that was fine-tuned on its texts"
        )


def _policy_fit(
    config: PPOConfig,
    examples: Examples,
    ptx: Examples | None,
    rewards: Sequence[Reward | RewardModel] | None,
    envs: Sequence[TextEnv],
    model: LanguageModel | None,
    folder: RunFolder | None,
) -> tuple[PolicyFit, str]:
    """Everything checked, then the model loaded. With the digest of the data."""
    device = _device(config.run)
    said = characters(envs[0]) if envs else examples.texts()
    said += ptx.texts() if ptx else []
    plan = _plan(config.model, model, said, folder)
    tokenizer = Tokenizer(plan.tokenizer, config.sampling.stop, plan.ends)
    if config.score.missing_eos_penalty and not tokenizer.stops:
        raise UsageError(
            "score.missing_eos_penalty is set, but the tokenizer has no end of sequence: name a "
            "token by sampling.stop"
        )
    limit = _limit(plan, config.run)
    ids: list[list[int]] = []
    if not envs:
        examples, (ids,) = examples.check_lengths(
            config.sampling.max_tokens, limit, examples.prompts(tokenizer)
        )
    parts = split(len(examples), config.run.held_out, config.run.seed, "run.held_out")
    texts = None
    if ptx:
        asked, answers = ptx.prompts(tokenizer), ptx.answers(tokenizer, "completion")
        ptx, (asked, answers) = ptx.check_lengths(0, limit, asked, answers)
        texts = (asked, answers)
    if rewards is None:
        rewards = [find_reward(name) for name in config.score.reward]
    judges: RewardSum | TextEnvs
    if envs:
        judges = TextEnvs(
            envs, tokenizer, config.sampling, limit.tokens, config.run.seed, examples.rows
        )
    else:
        judges = RewardSum(rewards, config.score.weights, examples)
        judges.check(tokenizer)
    critic_from = next((r for r in rewards if isinstance(r, RewardModel)), None)
    if config.model.critic == "reward" and critic_from is None:
        raise UsageError("model.critic is reward, but no reward is a reward model")
    _set_threads(config.run)
    lm = plan.build(config.run.seed, random=folder is not None).set_up(config.model, config.run)
    lm.end_by(tokenizer.ends)
    policy = _with_critic(lm, tokenizer.stops, config, critic_from)
    if folder and config.kl.reference in ("copy", "ema"):
        # The model that the run began as is in its first checkpoint.
        Checkpoint(folder.checkpoint(0)).load_policy(policy)
    policy.to(device)
    reference = make_reference(policy.lm, config.kl)
    if isinstance(judges, RewardSum):
        for reward_model in judges.models:
            reward_model.to(device)
    learner = PolicyFit(policy, reference, config, tokenizer, examples, ids, parts, judges, texts)
    return learner, examples.digest + (ptx.digest if ptx else "")


def _limit(plan: Blueprint, run: TrainingConfig) -> Limit:
    remedy = ", or leave such rows out by run.overlong drop"
    return Limit(plan.context, run.max_length, run.overlong == "drop", remedy)


def _with_critic(
    lm: LanguageModel, stops: Sequence[int], config: PPOConfig, judge: RewardModel | None
) -> LanguagePolicy:
    if config.model.critic == "separate":
        return LanguagePolicy(lm, stops, copy_trainable(lm))
    if config.model.critic == "shared":
        return LanguagePolicy(lm, stops)
    assert judge is not None
    trunk = judge.lm.merged().set_up(config.model, config.run)
    policy = LanguagePolicy(lm, stops, trunk)
    with torch.no_grad():  # what it gives as a score is the first value
        policy.value_head.weight.copy_(judge.head.weight / judge.std)
        policy.value_head.bias.copy_((judge.head.bias - judge.mean) / judge.std)
    return policy


def _run(
    learner: Learner,
    config: StageConfig,
    digest: str,
    folder: RunFolder | None,
    run_dir: str | Path | None,
    callbacks: Sequence[Callback],
    display: Display | None,
) -> Result:
    start = None
    try:
        if folder:
            folder.claim()
            start = newest(folder, read=partial(read_checkpoint, folder))
            learner.load(start, digest)
            with writable(folder.path):
                folder.write_config(config)
        elif run_dir is not None:
            folder = RunFolder.create(run_dir, config, "proximo lm resume")
            learner.lm.save(folder.path / "model", weights=False, within=folder.path)
        rows = train(learner, config.run, folder, digest, callbacks, display, start=start)
    finally:
        if folder:
            folder.release()
    return Result(learner, rows, config)


def _again(
    config: Config, run_dir: str | Path | None, *, resume: bool
) -> tuple[Config, RunFolder | None]:
    """The folder of a run to go on with, and the settings with the model that the run has."""
    if run_dir is None:
        return config, None
    if not resume:
        check_storable(config)
        return config, None
    folder = RunFolder.open(run_dir)
    before = read_stage(folder.config_file)
    if before.lm.stage != config.lm.stage:
        raise UsageError(f"{run_dir} is a run of {before.lm.stage}, not of {config.lm.stage}")
    for name in ("seed", "sequences", "completions_per_prompt", "held_out"):  # what is drawn
        then, now = getattr(before.run, name), getattr(config.run, name)
        if then != now:
            raise UsageError(
                f"run.{name} is {now}, but {run_dir} began with {then}: give that, or begin anew"
            )
    return dataclasses.replace(config, model=before.model), folder


def _plan(
    config: ModelConfig, model: LanguageModel | None, texts: Iterable[str], folder: RunFolder | None
) -> Blueprint:
    if folder:
        plan = read_blueprint(folder.path / "model")
        plan.check_size(folder.checkpoint_bytes())
        return plan
    if model is not None:
        return Blueprint(model.tokenizer, model.net.config, model, generation=model.generation)
    return blueprint(config, texts)


def _model(model: Model, **shorthands: Any) -> tuple[ModelConfig, LanguageModel | None]:
    """What config.toml says of it, and the model itself where there is one already."""
    lm = model.lm if isinstance(model, Result) else model
    chosen = {name: value for name, value in shorthands.items() if value is not None}
    if isinstance(lm, LanguageModel):
        return ModelConfig(path="", **chosen), lm
    config = lm if isinstance(lm, ModelConfig) else ModelConfig(path=str(lm))
    return dataclasses.replace(config, **chosen), None


def _file(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else ""


def _training(run: TrainingConfig | None, updates: int | None, seed: int | None) -> TrainingConfig:
    given = {"updates": updates, "seed": seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(run or TrainingConfig(), **chosen)  # type: ignore[arg-type]


def _fit_config(
    stage: Any,
    model: Model,
    data: Source,
    updates: int | None,
    seed: int | None,
    algorithm: Fitting | None,
    lora_rank: int | None,
    run: TrainingConfig | None,
) -> tuple[FitConfig, LanguageModel | None]:
    chosen, given = _model(model, lora_rank=lora_rank)
    config = FitConfig(
        lm=Task(stage=stage, data=_file(data)),
        model=chosen,
        algorithm=algorithm or Fitting(),
        run=_training(run, updates, seed),
    )
    return config, given


def _device(run: TrainingConfig) -> torch.device:
    """Where the model lives. Raises `UsageError` for what is not there, and for its numbers."""
    if run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")  # every one computes in bfloat16, though not each one quickly
    if not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but PyTorch finds none here: use cpu or auto")
    if run.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UsageError(f"run.dtype is bfloat16, which the {name} has not: use float32")
    return torch.device("cuda")


def _set_threads(run: TrainingConfig) -> None:
    if run.threads:
        torch.set_num_threads(run.threads)
