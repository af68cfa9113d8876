"""From the settings of a stage to a session that stands ready to train."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from proximo.envs.base import Maker
from proximo.envs.layers import close_all
from proximo.errors import UsageError, refuse_unused
from proximo.language.adapters import copy_trainable
from proximo.language.blueprint import Blueprint, blueprint, read_blueprint
from proximo.language.config import (
    PPOConfig,
    StageConfig,
    SupervisedRunConfig,
    TrainingConfig,
    read_stage,
)
from proximo.language.envs import TextEnvs, characters, make_text_envs
from proximo.language.examples import Examples, Source
from proximo.language.model import Decoding, LanguageModel, LanguagePolicy
from proximo.language.objectives import Likelihood, Objective, Preference
from proximo.language.reference import make_reference
from proximo.language.reward import Reward, RewardModel, RewardSum, find_reward
from proximo.language.state import read_checkpoint
from proximo.language.task import PromptData, StageTask, SupervisedTask, TokenPPOTask
from proximo.language.tokenizer import Tokenizer
from proximo.run.callbacks import Callback, Display, as_callback
from proximo.run.checkpoint import Checkpoint
from proximo.run.folder import RunFolder
from proximo.run.keeping import newest
from proximo.run.session import RunLog, Session

AnyReward = Reward | RewardModel


@dataclass(frozen=True, kw_only=True)
class Given:
    """Objects of a program, in place of those that the configuration names."""

    data: Source | None = None  # examples or prompts
    model: LanguageModel | None = None
    rewards: Sequence[AnyReward | str] | None = None
    env: Maker | None = None
    resumed: RunFolder | None = None  # the run to continue, with its model


def make_session(
    config: StageConfig,
    given: Given,
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    strict: bool = False,
    callbacks: Sequence[Callback | Callable[..., Any]] = (),
    display: Display | None = None,
) -> Session:
    """A stage that stands ready to train. Raises `UsageError`.

    run_dir: a new folder, or with `resume` that of the run to continue. strict: refuse a damaged
    last checkpoint instead of using an older one.
    """
    own = [as_callback(callback) for callback in callbacks]
    if not resume and isinstance(config, PPOConfig):
        config.check_lone(with_env=bool(given.env or config.score.env))
    elif not resume:
        why = f"{config.lm.stage} has no critic"
        refuse_unused("model", config.model, ("critic", "critic_warmup"), why)
    folder, start = None, None
    if run_dir is not None and resume:
        folder = RunFolder.open(run_dir)
        config = _resumed(config, folder)
        start = newest(folder, strict=strict, read=partial(read_checkpoint, folder))
    elif run_dir is not None:
        folder = RunFolder.create(run_dir, config, "proximo lm resume")

    def build(log: RunLog) -> StageTask:
        parts = dataclasses.replace(given, resumed=folder if start else None)
        task = _ppo(config, parts) if isinstance(config, PPOConfig) else _supervised(config, parts)
        try:
            task.config = config  # the stored names, where `_ppo` has made them absolute
            task.enter_run(log, own)
            if start:
                task.state.restore(start)
        except BaseException:
            task.close()
            raise
        return task

    return Session(build, folder=folder, callbacks=own, display=display, resume=start)


def _resumed(config: StageConfig, folder: RunFolder) -> StageConfig:
    """The settings with the model of the run to continue. Raises `UsageError` for another run."""
    before = read_stage(folder.config_file)
    if before.lm.stage != config.lm.stage:
        raise UsageError(f"{folder.name} is a run of {before.lm.stage}, not of {config.lm.stage}")
    for name in ("seed", "sequences", "completions_per_prompt", "held_out"):  # what is sampled
        then, now = getattr(before.run, name), getattr(config.run, name)
        if then != now:
            raise UsageError(
                f"run.{name} is {now}, but {folder.name} began with {then}: give that, or begin "
                "anew"
            )
    return dataclasses.replace(config, model=before.model)


def _supervised(config: SupervisedRunConfig, given: Given) -> StageTask:
    """The task of sft or of a reward model. Raises `UsageError`."""
    pairs = config.lm.stage == "reward"
    columns = ("chosen", "rejected") if pairs else ("completion",)
    examples = Examples.read(_data(config, given), "prompt", *columns)
    device = _device(config.run)
    plan = _plan(config, given, examples.texts())
    tokenizer = Tokenizer(plan.tokenizer, ends=plan.ends)
    ids = examples.prompts(tokenizer)
    answers = [examples.answers(tokenizer, column) for column in columns]
    examples, parts = examples.check_lengths(0, plan.limit(config.run), ids, *answers)
    lm = _build(plan, config, given, tokenizer).to(device)
    objective: Objective = Preference(RewardModel(lm).to(device)) if pairs else Likelihood(lm)
    return SupervisedTask(objective, lm, config, parts, examples.digest)


def _ppo(config: PPOConfig, given: Given) -> StageTask:
    """The task of PPO: everything is checked before a model is loaded. Raises `UsageError`."""
    with_env = _check_source(config, given)
    without_data = given.data is None and not config.lm.data
    prompts = [{}] if without_data else _data(config, given)
    examples = Examples.read(prompts, *(() if with_env else ("prompt",)))
    ptx = Examples.read(config.ptx.data, "prompt", "completion") if config.ptx.coef else None
    config = _absolute(config)  # an env or a reward may change the current folder
    count = config.run.sequences if with_env else 0
    envs = make_text_envs(config.score.env, given.env, count)
    with contextlib.ExitStack() as stack:
        stack.callback(close_all, envs)
        device = _device(config.run)
        texts = characters(envs[0]) if envs else examples.texts()
        plan = _plan(config, given, [*texts, *(ptx.texts() if ptx else [])])
        limit = plan.limit(config.run)
        tokenizer = Tokenizer(plan.tokenizer, config.sampling.stop, plan.ends)
        if config.score.missing_eos_penalty and not tokenizer.stops:
            raise UsageError(
                "score.missing_eos_penalty is set, but the tokenizer has no end of sequence: name "
                "a token by sampling.stop"
            )
        data = PromptData.read(config, examples, ptx, tokenizer, limit, with_env=bool(envs))
        rewards: Sequence[AnyReward] = ()
        source: RewardSum | TextEnvs
        if envs:
            rows = data.examples.rows
            source = TextEnvs(envs, tokenizer, config.sampling, limit.tokens, config.run.seed, rows)
        else:
            chosen = given.rewards or config.score.reward
            rewards = [find_reward(r) if isinstance(r, str) else r for r in chosen]
            source = RewardSum(rewards, config.score.weights, data.examples)
            source.check(tokenizer)
        scorers = [reward for reward in rewards if isinstance(reward, RewardModel)]
        if config.model.critic == "reward" and not scorers:
            raise UsageError("model.critic is reward, but no reward is a reward model")
        lm = _build(plan, config, given, tokenizer)
        policy = _with_critic(lm, tokenizer.stops, config, scorers)
        if given.resumed and config.kl.reference in ("copy", "ema"):
            # The first checkpoint holds the initial model.
            Checkpoint(given.resumed.checkpoint(0)).load_policy(policy)
        policy.to(device)
        for scorer in scorers:
            scorer.to(device)
        reference = make_reference(policy.lm, config.kl)
        task = TokenPPOTask(policy, reference, config, tokenizer, data, source)
        stack.pop_all()
        return task


def _check_source(config: PPOConfig, given: Given) -> bool:
    """The run has an env. Raises `UsageError` for settings without a meaning with or without it."""
    score = config.score
    if given.env and score.env:
        raise UsageError(
            f"there are two envs, the one given and score.env {score.env}: leave one out"
        )
    if not (given.env or score.env):
        if given.data is None and not config.lm.data:
            raise UsageError("there are no prompts: only an env does without")
        refuse_unused("sampling", config.sampling, ("max_turns",), "there is no env")
        return False
    if given.rewards or score.reward:
        raise UsageError("there are an env and a reward: an env gives its own, so leave one out")
    if not config.ptx.coef:
        why = "an env ends its episodes before they are too long"
        refuse_unused("run", config.run, ("overlong",), why)
    refuse_unused("score", score, ("weights",), "an env gives its own reward")
    if score.normalize:
        raise UsageError(
            "score.normalize is set, but shifting the rewards of an env would pay for long or for "
            "short episodes: scale them in the env"
        )
    if config.model.path == "tiny" and config.model.symbols == "words":
        raise UsageError(
            "model.symbols is words, but of an env only the characters are known: use characters, "
            "or begin with a model that was fine-tuned on its texts"
        )
    return True


def _absolute(config: PPOConfig) -> PPOConfig:
    """The settings with the absolute paths of the folders that they name."""
    here = Path.cwd()

    def absolute(name: str) -> str:
        return str(here / name) if name != "tiny" and (here / name).is_dir() else name

    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=absolute(config.model.path)),
        score=dataclasses.replace(config.score, reward=tuple(map(absolute, config.score.reward))),
    )


def _with_critic(
    lm: LanguageModel, stops: tuple[int, ...], config: PPOConfig, scorers: list[RewardModel]
) -> LanguagePolicy:
    decoding = Decoding(config.sampling, stops)
    if config.model.critic != "reward":
        separate = config.model.critic == "separate"
        return LanguagePolicy(lm, decoding, copy_trainable(lm) if separate else None)
    scorer = scorers[0]
    trunk = scorer.lm.merged().set_up(config.model, config.run)
    policy = LanguagePolicy(lm, decoding, trunk)
    with torch.no_grad():  # its score is the first value
        policy.value_head.weight.copy_(scorer.head.weight / scorer.std)
        policy.value_head.bias.copy_((scorer.head.bias - scorer.mean) / scorer.std)
    return policy


def _data(config: StageConfig, given: Given) -> Source:
    return config.lm.data if given.data is None else given.data


def _plan(config: StageConfig, given: Given, texts: Iterable[str]) -> Blueprint:
    if given.resumed:
        plan = read_blueprint(given.resumed.path / "model")
        plan.check_size(given.resumed.checkpoint_bytes())
        return plan
    if (model := given.model) is not None:
        return Blueprint(model.tokenizer, model.net.config, model, model.generation)
    return blueprint(config.model, texts)


def _build(
    plan: Blueprint, config: StageConfig, given: Given, tokenizer: Tokenizer
) -> LanguageModel:
    """The language model with its adapters, on the CPU; its weights may come from a checkpoint."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    lm = plan.build(config.run.seed, random=given.resumed is not None)
    return lm.set_up(config.model, config.run).end_by(tokenizer.ends)


def _device(run: TrainingConfig) -> torch.device:
    """Device of the model. Raises `UsageError` if it is missing, or lacks `run.dtype`."""
    if run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")  # all of them compute in bfloat16, though some slowly
    if not torch.cuda.is_available():
        raise UsageError("run.device is cuda, but PyTorch finds none here: use cpu or auto")
    if run.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UsageError(f"run.dtype is bfloat16, which the {name} has not: use float32")
    return torch.device("cuda")
