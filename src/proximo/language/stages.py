"""The three stages, as public functions: `sft`, `fit_reward`, `ppo`."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from proximo.algorithms.engines import clip_gradient
from proximo.algorithms.ppo import PPO
from proximo.functional.kl import controlled_beta
from proximo.functional.losses import preference_error
from proximo.functional.moments import batch_moments, merge
from proximo.functional.schedules import as_schedule
from proximo.language.config import (
    TOKENS,
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
from proximo.language.data import Examples, Order, Sequences, Source
from proximo.language.experience import check_drawn, judge, prepare, shaped
from proximo.language.generate import Completions, generate
from proximo.language.model import (
    Blueprint,
    LanguageModel,
    LanguagePolicy,
    Tokenizer,
    blueprint,
    read_blueprint,
)
from proximo.language.reward import Judge, Reward, RewardModel, find_reward, scores_of
from proximo.language.session import Callback, Display, Learner, Row, mean_of, train
from proximo.language.update import after, descend, readings
from proximo.nets.optimizer import FlatOptimizer
from proximo.run.checkpoint import Checkpoint
from proximo.run.folder import RunFolder
from proximo.types import Metrics, TrainingError, UsageError

SHOWN = 4
"""Completions of each update that are kept to be read."""
WITHOUT = Sampling()
"""Probabilities as the model gives them: temperature 1."""


def add_text_gradient(
    lm: LanguageModel, texts: Sequences, weight: float, micro_batch: int
) -> Tensor:
    """Add the gradient of L = -1/B Σ log π over the B tokens of the answers; returns L."""
    count, total = int(texts.response.sum()), torch.zeros((), device=lm.device)
    for part in torch.split(torch.arange(len(texts.tokens)), micro_batch):
        loss = -lm.log_prob(texts.select(part), WITHOUT, ()).sum() / count
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return total


class Objective(ABC):
    """What sft and reward differ in: which answers they read, and what is made of them."""

    answers: tuple[int, ...]
    """Which parts of the data; their sequences stand one kind after the other."""

    @abstractmethod
    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        """Add the gradient of the mean error of these sequences; returns what to report."""

    @abstractmethod
    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        """How well it does on what was held out."""

    def settle(self, module: nn.Module, texts: Sequences, micro_batch: int) -> None:  # noqa: B027 mostly nothing
        """What is done once, at the end, with all that was trained on."""


class Likelihood(Objective):
    """Supervised fine-tuning: maximum likelihood of the answers, given their prompts."""

    answers = (1,)

    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        lm: LanguageModel = module  # type: ignore[assignment]
        return {"loss": float(add_text_gradient(lm, texts, 1.0, micro_batch))}

    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        lm: LanguageModel = module  # type: ignore[assignment]
        parts = torch.split(torch.arange(len(texts.tokens)), micro_batch)
        found = torch.cat([lm.log_prob(texts.select(part), WITHOUT, ()) for part in parts])
        return {"held_out_loss": -mean_of(found)}


class Preference(Objective):
    """A reward model from pairs of which one was preferred: first all these, then the others."""

    answers = (1, 2)

    def add_gradient(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        model: RewardModel = module  # type: ignore[assignment]
        count = len(texts.tokens) // 2
        total = right = torch.zeros((), device=texts.tokens.device)
        for part in torch.split(torch.arange(count), max(1, micro_batch // 2)):
            both = texts.select(torch.cat([part, part + count]))
            chosen, rejected = model.raw(both).chunk(2)
            loss = preference_error(chosen, rejected).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total, right = total + loss.detach(), right + (chosen > rejected).sum()
        return {"loss": float(total), "accuracy": float(right) / count}

    def measure(self, module: nn.Module, texts: Sequences, micro_batch: int) -> Metrics:
        chosen, rejected = scores_of(module, texts, micro_batch).chunk(2)  # type: ignore[arg-type]
        return {"held_out_accuracy": mean_of(chosen > rejected)}

    def settle(self, module: nn.Module, texts: Sequences, micro_batch: int) -> None:
        """Bring the scores to mean 0 and deviation 1."""
        model: RewardModel = module  # type: ignore[assignment]
        model.mean.zero_()
        model.std.fill_(1.0)
        scores = scores_of(model, texts, micro_batch)
        model.mean.copy_(scores.mean())
        model.std.copy_(scores.std(correction=0).clamp(min=1e-8))


class Fit(Learner):
    """sft and reward: examples in a new order each epoch, a step of Adam for each minibatch."""

    def __init__(
        self,
        module: nn.Module,
        lm: LanguageModel,
        objective: Objective,
        config: FitConfig,
        parts: Sequence[list[list[int]]],
    ) -> None:
        """module: what is trained, lm or a reward model on it; parts: prompts, then answers."""
        algorithm = config.algorithm
        group = [p for p in module.parameters() if p.requires_grad]
        optimizer = FlatOptimizer([group], "adam", 1e-8, algorithm.adam_betas)
        super().__init__(module, optimizer, config.run)
        self.stage = config.lm.stage
        self.algorithm, self._objective = algorithm, objective
        self._lm, self._parts = lm, parts
        count = len(parts[0])
        kept = int(count * algorithm.held_out)
        if algorithm.held_out and not kept:
            raise UsageError(
                f"algorithm.held_out is {algorithm.held_out} of {count} examples, which is none"
            )
        mixed = Order(count, config.run.seed, 0).draw(0, count)
        self._trained, self._held_out = mixed[: count - kept], mixed[count - kept :]
        self._order = Order(count - kept, config.run.seed, 1)

    @property
    def lm(self) -> LanguageModel:
        return self._lm

    def update(self) -> Metrics:
        size = self.algorithm.batch_size
        drawn = self._order.draw(self.updates * size, size)
        flat = self.optimizer.flats[0]
        flat.grad.zero_()  # type: ignore[union-attr]
        texts = self._texts([self._trained[i] for i in drawn])
        terms = self._objective.add_gradient(self.module, texts, self.run.micro_batch)
        rate = as_schedule(self.algorithm.learning_rate)(self.progress)
        self.optimizer.rates = [rate]
        norm = float(clip_gradient([flat], self.algorithm.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient became {norm} in update {self.updates + 1}: a smaller learning "
                "rate is the usual remedy"
            )
        self.optimizer.step()
        self.counters["tokens"] += int(texts.response.sum())
        epoch = (self.updates + 1) * size / len(self._trained)
        return {**terms, "grad_norm": norm, "learning_rate": rate, "epoch": epoch}

    @torch.no_grad()
    def finish(self) -> None:
        micro_batch = self.run.micro_batch
        self._objective.settle(self.module, self._texts(self._trained), micro_batch)
        if self._held_out:
            texts = self._texts(self._held_out)
            self.final = self._objective.measure(self.module, texts, micro_batch)

    def _texts(self, examples: Sequence[int]) -> Sequences:
        which = self._objective.answers
        prompts = [self._parts[0][i] for _ in which for i in examples]
        answers = [self._parts[part][i] for part in which for i in examples]
        return Sequences.join(prompts, answers, self._lm.device)


class PolicyFit(Learner):
    """PPO on completions: draw, score, take off the KL, estimate advantages, K epochs of steps."""

    stage = "ppo"

    def __init__(
        self,
        policy: LanguagePolicy,
        reference: LanguageModel | None,
        config: PPOConfig,
        tokenizer: Tokenizer,
        examples: Examples,
        prompts: list[list[int]],
        judges: Judge,
        ptx: tuple[list[list[int]], list[list[int]]] | None,
    ) -> None:
        optimizer = config.algorithm.make_optimizer(policy)  # type: ignore[arg-type]
        super().__init__(policy, optimizer, config.run)
        self.policy, self.reference, self.config = policy, reference, config
        self._tokenizer, self._examples, self._prompts = tokenizer, examples, prompts
        self._judges, self._ptx = judges, ptx
        seed = config.run.seed
        # Streams apart, so that longer completions do not change the order of minibatches.
        self.generators = {
            "sampling": torch.Generator().manual_seed(2 * seed),
            "shuffling": torch.Generator().manual_seed(2 * seed + 1),
        }
        self._order = Order(len(prompts), seed, 0)
        self._ptx_order = Order(len(ptx[0]), seed, 2) if ptx else None
        self.counters |= {"beta": config.kl.coef, "episodes": 0, "ptx": 0}

    @property
    def lm(self) -> LanguageModel:
        return self.policy.lm

    def update(self) -> Metrics:
        config, run, policy = self.config, self.run, self.policy
        algorithm, beta = config.algorithm, self.counters["beta"]
        chosen = self._order.draw(self.updates * run.sequences, run.sequences)
        prompts = [self._prompts[i] for i in chosen]
        drawn = generate(
            policy.lm,
            prompts,
            config.sampling,
            policy.stops,
            self.generators["sampling"],
            run.micro_batch,
        )
        sequences = drawn.sequences
        fault = TrainingError if self.updates else UsageError
        worth = self._judges(
            [self._examples.rows[i] for i in chosen],
            prompts,
            drawn,
            self._tokenizer,
            run.micro_batch,
            fault,
        )
        old = judge(
            policy,
            self.reference,
            sequences,
            config.sampling,
            run.micro_batch,
            critic=algorithm.critic,
        )
        gap = check_drawn(drawn.log_prob, old)
        reward, kl = self._shape(*worth, old.log_ratio, drawn)
        batch = prepare(algorithm, sequences, old, reward.to(policy.lm.device))

        coefficients = algorithm.coefficients(self.progress)
        rates = algorithm.rates(self.progress, 1.0)
        names = ("learning_rate", "critic_learning_rate")[: len(self.optimizer.flats)]
        self.optimizer.rates = [rates[name] for name in names]
        metrics = descend(
            algorithm,
            policy,
            self.optimizer,
            sequences,
            batch,
            self.generators["shuffling"],
            sampling=config.sampling,
            coefficients=coefficients,
            micro_batch=run.micro_batch,
            reference=old.reference,
            kl=config.kl,
            beta=beta,
            also=self._add_ptx,
            policy_moves=self.updates >= config.model.critic_warmup,
        )
        if not all(torch.isfinite(flat).all() for flat in self.optimizer.flats):
            raise fault(
                f"weights became infinite in update {self.updates + 1}: a smaller learning rate is "
                "the usual remedy"
            )
        now = after(policy, sequences, config.sampling, run.micro_batch)
        if config.kl.target is not None:
            self.counters["beta"] = controlled_beta(
                beta, mean_of(kl), config.kl.target, len(kl), config.kl.horizon
            )
        self.counters["tokens"] += len(batch)
        self.counters["episodes"] += len(kl)
        score = worth[0] + worth[1].sum(-1)
        return {
            "episodes": self.counters["episodes"],
            "score": mean_of(score),
            "score_std": float(score.std(correction=0)),
            **({} if self.reference is None else {"kl": mean_of(kl), "beta": beta}),
            "reward": mean_of(reward.sum(-1)),
            "length": mean_of(sequences.lengths),
            "stopped": mean_of(drawn.stopped),
            "repeated": self._show(chosen, drawn, score, kl),
            "entropy": -mean_of(drawn.log_prob),
            **readings(algorithm, policy, batch, now, coefficients),
            **metrics,
            **rates,
            **coefficients,
            "sampling_gap": gap,
        }

    def _shape(
        self, score: Tensor, dense: Tensor, log_ratio: Tensor, drawn: Completions
    ) -> tuple[Tensor, Tensor]:
        """The reward of each token [N, R], and the KL of each completion [N]; on the CPU."""
        response = drawn.sequences.response.cpu()
        ratio = torch.zeros_like(dense).masked_scatter(response, log_ratio.double().cpu())
        beta = self.counters["beta"] if self.config.kl.where == "reward" else 0.0
        worth = self._worth(score, drawn.stopped.cpu())
        return shaped(worth, dense, ratio, beta, response), ratio.sum(-1)

    def _show(self, chosen: list[int], drawn: Completions, score: Tensor, kl: Tensor) -> float:
        """Keep a few completions to be read; returns the share that is like another one's."""
        texts = [self._tokenizer.text(ids) for ids in drawn.ids()]
        found = zip(chosen, texts, score.tolist(), kl.tolist(), strict=True)
        self.samples = [
            {"prompt": self._examples.rows[i]["prompt"], "completion": text, "score": s, "kl": d}
            for i, text, s, d in list(found)[:SHOWN]
        ]
        return 1 - len(set(zip(chosen, texts, strict=True))) / len(texts)

    def _worth(self, score: Tensor, stopped: Tensor) -> Tensor:
        """The score as PPO sees it: normalised, cut off, less the penalty for not stopping. [N]."""
        settings = self.config.score
        if settings.normalize:
            self.moments = merge(self.moments, batch_moments(score))
            score = (score - self.moments.mean) * torch.rsqrt(self.moments.var + 1e-8)
        if settings.clip is not None:
            score = score.clamp(-settings.clip, settings.clip)
        return score - settings.missing_eos_penalty * (~stopped).double()

    def _add_ptx(self) -> Tensor | None:
        """The gradient of the model's own loss on texts, beside a minibatch's."""
        if self._ptx is None or self._ptx_order is None:
            return None
        size = min(self.config.algorithm.minibatch_size, self.run.sequences)
        which = self._ptx_order.draw(self.counters["ptx"], size)
        self.counters["ptx"] += size
        prompts, answers = ([part[i] for i in which] for part in self._ptx)
        texts = Sequences.join(prompts, answers, self.lm.device)
        return add_text_gradient(self.lm, texts, self.config.ptx.coef, self.run.micro_batch)


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
        prompts: Sequence[str | list[dict[str, str]]],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
    ) -> list[str]:
        """One completion for each prompt; the same seed gives the same ones."""
        own = self.config.sampling if isinstance(self.config, PPOConfig) else Sampling()
        return complete(self.lm, prompts, sampling or own, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Write the language model as a folder that transformers reads."""
        self.lm.save(Path(folder))


def complete(
    lm: LanguageModel,
    prompts: Sequence[str | list[dict[str, str]]],
    sampling: Sampling,
    *,
    seed: int = 0,
) -> list[str]:
    """One completion for each prompt, as text."""
    examples = Examples.read([{"prompt": prompt} for prompt in prompts], "prompt")
    tokenizer = Tokenizer(lm.tokenizer, sampling.stop)
    ids = examples.prompts(tokenizer)
    examples.check_lengths(sampling.max_tokens, lm.context, ids)
    generator = torch.Generator().manual_seed(seed)
    drawn = generate(lm, ids, sampling, tokenizer.stops, generator)
    return [tokenizer.text(own) for own in drawn.ids()]


Config = TypeVar("Config", FitConfig, PPOConfig)
Model = str | Path | LanguageModel | Result | ModelConfig


def sft(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: Fitting | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Supervised fine-tuning: L = -1/B Σ log π(token | text before it), over the answers' tokens.

    model: "tiny", a folder of transformers, a run, a `LanguageModel`, an earlier `Result`, or a
    `ModelConfig`. data: rows with prompt and completion, or a JSONL file of them. updates, seed:
    shorthands for `TrainingConfig`. run_dir: a new folder to keep the run in, or with `resume` the
    one to go on in. Raises `UsageError` for what does not fit, before any weights are loaded.
    """
    config, given = _fit_config("sft", model, data, updates, seed, algorithm, run)
    return run_fit(config, data, model=given, run_dir=run_dir, resume=resume, callbacks=callbacks)


def fit_reward(
    model: Model,
    data: Source,
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: Fitting | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Fit a reward model: L = -1/N Σ log σ(r(chosen) - r(rejected)), Bradley & Terry 1952.

    data: rows with prompt, chosen and rejected. The rest is as for `sft`.
    """
    config, given = _fit_config("reward", model, data, updates, seed, algorithm, run)
    return run_fit(config, data, model=given, run_dir=run_dir, resume=resume, callbacks=callbacks)


def ppo(
    model: Model,
    prompts: Source,
    reward: Reward | RewardModel | Result | Sequence[Reward | RewardModel | Result],
    *,
    updates: int | None = None,
    seed: int | None = None,
    algorithm: PPO = TOKENS,
    sampling: Sampling | None = None,
    kl: KLConfig | None = None,
    score: ScoreConfig | None = None,
    ptx: PTXConfig | None = None,
    critic: Literal["shared", "separate", "reward"] | None = None,
    run: TrainingConfig | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """PPO on a language model: L = L^CLIP - c1 L^VF over tokens, r_t = score_T - β KL_t.

    prompts: rows with a prompt and any columns that the reward wants, plain texts, or a JSONL file.
    reward: a function (see `Reward`), a reward model, or several, whose weighted sum counts.
    critic: shorthand for `ModelConfig.critic`. The rest is as for `sft`. The result's `scores` hold
    the mean score of each update.
    """
    chosen, given = _model(model)
    if critic is not None:
        chosen = dataclasses.replace(chosen, critic=critic)
    config = PPOConfig(
        lm=Task(stage="ppo", data=_file(prompts)),
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
        rewards=[r.reward if isinstance(r, Result) else r for r in several],  # type: ignore[misc]
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
    pairs = config.lm.stage == "reward"
    columns = ("chosen", "rejected") if pairs else ("completion",)
    examples = Examples.read(data, "prompt", *columns)
    config, folder = _again(config, run_dir if resume else None)
    plan = _plan(config.model, model, examples, folder)
    tokenizer = Tokenizer(plan.tokenizer)
    parts = [examples.prompts(tokenizer)]
    for column in columns:
        parts.append(examples.answers(tokenizer, column))
        examples.check_lengths(0, plan.context, parts[0], parts[-1])
    _set_threads(config.run)
    lm = plan.build(config.run.seed, random=folder is not None)
    module = RewardModel(lm) if pairs else lm
    module.to(_device(config.run))
    learner = Fit(module, lm, Preference() if pairs else Likelihood(), config, parts)
    return _run(learner, config, examples, folder, run_dir, callbacks, display)


def run_ppo(
    config: PPOConfig,
    prompts: Source,
    *,
    rewards: Sequence[Reward | RewardModel] | None = None,
    model: LanguageModel | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    display: Display | None = None,
) -> Result:
    """`ppo`, from a whole configuration. rewards: None takes those that it names."""
    examples = Examples.read(prompts, "prompt")
    ptx = Examples.read(config.ptx.data, "prompt", "completion") if config.ptx.coef else None
    config, folder = _again(config, run_dir if resume else None)
    plan = _plan(config.model, model, examples, folder)
    tokenizer = Tokenizer(plan.tokenizer, config.sampling.stop)
    if config.score.missing_eos_penalty and not tokenizer.stops:
        raise UsageError(
            "score.missing_eos_penalty is set, but the tokenizer has no end of sequence: name a "
            "token by sampling.stop"
        )
    ids = examples.prompts(tokenizer)
    examples.check_lengths(config.sampling.max_tokens, plan.context, ids)
    texts = None
    if ptx:
        texts = (ptx.prompts(tokenizer), ptx.answers(tokenizer, "completion"))
        ptx.check_lengths(0, plan.context, *texts)
    if rewards is None:
        rewards = [find_reward(name) for name in config.score.reward]
    judges = Judge(rewards, config.score.weights, examples)
    judges.check(tokenizer)
    critic_from = next((r for r in rewards if isinstance(r, RewardModel)), None)
    if config.model.critic == "reward" and critic_from is None:
        raise UsageError("model.critic is reward, but no reward is a reward model")
    _set_threads(config.run)
    lm = plan.build(config.run.seed, random=folder is not None)
    policy = _with_critic(lm, tokenizer.stops, config.model.critic, critic_from)
    reference = None
    if config.kl.reference == "copy":
        if folder:  # the model that the run began as is in its first checkpoint
            Checkpoint(folder.checkpoint(0)).load_policy(policy)
        reference = copy.deepcopy(policy.lm).requires_grad_(False)
        reference.to(_device(config.run))
    policy.to(_device(config.run))
    judges.to(_device(config.run))
    learner = PolicyFit(policy, reference, config, tokenizer, examples, ids, judges, texts)
    return _run(learner, config, examples, folder, run_dir, callbacks, display)


def _with_critic(
    lm: LanguageModel, stops: Sequence[int], kind: str, judge: RewardModel | None
) -> LanguagePolicy:
    if kind == "separate":
        return LanguagePolicy(lm, stops, copy.deepcopy(lm))
    if kind == "shared":
        return LanguagePolicy(lm, stops)
    assert judge is not None
    policy = LanguagePolicy(lm, stops, copy.deepcopy(judge.lm).requires_grad_(True))
    with torch.no_grad():  # what it gives as a score is the first value
        policy.value_head.weight.copy_(judge.head.weight / judge.std)
        policy.value_head.bias.copy_((judge.head.bias - judge.mean) / judge.std)
    return policy


def _run(
    learner: Learner,
    config: StageConfig,
    examples: Examples,
    folder: RunFolder | None,
    run_dir: str | Path | None,
    callbacks: Sequence[Callback],
    display: Display | None,
) -> Result:
    is_new = folder is None
    if folder:
        learner.load(Checkpoint(folder.checkpoint("last")), examples.digest)
        folder.write_config(config)
    elif run_dir is not None:
        folder = RunFolder.create(run_dir, config, "proximo lm resume")
        learner.lm.save(folder.path / "model", weights=False)
    rows = train(learner, config.run, folder, examples.digest, callbacks, display, is_new=is_new)
    return Result(learner, rows, config)


def _again(config: Config, run_dir: str | Path | None) -> tuple[Config, RunFolder | None]:
    """The folder of a run to go on with, and the settings with the model that the run has."""
    if run_dir is None:
        return config, None
    folder = RunFolder.open(run_dir)
    before = read_stage(folder.config_file)
    if before.lm.stage != config.lm.stage:
        raise UsageError(f"{run_dir} is a run of {before.lm.stage}, not of {config.lm.stage}")
    return dataclasses.replace(config, model=before.model), folder


def _plan(
    config: ModelConfig, model: LanguageModel | None, examples: Examples, folder: RunFolder | None
) -> Blueprint:
    if folder:
        return read_blueprint(folder.path / "model")
    if model is not None:
        return Blueprint(model.tokenizer, model.net.config, model)
    return blueprint(config, examples.texts())


def _model(model: Model) -> tuple[ModelConfig, LanguageModel | None]:
    """What config.toml says of it, and the model itself where there is one already."""
    if isinstance(model, ModelConfig):
        return model, None
    if isinstance(model, Result):
        return ModelConfig(path=""), model.lm
    if isinstance(model, LanguageModel):
        return ModelConfig(path=""), model
    return ModelConfig(path=str(model)), None


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
    run: TrainingConfig | None,
) -> tuple[FitConfig, LanguageModel | None]:
    chosen, given = _model(model)
    config = FitConfig(
        lm=Task(stage=stage, data=_file(data)),
        model=chosen,
        algorithm=algorithm or Fitting(),
        run=_training(run, updates, seed),
    )
    return config, given


def _device(run: TrainingConfig) -> torch.device:
    if run.device != "auto":
        return torch.device(run.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _set_threads(run: TrainingConfig) -> None:
    if run.threads:
        torch.set_num_threads(run.threads)
