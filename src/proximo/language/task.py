"""The stages as tasks of the one loop: supervised learning, and PPO on sampled completions."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from torch import Tensor

from proximo import functional as F
from proximo.disk import Lines, lines, replacing
from proximo.envs.layers import close_all
from proximo.errors import TrainingError, UsageError
from proximo.functional.schedules import as_schedule
from proximo.language.config import PPOConfig, StageConfig, SupervisedRunConfig, TrainingConfig
from proximo.language.engine import LanguageEngine, evaluate_old
from proximo.language.envs import TextEnvs, episode_metrics, joined
from proximo.language.examples import EpochSampler, Examples, Limit, split
from proximo.language.generate import check_drawn, generate
from proximo.language.model import LanguageModel, LanguagePolicy
from proximo.language.objectives import Objective, add_text_gradient
from proximo.language.records import TokenBatch, TokenRollout
from proximo.language.reference import FrozenReference
from proximo.language.reward import RewardSum, shaped
from proximo.language.sequences import Sequences
from proximo.language.state import LanguageState
from proximo.language.tokenizer import Tokenizer
from proximo.nets.optimizer import FlatOptimizer, clip_gradient
from proximo.run.callbacks import Callback, overrides
from proximo.run.folder import MOST_ROWS, RunFolder
from proximo.run.monitors import Evaluate, own_evaluation
from proximo.run.profile import Profile
from proximo.run.session import RunLog, Task
from proximo.types import Extra, Metrics, Row

MAX_SAMPLE_BYTES = 2**24  # size of a line of samples.jsonl at most
SAMPLES = 4  # completions of each update that are written to samples.jsonl


class StageTask(Task):
    """What the stages share: checkpoints, the saved model, held-out evaluation, samples."""

    counter = "tokens"
    best_by = "held_out_score"
    saves_best_at_once = True
    state: LanguageState
    run: TrainingConfig

    def __init__(self, config: StageConfig, **parts: Any) -> None:
        """parts: of the state."""
        self.config, self.run = config, config.run
        self.state = LanguageState(stage=config.lm.stage, horizon=config.run.updates, **parts)
        self._finished = False
        self._log = StageLog(config.run.log_every)
        self.rows = self._log.rows  # the logged rows of the whole run
        self.final: Metrics = {}  # measured once, at the end

    def enter_run(self, log: RunLog, callbacks: Sequence[Callback]) -> None:
        """Take the log of the run and the user's callbacks. Raises `UsageError`."""
        self._run_log, self._callbacks = log, callbacks
        self.state.skip_sink = log.record_skip
        self._add_losses([c.loss for c in callbacks if overrides(c, "loss")])

    def _add_losses(self, losses: list[Callable[..., Tensor]]) -> None:
        if losses:
            raise UsageError(f"a callback has a loss: {self.state.stage} takes none, only PPO does")

    def prepare(self, state: LanguageState, rollout: Any) -> Any:
        for callback in self._callbacks:
            rollout = callback.before_advantages(state, rollout)
        return self._prepare(state, rollout)

    def _prepare(self, state: LanguageState, rollout: Any) -> Any:
        """The batch of an update."""
        return rollout

    def _held_out(self, state: LanguageState, row: Row) -> None:
        """Add held-out scores to the row."""

    def _measure(self) -> Metrics:
        """Calibrate and measure once, after the last update."""
        return {}

    def snapshot(self, best: float | None, extra: Extra) -> Callable[[Path], None]:
        return self.state.snapshot(extra, finished=self._finished)

    def first(self, folder: RunFolder, extra: Extra) -> None:
        self.state.lm.save(folder.path / "model", weights=False, within=folder.path)
        self.state.snapshot(extra, first=True)(folder.checkpoint(0))

    def best_snapshot(self, folder: RunFolder) -> Callable[[], None]:
        return partial(self._save_model, folder, "best")

    def _save_model(self, folder: RunFolder, name: str) -> None:
        """The model in a folder that transformers reads. Raises `OSError`."""
        place = folder.path / name
        try:
            self.state.lm.save(place, within=folder.path)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise OSError(errno.EIO, why, str(place)) from error

    def enter(self, folder: RunFolder) -> None:
        self._log.enter(folder, self.state, self._run_log.alert)

    def monitors(self, callbacks: Sequence[Callback]) -> list[Callback]:
        warn = self._run_log.alert
        own = [own_evaluation(c, warn) for c in callbacks if overrides(c, "evaluate")]
        evaluate = [Evaluate(own or [self._held_out], self.run.eval_every)]
        return [*(evaluate if self.run.eval_every else []), self._log]

    def timed(self, profile: Profile) -> Task:
        engine = self.state.engine
        if engine is None:
            return profile.timed(self, collect="collect", update="update")
        self.state.engine = profile.timed(engine, evaluate_batch="evaluate", descend="update")
        return profile.timed(self, collect="act", prepare="advantages", update="readings")

    def result(self, folder: RunFolder | None, *, finished: bool) -> Row:
        self._finished = finished
        if finished:
            self.final = self._measure()
        if self.state.best is not None:
            self.final["best_held_out_score"] = self.state.best
        if folder and finished and self.state.stage != "reward":
            self._save_model(folder, "model")
        return {"tokens": self.state.tokens, **self.final}


