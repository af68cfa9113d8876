"""Learning from scores: PPO on the completions that a language model draws."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.functional.kl import controlled_beta
from proximo.functional.moments import batch_moments, merge
from proximo.language.config import PPOConfig
from proximo.language.data import Examples, Order, Sequences
from proximo.language.experience import check_drawn, judge, prepare, shaped
from proximo.language.fitting import add_text_gradient
from proximo.language.generate import Completions, generate
from proximo.language.model import LanguageModel, LanguagePolicy, Tokenizer
from proximo.language.reward import Judge
from proximo.language.session import Learner, mean_of
from proximo.language.update import after, descend, readings
from proximo.types import Metrics, TrainingError, UsageError

SHOWN = 4
"""Completions of each update that are kept to be read."""


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
