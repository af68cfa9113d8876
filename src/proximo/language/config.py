"""Settings of the stages. Those of PPO itself are in `proximo.language.token_ppo`.

The command line lists these without loading PyTorch.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from proximo.bounds import above, at_least, between
from proximo.errors import UsageError, check_values, refuse_unused
from proximo.functional.schedules import Coefficient
from proximo.language.token_ppo import TOKEN_PPO, TokenPPO
from proximo.run.config import RunSettings, check_sections, refuse_lone
from proximo.run.consent import Line, words
from proximo.run.toml import read_section, read_tables


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model and its critic."""

    path: str = "tiny"
    """A folder that transformers reads (or the name of a model it has stored), a run of
    `proximo lm`, or tiny: a small GPT-2 with random weights over the symbols of the data."""
    layers: Annotated[int, at_least(1)] = 2
    """Blocks of a tiny model."""
    width: Annotated[int, at_least(1)] = 64
    """Numbers per token in a tiny model; a multiple of heads."""
    heads: Annotated[int, at_least(1)] = 4
    """Attention heads of a tiny model."""
    context: Annotated[int, at_least(1)] = 128
    """Longest sequence of a tiny model, in tokens."""
    symbols: Literal["characters", "words"] = "characters"
    """Tokens of a tiny model: single characters, or words, spaces and marks."""
    critic: Literal["shared", "separate", "reward"] = "shared"
    """Values come from a head on the model itself, from a separate copy of the model, or from a
    copy of the reward model. The head is 0 at the start, except on the reward model's."""
    critic_warmup: Annotated[int, at_least(0)] = 0
    """First updates, which train only the critic, or only its head where it is shared."""
    lora_rank: Annotated[int, at_least(0)] = 0
    """Rank of the LoRA adapters, which are trained with the heads while the model's weights are
    frozen; 0: train the weights themselves."""
    lora_alpha: Annotated[float | None, above(0)] = None
    """Adapters are scaled by alpha/rank; none: by 2."""
    lora_targets: tuple[str, ...] = ()
    """Layers with adapters, by the end of their names; none given: all linear ones except the
    last, which gives the logits."""

    def __post_init__(self) -> None:
        check_values("model", self)
        if not self.lora_rank:
            why = "there are no adapters (model.lora_rank is 0)"
            refuse_unused("model", self, ("lora_alpha", "lora_targets"), why)
        if self.width % self.heads:
            raise UsageError(
                f"model.width is {self.width}: it must be a multiple of model.heads, {self.heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling of completions."""

    max_tokens: Annotated[int, at_least(1)] = 32
    """Length of a completion at most, in tokens, its stop token included."""
    min_tokens: Annotated[int, at_least(0)] = 0
    """Tokens before the first possible stop token."""
    temperature: Annotated[float, above(0)] = 1.0
    """Logits are divided by it, in sampling and wherever a log-probability is taken in PPO. For the
    most likely tokens, set top_k to 1 instead of a temperature of 0."""
    top_k: Annotated[int, at_least(0)] = 0
    """Draw from this many most likely tokens only; 0: from all. Not in training."""
    top_p: Annotated[float, above(0, at_most=1)] = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum; 1: from all. Not in
    training."""
    stop: tuple[str, ...] = ()
    """Tokens that end a completion besides the model's own ends: the tokenizer's end of sequence,
    those of generation_config.json, and the end of a turn in the chat template."""
    max_turns: Annotated[int, at_least(1)] = 8
    """Replies in one episode of a text env at most."""

    def __post_init__(self) -> None:
        check_values("sampling", self)
        if self.min_tokens >= self.max_tokens:
            raise UsageError(
                f"sampling.min_tokens is {self.min_tokens}: it must be below sampling.max_tokens, "
                f"{self.max_tokens}"
            )

    @property
    def truncated(self) -> bool:
        """Unlikely tokens are cut off."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """The penalty that keeps the policy near a reference, such as the initial model."""

    coef: Annotated[float, at_least(0)] = 0.05
    """beta, the weight of the KL to the reference, in units of the score per nat; at 0 it is only
    measured."""
    reference: Literal["copy", "adapter", "ema", "none"] = "copy"
    """A frozen copy of the initial model; with LoRA, the model itself with its adapters off; a
    moving average of the model; none saves memory and time, where coef is 0."""
    ema_decay: Annotated[float | None, at_least(0, below=1)] = None
    """d of the moving average ref <- d ref + (1 - d) model after each update; for ema alone."""
    where: Literal["reward", "loss"] = "reward"
    """Subtracted from the reward of each token (k1, log pi - log ref), or added to the loss."""
    estimator: Literal["k2", "k3"] = "k2"
    """Of the KL in the loss: k2, whose gradient is the KL's, or k3."""
    target: Annotated[float | None, above(0)] = None
    """Let beta follow the KL towards this many nats per completion (its sum over tokens); none:
    it is fixed."""
    horizon: Annotated[float, above(0)] = 10_000.0
    """Episodes over which beta can move by a fifth, where it follows."""

    def __post_init__(self) -> None:
        check_values("kl", self)
        if self.reference == "none" and self.coef:
            raise UsageError(
                f"kl.reference is none, but kl.coef is {self.coef}: set it to 0, or keep the copy"
            )
        if self.reference == "ema" and self.ema_decay is None:
            raise UsageError("kl.reference is ema: give kl.ema_decay, such as 0.992")
        if self.reference != "ema":
            refuse_unused("kl", self, ("ema_decay",), f"kl.reference is {self.reference}")
        if self.where == "reward":
            refuse_unused("kl", self, ("estimator",), "kl.where is reward, whose estimate is k1")
        if self.target is None:
            refuse_unused("kl", self, ("horizon",), "kl.target is none: beta does not move")
        if self.target is not None and not self.coef:
            raise UsageError(
                "kl.target is set, but kl.coef is 0, from which beta cannot move: give the "
                "coefficient it begins with"
            )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The score of completions."""

    reward: tuple[str, ...] = ()
    """Each a function (module:function) or a run of `proximo lm reward`; the score is their sum."""
    weights: tuple[float, ...] = ()
    """Weight of each reward; none given: 1 each."""
    env: str = ""
    """A text env to talk with instead, module:Class or a Gymnasium id; its rewards count."""
    missing_eos_penalty: Annotated[float, at_least(0)] = 0.0
    """Subtracted from the score of a completion that was cut off at max_tokens."""
    normalize: bool = False
    """Bring scores to mean 0 and standard deviation 1, by the running moments of all so far."""
    clip: Annotated[float | None, above(0)] = None
    """Bound of the scores, above and below, after normalisation; none: no bound."""

    def __post_init__(self) -> None:
        check_values("score", self)
        if self.env and self.reward:
            raise UsageError(
                f"score.env is {self.env} and score.reward {' '.join(self.reward)}: an env gives "
                "its own rewards, so leave one of them out"
            )

    def unnamed(self, *, reward: object, env: object) -> dict[str, list[str]]:
        """Code that must be named again: argument -> names. reward, env: those given again."""
        code = any(not Path(name).is_dir() for name in self.reward)
        return {
            **({"reward": list(self.reward)} if code and not reward else {}),
            **({"env": [self.env]} if ":" in self.env and not env else {}),
        }


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunSettings):
    """Length of the training, memory, evaluation and what is kept."""

    updates: Annotated[int, at_least(1)] = 100
    """Updates: of PPO, each with new completions; of sft and reward, gradient steps."""
    sequences: Annotated[int, at_least(1)] = 64
    """Completions per update of PPO."""
    completions_per_prompt: Annotated[int, at_least(1)] = 1
    """k, completions of each prompt; an update samples sequences/k prompts."""
    micro_batch: Annotated[int, at_least(1)] = 32
    """Sequences that go through the model at once: memory and speed, never the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto: the GPU if there is one."""
    threads: Annotated[int, between(0, 2**20)] = 0
    """Threads of PyTorch; 0: its own number."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers in the layers of the model, in sampling and in the update; weights, gradients, logits
    and losses are float32."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of each layer, and compute the layer again for the gradient: less
    memory, a third more time, the same result."""
    stop_at: float | None = None
    """End PPO once the score of the held-out prompts reaches this; none: after all updates."""
    eval_every: Annotated[int, between(0, 2**62)] = 0
    """Updates of PPO between evaluations on prompts that are never trained on; 0: none. The model
    with the best score is kept in RUN/best."""
    held_out: Annotated[float, at_least(0, below=1)] = 0.0
    """Share of the prompts that is held out for evaluations."""
    max_length: Annotated[int, at_least(0)] = 0
    """Length of a sequence at most, prompt and answer (or sampling.max_tokens) together, in tokens;
    0: as many as the model reads."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """Longer rows of the data end the command with their number, or are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequences % self.completions_per_prompt:
            raise UsageError(
                f"run.sequences is {self.sequences}, no multiple of run.completions_per_prompt, "
                f"{self.completions_per_prompt}"
            )
        if bool(self.eval_every) != bool(self.held_out):
            raise UsageError("run.eval_every and run.held_out belong together: give both or none")
        if self.eval_every % self.log_every:
            raise UsageError(
                f"run.eval_every is {self.eval_every}, no multiple of run.log_every, "
                f"{self.log_every}: some evaluations would not be logged"
            )
        if self.stop_at is not None and not self.eval_every:
            raise UsageError(
                f"run.stop_at is {self.stop_at}, a score of held-out prompts: give run.eval_every "
                "and run.held_out too"
            )

    def ended_by(self, counters: Mapping[str, Any]) -> str:
        evaluated = counters.get("last_trial_steps") == counters["tokens"]
        score = counters.get("last_trial_return") if evaluated else None
        if self.stop_at is not None and score is not None and score >= self.stop_at:
            return "stop_at"
        return "updates" if counters["updates"] >= self.updates else ""


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Settings of sft and reward: Adam on the mean loss of each minibatch."""

    learning_rate: Annotated[Coefficient, at_least(0)] = 1e-4
    """Step size; a number or a schedule such as linear:1e-4:0."""
    batch_size: Annotated[int, at_least(1)] = 32
    """Examples per gradient step: texts, or pairs."""
    max_grad_norm: Annotated[float | None, above(0)] = 1.0
    """The gradient is scaled down to this norm; none turns it off."""
    adam_betas: Annotated[tuple[float, float], at_least(0, below=1)] = (0.9, 0.999)
    """Decay of Adam's running mean and square of the gradient."""
    held_out: Annotated[float, at_least(0, below=1)] = 0.0
    """Share of the data that is held out, and measured at the end."""

    def __post_init__(self) -> None:
        check_values("algorithm", self)


@dataclass(frozen=True, kw_only=True)
class PTXConfig:
    """Pretraining mixed into PPO, against forgetting (Ouyang et al. 2022, arXiv 2203.02155)."""

    coef: Annotated[float, at_least(0)] = 0.0
    """Weight of the model's own loss, -log pi per token of these texts, in every gradient step."""
    data: str = ""
    """JSONL with prompt and completion."""

    def __post_init__(self) -> None:
        check_values("ptx", self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stage and its data."""

    stage: Literal["sft", "reward", "ppo"]
    """Supervised fine-tuning, a reward model, or PPO."""
    data: str = ""
    """File of the data; empty where a program gave them."""

    def __post_init__(self) -> None:
        check_values("lm", self)


@dataclass(frozen=True, kw_only=True)
class SupervisedRunConfig:
    """Everything that defines a run of sft or reward."""

    lm: Stage
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)
    run: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        why = f"{self.lm.stage} draws no completions"
        refuse_unused("run", self.run, ("completions_per_prompt", "eval_every"), why)


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Everything that defines a run of PPO. Raises `UsageError` for what has no meaning here."""

    lm: Stage
    model: ModelConfig = field(default_factory=ModelConfig)
    algorithm: TokenPPO = TOKEN_PPO
    sampling: Sampling = field(default_factory=Sampling)
    kl: KLConfig = field(default_factory=KLConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    ptx: PTXConfig = field(default_factory=PTXConfig)
    run: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        algorithm, sampling = self.algorithm, self.sampling
        if sampling.truncated:
            which = "top_k" if sampling.top_k else "top_p"
            raise UsageError(
                f"sampling.{which} is {getattr(sampling, which)}, but PPO needs the probability of "
                "every token under the policy that drew it, and what is cut off changes with the "
                "policy: leave it out, and lower sampling.temperature instead"
            )
        if not isinstance(algorithm, TokenPPO):
            raise UsageError(
                f"algorithm is {algorithm!r}: change proximo.language.TOKEN_PPO by "
                "dataclasses.replace instead"
            )
        for name, instead in (
            ("normalize_reward", "score.normalize"),
            ("desired_kl", "target_kl, or a schedule of the learning rate"),
        ):
            if getattr(algorithm, name):
                raise UsageError(f"algorithm.{name} is not for language models: use {instead}")
        of_control = ("outer_learning_rate", "outer_momentum", "discount_horizon")
        refuse_unused("algorithm", algorithm, of_control, "tokens are the actions")
        if algorithm.grouped and self.run.completions_per_prompt == 1:
            raise UsageError(
                f"algorithm.advantage is {algorithm.advantage}, which compares completions of one "
                "prompt: set run.completions_per_prompt to at least 2"
            )
        if not algorithm.critic:
            unused = ("critic", "critic_warmup")
            refuse_unused("model", self.model, unused, "algorithm.critic is off")
        if algorithm.minibatches == "shuffled" and algorithm.minibatch_size > self.run.sequences:
            raise UsageError(
                f"algorithm.minibatch_size is {algorithm.minibatch_size}, but an update has only "
                f"{self.run.sequences} completions (run.sequences)"
            )
        if self.model.critic == "shared":
            why = "model.critic is shared, not separate"
            refuse_unused("algorithm", algorithm, ("critic_learning_rate",), why)
        if self.kl.reference == "adapter" and not self.model.lora_rank:
            raise UsageError(
                "kl.reference is adapter, but there are no adapters to switch off: give "
                "model.lora_rank, or use copy"
            )
        if bool(self.ptx.coef) != bool(self.ptx.data):
            raise UsageError("ptx.coef and ptx.data belong together: give both or none")

    def check_lone(self, *, with_env: bool) -> None:
        """Refuse a new run that standardises advantages one by one. Raises `UsageError`."""
        algorithm, count = self.algorithm, self.run.sequences
        tokens = self.sampling.max_tokens * (self.sampling.max_turns if with_env else 1)
        sizes = {"shuffled": algorithm.minibatch_size, "episodes": 1, "whole": count}
        size, over = sizes[algorithm.minibatches], algorithm.normalize_advantage
        alike = over == "minibatch" and algorithm.grouped and count % size == 1
        alone = {
            "an update has one token": over != "none" and count * tokens == 1,
            "a completion has one token": over == "episode" and tokens == 1,
            "a minibatch has one token": over == "minibatch" and tokens == size == 1,
            "the last minibatch has one completion, whose tokens have one advantage": alike,
        }
        refuse_lone(over, alone, batch=count * tokens > 1)


StageConfig = SupervisedRunConfig | PPOConfig


def read_stage(path: Path) -> StageConfig:
    """A run folder's config.toml, if it is one of `proximo lm`. Raises `UsageError`."""
    tables = read_tables(path)
    if "lm" not in tables:
        raise UsageError(f"{path} is of no run of proximo lm: it has no section [lm]")
    kind = PPOConfig if tables["lm"].get("stage") == "ppo" else SupervisedRunConfig
    sections = typing.get_type_hints(kind)
    check_sections(tables, sections)
    tables.get("algorithm", {}).pop("name", None)  # of PPO, besides its settings
    parts = {name: read_section(name, cls, tables.get(name, {})) for name, cls in sections.items()}
    return kind(**parts)


def resumed(
    config: StageConfig, data: object, reward: object, env: object, updates: int | None, line: Line
) -> StageConfig:
    """Settings of a run that continues. Raises `UsageError` for what must be given again.

    data, reward, env: those given again, if any. updates: train to this many. line: what to type.
    """
    if updates is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, updates=updates))
    score = config.score if isinstance(config, PPOConfig) else ScoreConfig()
    with_env = isinstance(config, PPOConfig) and bool(env or score.env)
    if data is None and not config.lm.data and not with_env:
        raise UsageError("this run's data were given by a program: give them again, by data")
    if not isinstance(config, PPOConfig):
        return config
    if not (with_env or score.reward or reward):
        raise UsageError("this run's reward was given by a program: give it again, or an env")
    if missing := score.unnamed(reward=reward, env=env):
        raise UsageError(words(missing, line))
    name = score.env if env is None else env if isinstance(env, str) else ""
    return dataclasses.replace(config, score=dataclasses.replace(score, env=name))
