"""Learning from scores: PPO on the completions that a language model draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proximo.errors import TrainingError, UsageError
from proximo.functional.kl import controlled_beta
from proximo.functional.moments import batch_moments, merge
from proximo.language.config import PPOConfig
from proximo.language.envs import TextEnvs, TextEpisode, episode_metrics, joined
from proximo.language.examples import EpochSampler, Examples
from proximo.language.experience import OldPolicy, check_drawn, evaluate_old, prepare, shaped
from proximo.language.fitting import add_text_gradient
from proximo.language.generate import Completions, generate
from proximo.language.model import LanguageModel, LanguagePolicy
from proximo.language.reference import FrozenReference
from proximo.language.reward import RewardSum
from proximo.language.sequences import Sequences, reply_ends
from proximo.language.session import Learner, mean_of
from proximo.language.tokenizer import Tokenizer
from proximo.language.update import after, descend, readings
from proximo.types import Batch, Metrics

SHOWN = 4
"""Completions of each update that are kept to be read."""


@dataclass(frozen=True)
class Experience:
    """N completions, what they are worth, and what the policy that drew them makes of them."""

    examples: Sequence[int]  # which prompt each of them completes
    drawn: Completions
    sparse: Tensor  # [M] what each reply is worth in all, in the reward's own units
    dense: Tensor  # [N, R] what each token is worth by itself
    old: OldPolicy
    texts: Sequence[str] = ()
    episodes: Sequence[TextEpisode] = ()  # where they are conversations with an env

    @property
    def score(self) -> Tensor:
        """[N]."""
        of = reply_ends(self.drawn.sequences.response.cpu()).nonzero()[:, 0]
        return self.dense.sum(-1).index_add(0, of, self.sparse)

    @property
    def log_ratio(self) -> Tensor:
        """Log π - log π_ref of each token, 0 in padding, on the CPU. [N, R]."""
        response = self.drawn.sequences.response.cpu()
        ratio = torch.zeros_like(self.dense)
        return ratio.masked_scatter(response, self.old.log_ratio.double().cpu())

    @property
    def kl(self) -> Tensor:
        """Σ log π - log π_ref over the tokens of each completion. [N]."""
        return self.log_ratio.sum(-1)


class PolicyFit(Learner):
    """PPO on completions: draw, score, take off the KL, estimate advantages, K epochs of steps."""

    stage = "ppo"

    def __init__(
        self,
        policy: LanguagePolicy,
        reference: FrozenReference | None,
        config: PPOConfig,
        tokenizer: Tokenizer,
        examples: Examples,
        prompts: list[list[int]],
        parts: tuple[list[int], list[int]],
        judges: RewardSum | TextEnvs,
        ptx: tuple[list[list[int]], list[list[int]]] | None,
    ) -> None:
        """parts: which prompts are trained on, and which are held out."""
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
        if reference is not None:
            self.carried = {f"reference.{name}": x for name, x in reference.moving.items()}
        self._trained, self._held_out = sorted(parts[0]), parts[1]
        self._order = EpochSampler(len(self._trained), seed, 0)
        self._ptx_order = EpochSampler(len(ptx[0]), seed, 2) if ptx else None
        self.counters |= {"beta": config.kl.coef, "episodes": 0, "ptx": 0}

    @property
    def lm(self) -> LanguageModel:
        return self.policy.lm

    def update(self) -> Metrics:
        """Algorithm 1 of Schulman et al. 2017, and what is read off on the way."""
        chosen = self._next_prompts()
        new = self._draw(chosen, self.generators["sampling"], self._next_episodes())
        gap = check_drawn(new.drawn.log_prob, new.old, self.run.dtype)
        reward = self._reward(new)
        batch = prepare(
            self.config.algorithm,
            new.drawn.sequences,
            new.old,
            reward.to(self.lm.device),
            self.run.completions_per_prompt,
        )
        beta = self.counters["beta"]
        metrics = {**self._descend(new, batch), "sampling_gap": gap}
        self._count(new)
        return {
            "episodes": self.counters["episodes"],
            **self._describe(new),
            **({} if self.reference is None else {"beta": beta}),
            "reward": mean_of(reward.sum(-1)),
            **metrics,
            **self._evaluate(),
        }

    def _next_prompts(self) -> list[int]:
        """Which prompts this update completes, each as often as it is compared with itself."""
        k = self.run.completions_per_prompt
        count = self.run.sequences // k
        drawn = self._order.draw(self.updates * count, count)
        return [self._trained[i] for i in drawn for _ in range(k)]

    def _next_episodes(self) -> list[int]:
        """The numbers by which envs are seeded: those compared with each other begin alike."""
        first, k = self.counters["episodes"], self.run.completions_per_prompt
        return [first // k + i // k for i in range(self.run.sequences)]

    def _draw(
        self, examples: Sequence[int], generator: torch.Generator, numbers: Sequence[int]
    ) -> Experience:
        """Complete these prompts and score what was said. numbers: those of an env's episodes."""
        sampling, micro_batch = self.config.sampling, self.run.micro_batch
        rows = [self._examples.rows[i] for i in examples]
        episodes: list[TextEpisode] = []
        texts: list[str] = []
        if isinstance(self._judges, TextEnvs):
            episodes = self._judges.play(
                self.lm, numbers, rows, generator, micro_batch, self._fault
            )
            drawn = joined(episodes, self.lm.device)
            sparse = torch.tensor([x for e in episodes for x in e.rewards], dtype=torch.float64)
            dense = torch.zeros(drawn.sequences.response.shape, dtype=torch.float64)
        else:
            prompts = [self._prompts[i] for i in examples]
            drawn = generate(self.lm, prompts, sampling, self.policy.stops, generator, micro_batch)
            texts = [self._tokenizer.text(ids) for ids in drawn.ids]
            sparse, dense = self._judges(rows, prompts, drawn, texts, micro_batch, self._fault)
        old = evaluate_old(
            self.policy,
            self.reference,
            drawn.sequences,
            sampling,
            micro_batch,
            critic=self.config.algorithm.critic,
        )
        return Experience(examples, drawn, sparse, dense, old, texts, episodes)

    def _reward(self, new: Experience) -> Tensor:
        """The reward of each token as PPO sees it: scores as they are used, less the KL. [N, R]."""
        settings, score = self.config.score, new.sparse
        if settings.normalize:
            self.moments = merge(self.moments, batch_moments(score))
            score = (score - self.moments.mean) * torch.rsqrt(self.moments.var + 1e-8)
        if settings.clip is not None:
            score = score.clamp(-settings.clip, settings.clip)
        score = score - settings.missing_eos_penalty * (~new.drawn.stopped.cpu()).double()
        beta = self.counters["beta"] if self.config.kl.where == "reward" else 0.0
        return shaped(score, new.dense, new.log_ratio, beta, new.drawn.sequences.response.cpu())

    def _descend(self, new: Experience, batch: Batch) -> Metrics:
        """K epochs of gradient steps, and how far they have moved the policy."""
        config, sequences = self.config, new.drawn.sequences
        algorithm, micro_batch = config.algorithm, self.run.micro_batch
        coefficients = algorithm.coefficients(self.progress)
        rates = algorithm.rates(self.progress, 1.0)
        names = ("learning_rate", "critic_learning_rate")[: len(self.optimizer.flats)]
        self.optimizer.rates = [rates[name] for name in names]

        def skip(what: str, epoch: int, number: int, which: Tensor) -> None:
            tensors = {f"sequences.{name}": x for name, x in sequences._asdict().items()}
            tensors |= {f"batch.{name}": x for name, x in vars(batch).items()}
            tensors |= {"reference": new.old.reference, "chosen": which}
            where = f", epoch {epoch}, minibatch {number}"
            record = {"coefficients": coefficients, "beta": self.counters["beta"]}
            self.leave_out(what, where, tensors, record, algorithm.skip_budget)

        metrics = descend(
            algorithm,
            self.policy,
            self.optimizer,
            sequences,
            batch,
            self.generators["shuffling"],
            sampling=config.sampling,
            coefficients=coefficients,
            micro_batch=micro_batch,
            reference=new.old.reference,
            kl=config.kl,
            beta=self.counters["beta"],
            also=self._add_ptx,
            skip=skip,
            policy_moves=self.updates >= config.model.critic_warmup,
        )
        if not all(torch.isfinite(flat).all() for flat in self.optimizer.flats):
            raise self._fault(
                f"weights became infinite in update {self.updates + 1}: a smaller learning rate is "
                "the usual remedy"
            )
        if not algorithm.critic:
            metrics.pop("value_loss", None)
        now = after(self.policy, sequences, config.sampling, micro_batch)
        moved = readings(algorithm, self.policy, batch, now, coefficients)
        return {**moved, **metrics, **rates, **coefficients}

    def _count(self, new: Experience) -> None:
        """Move β, the reference and the counters on."""
        kl, settings = new.kl, self.config.kl
        if self.reference is not None:
            self.reference.follow(self.lm)
        if settings.target is not None and self.updates >= self.config.model.critic_warmup:
            self.counters["beta"] = controlled_beta(
                self.counters["beta"], mean_of(kl), settings.target, len(kl), settings.horizon
            )
        self.counters["tokens"] += len(new.old.log_prob)
        self.counters["episodes"] += len(kl)

    def _describe(self, new: Experience) -> Metrics:
        """Readings of completions, of which a few are kept to be read."""
        score, kl, drawn = new.score, new.kl, new.drawn
        texts = self._texts(new)
        found = list(zip(texts, score.tolist(), kl.tolist(), strict=True))
        self.samples = [
            {"prompt": prompt, "completion": said, "score": s, "kl": d}
            for (prompt, said), s, d in found[:SHOWN]
        ]
        different = len(set(map(repr, zip(new.examples, texts, strict=True))))
        return {
            "score": mean_of(score),
            "score_std": float(score.std(correction=0)),
            **({} if self.reference is None else {"kl": mean_of(kl)}),
            "length": mean_of(drawn.sequences.lengths),
            "stopped": mean_of(drawn.stopped),
            **(episode_metrics(new.episodes) if new.episodes else {}),
            "repeated": 1 - different / len(texts),
            "entropy": -mean_of(drawn.log_prob),
        }

    def _texts(self, new: Experience) -> list[tuple[Any, Any]]:
        """Prompt and completion of each; with an env, the first text and all that followed."""
        if new.episodes:
            return [(episode.texts[0], episode.texts[1:]) for episode in new.episodes]
        prompts = [self._examples.rows[i]["prompt"] for i in new.examples]
        return list(zip(prompts, new.texts, strict=True))

    def _evaluate(self) -> Metrics:
        """The score of prompts that are never trained on, where it is due.

        With the same numbers every time: what differs between evaluations is the policy, and no
        generator of the training is touched.
        """
        every = self.run.eval_every
        if not every or (self.updates + 1) % every:
            return {}
        seed = np.random.default_rng([self.run.seed, 3]).integers(2**32)
        generator = torch.Generator().manual_seed(int(seed))
        apart = [-1 - i for i in range(len(self._held_out))]  # training's episodes count from 0
        found = self._draw(self._held_out, generator, apart)
        kl = {} if self.reference is None else {"held_out_kl": mean_of(found.kl)}
        return {"held_out_score": mean_of(found.score), **kl}

    @property
    def _fault(self) -> type[Exception]:
        """What to raise when something fails: before the first update there is no run to keep."""
        return TrainingError if self.updates else UsageError

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