class SupervisedTask(StageTask):
    """sft and reward models: examples in a new order each epoch, one step per minibatch."""

    config: SupervisedRunConfig

    def __init__(
        self,
        objective: Objective,
        lm: LanguageModel,
        config: SupervisedRunConfig,
        parts: Sequence[list[list[int]]],
        digest: str,
    ) -> None:
        """lm: in the model of the objective. parts: token ids of prompts, then of answers."""
        settings, seed = config.algorithm, config.run.seed
        self._objective, self._parts = objective, parts
        self._trained, self._set_aside = split(
            len(parts[0]), settings.held_out, seed, "algorithm.held_out"
        )
        self._sampler = EpochSampler(len(self._trained), seed, 1)
        model = objective.model
        group = [p for p in model.parameters() if p.requires_grad]
        optimizer = FlatOptimizer([group], "adam", 1e-8, settings.adam_betas)
        super().__init__(config, policy=model, lm=lm, optimizer=optimizer, data=digest)

    def collect(self, state: LanguageState) -> Sequences:
        size = self.config.algorithm.batch_size
        drawn = self._sampler.draw(state.updates * size, size)
        return self._sequences([self._trained[i] for i in drawn])

    def update(self, state: LanguageState, batch: Sequences) -> Metrics:
        optimizer, settings = state.optimizer, self.config.algorithm
        optimizer.zero_grad()
        terms = self._objective.add_gradient(batch, self.run.micro_batch)
        rate = as_schedule(settings.learning_rate)(state.progress)
        optimizer.rates = [rate]
        norm = float(clip_gradient(optimizer.gradients, settings.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient became {norm} in update {state.updates + 1}: a smaller learning "
                "rate is the usual remedy"
            )
        optimizer.step()
        epoch = (state.updates + 1) * settings.batch_size / len(self._trained)
        return {**terms, "grad_norm": norm, "learning_rate": rate, "epoch": epoch}

    @torch.no_grad()
    def _measure(self) -> Metrics:
        micro_batch = self.run.micro_batch
        self._objective.calibrate(self._sequences(self._trained), micro_batch)
        if not self._set_aside:
            return {}
        return self._objective.measure(self._sequences(self._set_aside), micro_batch)

    def _sequences(self, examples: Sequence[int]) -> Sequences:
        answers = self._objective.answers
        prompts = [self._parts[0][i] for _ in answers for i in examples]
        completions = [self._parts[part][i] for part in answers for i in examples]
        return Sequences.join(prompts, completions, self.state.lm.device)


class PromptData(NamedTuple):
    """Prompts of PPO: rows, tokens, and which are trained on and which held out."""

    examples: Examples
    tokens: list[list[int]]  # of each prompt; none with text envs
    trained: list[int]
    held_out: list[int]
    ptx: tuple[list[list[int]], list[list[int]]] | None  # prompts and answers of the ptx loss
    digest: str  # of all data

    @staticmethod
    def read(
        config: PPOConfig,
        examples: Examples,
        ptx: Examples | None,
        tokenizer: Tokenizer,
        limit: Limit,
        *,
        with_env: bool,
    ) -> PromptData:
        """Tokenize and split the prompts. Raises `UsageError` for too long ones."""
        tokens: list[list[int]] = []
        if not with_env:
            prompts = examples.prompts(tokenizer)
            examples, (tokens,) = examples.check_lengths(config.sampling.max_tokens, limit, prompts)
        run = config.run
        trained, held_out = split(len(examples), run.held_out, run.seed, "run.held_out")
        texts, digest = None, examples.digest
        if ptx:
            asked, answers = ptx.prompts(tokenizer), ptx.answers(tokenizer, "completion")
            ptx, (asked, answers) = ptx.check_lengths(0, limit, asked, answers)
            texts, digest = (asked, answers), digest + ptx.digest
        return PromptData(examples, tokens, sorted(trained), held_out, texts, digest)


class TokenPPOTask(StageTask):
    """PPO on completions: sample, score, subtract the KL, estimate advantages, K epochs."""

    config: PPOConfig

    def __init__(
        self,
        policy: LanguagePolicy,
        reference: FrozenReference | None,
        config: PPOConfig,
        tokenizer: Tokenizer,
        data: PromptData,
        source: RewardSum | TextEnvs,
    ) -> None:
        """source: rewards of single completions, or envs to talk with."""
        self._policy, self._tokenizer, self._data, self._source = policy, tokenizer, data, source
        run = config.run
        self._sampler = EpochSampler(len(data.trained), run.seed, 0)
        self._ptx_sampler = EpochSampler(len(data.ptx[0]), run.seed, 2) if data.ptx else None
        optimizer = config.algorithm.make_optimizer(policy)  # type: ignore[arg-type]  # parameters
        self._engine = LanguageEngine(policy, optimizer, run.micro_batch, config.kl, self._add_ptx)
        # Streams apart, so that longer completions do not change the order of minibatches.
        streams = [torch.Generator().manual_seed(2 * run.seed + i) for i in (0, 1)]
        super().__init__(
            config,
            policy=policy,
            lm=policy.lm,
            optimizer=optimizer,
            engine=self._engine,
            generators={"sampling": streams[0], "shuffling": streams[1]},
            reference=reference,
            beta=config.kl.coef,
            data=data.digest,
        )

    def _add_losses(self, losses: list[Callable[..., Tensor]]) -> None:
        self._engine.loss_terms = losses

    def close(self) -> list[str]:
        return close_all(self._source.envs) if isinstance(self._source, TextEnvs) else []

    def collect(self, state: LanguageState) -> TokenRollout:
        """Complete the next prompts. Envs of one group of completions start alike."""
        k, count = self.run.completions_per_prompt, self.run.sequences
        drawn = self._sampler.draw(state.updates * (count // k), count // k)
        prompts = [self._data.trained[i] for i in drawn for _ in range(k)]
        episodes = [state.episodes // k + i // k for i in range(count)]
        return self._sample(prompts, state.generators["sampling"], episodes)

    def _sample(
        self, prompts: Sequence[int], generator: torch.Generator, episodes: Sequence[int]
    ) -> TokenRollout:
        """Complete these prompts and score the completions. episodes: numbers of the envs'."""
        state, size = self.state, self.run.micro_batch
        rows = [self._data.examples.rows[i] for i in prompts]
        texts: list[tuple[Any, Any]]
        readings: Metrics = {}
        if isinstance(self._source, TextEnvs):
            played = self._source.play(state.lm, episodes, rows, generator, size, state.fault)
            completions = joined(played, state.lm.device)
            texts = [(e.texts[0], e.texts[1:]) for e in played]
            score = torch.tensor([x for e in played for x in e.rewards], dtype=torch.float64)
            dense = score.new_zeros(completions.sequences.response.shape)
            readings = episode_metrics(played)
        else:
            ids = [self._data.tokens[i] for i in prompts]
            completions = generate(state.lm, ids, self._policy.decoding, generator, size)
            words = [self._tokenizer.text(own) for own in completions.ids]
            score, dense = self._source(rows, ids, completions, words, size, state.fault)
            texts = list(zip([row["prompt"] for row in rows], words, strict=True))
        critic, sequences = self.config.algorithm.critic, completions.sequences
        old = evaluate_old(self._policy, state.reference, sequences, size, critic=critic)
        return TokenRollout(completions, prompts, texts, score, dense, old, readings)

    def _prepare(self, state: LanguageState, rollout: TokenRollout) -> TokenBatch:
        completions, kl = rollout.completions, state.reference is not None
        gap = check_drawn(completions.log_prob, rollout.old, self.run.dtype)
        reward = self._reward(state, rollout)
        self._kl, self._readings = rollout.kl, rollout.describe(kl=kl)
        self._readings |= {"beta": state.beta} if kl else {}
        self._readings |= {"reward": float(reward.sum(-1).mean()), "sampling_gap": gap}
        self._readings |= rollout.group_metrics(self.run.completions_per_prompt)
        sequences, group = completions.sequences, self.run.completions_per_prompt
        reward = reward.to(state.lm.device)
        return self.config.algorithm.token_batch(sequences, rollout.old, reward, group)

    def _reward(self, state: LanguageState, rollout: TokenRollout) -> Tensor:
        """Reward of each token for PPO: normalised and clipped scores, less the KL. [N, R]."""
        settings, score, kl = self.config.score, rollout.reply_reward, self.config.kl
        if settings.normalize:
            score = state.normalized(score)
        if settings.clip is not None:
            score = score.clamp(-settings.clip, settings.clip)
        cut = (~rollout.completions.stopped.cpu()).double()
        score = score - settings.missing_eos_penalty * cut
        beta = state.beta if kl.where == "reward" else 0.0
        sequences = rollout.completions.sequences
        return shaped(score, rollout.token_reward, rollout.log_ratio, beta, sequences)

    def update(self, state: LanguageState, batch: TokenBatch) -> Metrics:
        """K epochs of steps; then the reference, β and the number of episodes move."""
        warm = state.updates >= self.config.model.critic_warmup
        self._engine.beta, self._engine.actor_frozen = state.beta, not warm
        metrics = self.config.algorithm.update(state, batch)  # type: ignore[arg-type]  # its parts
        kl, settings = self._kl, self.config.kl
        if state.reference is not None:
            state.reference.follow(state.lm)
        if settings.target is not None and warm:
            mean = float(kl.mean())
            target, horizon = settings.target, settings.horizon
            state.beta = F.kl.controlled_beta(state.beta, mean, target, len(kl), horizon)
        state.episodes += len(kl)
        if (steps := metrics["gradient_steps"]) and self.config.algorithm.max_grad_norm:
            metrics["grad_clip_fraction"] = float(self._engine.clipped_steps) / steps
        return {"episodes": state.episodes, **self._readings, **metrics}

    def _held_out(self, state: LanguageState, row: Row) -> None:
        """Score the held-out prompts, with the same random numbers every time: none of training."""
        seed = np.random.default_rng([self.run.seed, 3]).integers(2**32)
        generator = torch.Generator().manual_seed(int(seed))
        held_out = self._data.held_out
        apart = [-1 - i for i in range(len(held_out))]  # episodes of training count from 0
        rollout = self._sample(held_out, generator, apart)
        row["held_out_score"] = state.last_trial_return = float(rollout.score.mean())
        state.last_trial_steps = state.tokens
        if state.reference is not None:
            row["held_out_kl"] = float(rollout.kl.mean())

    def _add_ptx(self) -> Tensor | None:
        """Add the gradient of the model's own loss on texts to a minibatch's; returns that loss."""
        ptx, state = self._data.ptx, self.state
        if ptx is None or self._ptx_sampler is None:
            return None
        size = min(self.config.algorithm.minibatch_size, self.run.sequences)
        drawn = self._ptx_sampler.draw(state.ptx, size)
        state.ptx += size
        prompts, answers = ([part[i] for i in drawn] for part in ptx)
        texts = Sequences.join(prompts, answers, state.lm.device)
        return add_text_gradient(state.lm, texts, self.config.ptx.coef, self.run.micro_batch)


class StageLog(Callback):
    """The logged rows, for the result, and a few completions of each in samples.jsonl."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._file: Lines | None = None
        self.rows: list[Row] = []

    def enter(self, folder: RunFolder, state: LanguageState, say: Callable[[str], None]) -> None:
        """Read the rows up to this state, and continue its file of samples."""
        self.rows += folder.read_metrics()
        file = folder.path / "samples.jsonl"
        missing = state.updates // self._every - _cut_samples(file, state.updates)
        if state.stage == "ppo" and missing > 0:
            say(f"samples.jsonl lacks those of {missing} updates: lost, as in a power cut")
        self._file = Lines(file, say)

    def __call__(self, state: LanguageState, rollout: Any, row: Row) -> None:
        if state.updates % self._every:
            return
        self.rows.append(row)
        if self._file and isinstance(rollout, TokenRollout):
            for sample in rollout.samples(SAMPLES):
                line = {"update": state.updates, **sample}
                self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def sync(self) -> None:
        if self._file:
            self._file.sync()

    def close(self) -> None:
        if self._file:
            self._file.close()


def _cut_samples(file: Path, update: int) -> int:
    """Drop samples after this update, and invalid lines; returns the number of updates kept."""
    sampled = set[int]()
    with contextlib.suppress(FileNotFoundError), replacing(file) as kept:
        for line in lines(file, MAX_SAMPLE_BYTES, MOST_ROWS):
            try:
                number = orjson.loads(line)["update"]
                if line.endswith(b"\n") and number <= update:
                    sampled.add(number)
                    kept.write(line)
            except (ValueError, TypeError, LookupError):
                continue
    return len(sampled)
