"""Causal language models of transformers, and a policy with values on top of one."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proximo.disk import filling
from proximo.errors import UsageError, printable
from proximo.functional.distributions import Categorical
from proximo.language.adapters import adapted, add_adapters, merged
from proximo.language.config import ModelConfig, Sampling, TrainingConfig
from proximo.language.sequences import Sequences, pack
from proximo.language.tokenizer import declared_ends
from proximo.nets.actor_critic import Evaluation
from proximo.nets.config import NetConfig
from proximo.nets.values import ValueScale

ROW_METHODS = ("reorder_cache", "batch_select_indices")


def transformers() -> Any:
    """The library, imported when it is first needed. Raises `UsageError` where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "language models need transformers: pip install 'proximo[language]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_make_printable)
    return transformers


def _make_printable(record: logging.LogRecord) -> bool:
    """Messages of transformers may hold names out of a file."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


@dataclass(frozen=True)
class Decoding:
    """How the next token is drawn, in the sampler and in the update alike."""

    sampling: Sampling
    stops: tuple[int, ...]  # ids that end a completion

    def distribution(self, logits: Tensor, place: Tensor) -> Categorical:
        """π(·|s) of the next token: p ∝ exp(logits/temperature), no stop before min_tokens.

        logits: [..., V]; place: [...] int64, index of the token in its completion. Tokens beyond
        `Sampling.top_k` or `top_p`, and stop tokens that come too early, have probability 0.
        """
        sampling, legal = self.sampling, None
        logits = logits / sampling.temperature
        if sampling.min_tokens and self.stops:
            legal = torch.ones_like(logits, dtype=torch.bool)
            legal[..., list(self.stops)] = (place >= sampling.min_tokens).unsqueeze(-1)
            logits = logits.masked_fill(~legal, -torch.inf)
        if sampling.truncated:
            ordered, index = logits.sort(-1, descending=True)
            p = ordered.softmax(-1)
            likely = p.cumsum(-1) - p < sampling.top_p
            if sampling.top_k:
                likely[..., sampling.top_k :] = False
            kept = torch.zeros_like(likely).scatter(-1, index, likely)
            legal = kept if legal is None else legal & kept
        return Categorical.from_logits(logits, legal)


class Output(NamedTuple):
    """Prediction after the last token of each sequence."""

    logits: Tensor  # [N, V] float32
    cache: Any  # keys and values so far; None if not asked for or not kept by the model


class LanguageModel(nn.Module):
    """A causal language model of transformers and its tokenizer; dropout is always off."""

    net: Any

    def __init__(self, net: Any, tokenizer: Any) -> None:
        """net: a causal language model; tokenizer: of transformers. Raises `UsageError`."""
        super().__init__()
        self.net = net
        self.tokenizer = tokenizer
        takes = inspect.signature(net.forward).parameters
        for needed in ("attention_mask", "position_ids"):
            if needed not in takes:
                raise UsageError(
                    f"a {type(net).__name__} takes no {needed}: its predictions would depend on "
                    "the padding"
                )
        check_fit(tokenizer, net.get_input_embeddings().num_embeddings)
        _fuse(net)
        self._recomputed: list[nn.Module] = []
        self._bfloat16 = False
        self.eval()

    def set_up(self, model: ModelConfig, run: TrainingConfig) -> Self:
        """Add adapters, and set precision and recomputation. Raises `UsageError`."""
        if model.lora_rank:
            add_adapters(self.net, model, run.seed)
        self._bfloat16 = run.dtype == "bfloat16"
        if run.gradient_checkpointing:
            kind = transformers().modeling_layers.GradientCheckpointingLayer
            self._recomputed = [m for m in self.net.modules() if isinstance(m, kind)]
            if not self._recomputed:
                raise UsageError(
                    f"run.gradient_checkpointing is set, but a {type(self.net).__name__} has no "
                    "layers that can be computed again"
                )
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: with dropout, the update would see another policy than acted."""
        return super().train(False)

    @property
    def width(self) -> int:
        """D, the width of the hidden states that logits are computed from."""
        return int(self.net.get_output_embeddings().weight.shape[-1])

    @property
    def context(self) -> int | None:
        """Maximum length of a sequence in tokens, if the model has one."""
        return context(self.net.config)

    @property
    def generation(self) -> Any:
        """Generation settings of transformers, which are saved with the model."""
        return getattr(self.net, "generation_config", None)

    @property
    def ends(self) -> list[int]:
        """Ids that its generation settings declare as ends of a text."""
        return declared_ends(self.generation, len(self.tokenizer))

    def end_by(self, ends: Iterable[int]) -> Self:
        """Declare these ends in the generation settings too, so that other programs stop there."""
        if self.generation is not None:
            declared = self.generation.eos_token_id
            known = [] if declared is None else np.atleast_1d(declared).tolist()
            if missing := sorted(set(ends) - set(known)):
                self.generation.eos_token_id = [*known, *missing]
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> Output:
        """Logits after the last token. tokens, positions: [N, L]; mask: [N, all tokens so far].

        cache: of the tokens before; True begins one; None: no cache.
        """
        with self._computing(self._exact):
            out = self.net(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=positions,
                logits_to_keep=1,
                use_cache=cache is not None,
                past_key_values=None if cache in (None, True) else cache,
            )
        kept = None if cache is None else getattr(out, "past_key_values", None)
        return Output(out.logits[:, -1].float(), kept)

    def read(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Logits [B, V] for each action of the sequences, and the hidden states [B, D] they use."""
        return self._read(sequences, sequences.before_actions, share=self.packs)

    def hidden(self, sequences: Sequences, wanted: Tensor) -> Tensor:
        """Hidden states of the last layer at the `wanted` tokens, [N, L]. [B, D]."""
        return self._read(sequences, wanted, share=self.packs, logits=False)[1]

    def _read(
        self, sequences: Sequences, wanted: Tensor, *, share: bool, logits: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits, if asked for, and hidden states at the wanted tokens alone."""
        packed = pack(sequences, wanted, share=share)
        if packed.tokens.shape[-1] > self._window:
            packed = pack(sequences, wanted, share=False)
        hidden = torch.empty(0)

        def project(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            nonlocal hidden
            hidden = x.flatten(0, 1).index_select(0, packed.wanted)
            return self._exact(forward, hidden) if logits else hidden

        shared = len(packed.tokens) < len(wanted)
        kind = torch.bfloat16 if self._bfloat16 else torch.float32
        with self._computing(project):
            out = self.net(
                input_ids=packed.tokens,
                attention_mask=packed.mask(kind) if shared else (packed.owner >= 0).long(),
                position_ids=packed.positions,
                use_cache=False,
            )
        return out.logits.float(), hidden.float()

    @property
    def causal(self) -> bool:
        """Predictions do not depend on later tokens, as BERT's do: found by a trial."""
        tokens = torch.zeros(2, 2, dtype=torch.int64, device=self.device)
        tokens[1, 1] = 1
        with torch.no_grad():
            out = self.net(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                position_ids=torch.arange(2, device=self.device).expand(2, 2),
                use_cache=False,
            )
        first = out.logits[:, 0].float()
        return _close(first[0], first[1], first)

    @cached_property
    def packs(self) -> bool:
        """Sequences that share a row do not see each other, as by a convolution: by a trial."""
        if self.net.config._attn_implementation != "sdpa":
            return False  # other kinds take other masks
        if self._usable_tokens < 3:
            return False
        two = Sequences.join([[1], [2, 1]], [[0, 2, 1], [1, 0]], self.device)
        with self._trial():
            apart, _ = self._read(two, two.before_actions, share=False)
            try:
                together, _ = self._read(two, two.before_actions, share=True)
            except Exception:  # whatever this model does with such a mask
                return False
        return _close(apart, together, apart)

    @cached_property
    def select(self) -> str:
        """Method of the cache that keeps some rows in all kinds of layer, or "": by a trial."""
        if self._usable_tokens < 2:
            return ""
        three = Sequences.join([[0, 1], [1, 0], [1]], [[], [], []], self.device)
        kept = torch.tensor([2, 0], device=self.device)
        token, place = three.tokens[:, :1], three.positions[:, -1:] + 1
        seen = torch.cat([three.mask, three.mask[:, -1:]], -1)
        with self._trial():
            caches = [self(*three[:2], three.positions, cache=True).cache for _ in range(3)]
            if caches[0] is None:
                return ""
            whole = self(token, seen, place, cache=caches[0]).logits[kept]
            for cache, method in zip(caches[1:], ROW_METHODS, strict=True):
                with contextlib.suppress(Exception):  # whatever this kind of cache lacks
                    getattr(cache, method)(kept)
                    part = self(token[kept], seen[kept], place[kept], cache=cache).logits
                    if _close(part, whole, whole):
                        return method
        return ""

    @property
    def _usable_tokens(self) -> int:
        """Number of tokens, or of positions where those are fewer."""
        known = int(self.net.get_input_embeddings().num_embeddings)
        return min(known, self.context or known)

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """Passes in float32 without gradients, whatever the settings say."""
        bfloat16, self._bfloat16 = self._bfloat16, False
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self._bfloat16 = bfloat16

    @property
    def _window(self) -> float:
        """Tokens that every layer sees back, where some layers use a mask of their own."""
        config = self.net.config.get_text_config()
        sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return min((size for size in sizes if size), default=math.inf)

    def rounding(self) -> torch.autocast:
        """Context for many passes without training: it rounds the weights once."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    @contextmanager
    def _computing(self, project: Callable[..., Tensor]) -> Iterator[None]:
        """Precision and recomputation of a pass as set up; `project` computes its logits."""
        with ExitStack() as settings:
            head = self.net.get_output_embeddings()
            settings.enter_context(_replaced([head], project))
            if self._bfloat16:
                settings.enter_context(self.rounding())
            # transformers has this too, but for models whose dropout is on, and without a cache.
            if self._recomputed and torch.is_grad_enabled():
                again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
                settings.enter_context(_replaced(self._recomputed, again))
            yield

    def _exact(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Logits in float32, also where the layers compute in bfloat16."""
        if not self._bfloat16:
            return forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    def log_prob(self, sequences: Sequences, decoding: Decoding) -> Tensor:
        """Log π(token | tokens before) of each action. [B]."""
        logits, _ = self.read(sequences)
        policy = decoding.distribution(logits, sequences.reply_index)
        return policy.log_prob(sequences.actions)

    def merged(self) -> LanguageModel:
        """A copy on the CPU with its adapters, if any, merged into the weights."""
        return LanguageModel(merged(self.net), self.tokenizer)

    def save(self, folder: Path, *, weights: bool = True, within: Path | None = None) -> None:
        """Write a folder that transformers reads, or without weights its configuration alone.

        within: as for `disk.replace`. Raises `OSError`.
        """
        net: Any = merged(self.net) if weights and adapted(self.net) else self.net
        generation = self.generation
        with filling(folder, within) as place:
            try:
                if generation is not None:  # transformers loads settings that it refuses to write
                    net.generation_config = type(generation)()
                (net if weights else net.config).save_pretrained(place)
            finally:
                if generation is not None:
                    net.generation_config = generation
            if generation is not None:
                generation.to_json_file(place / "generation_config.json")
            self.tokenizer.save_pretrained(place)


def _fuse(net: nn.Module) -> None:
    """Replace GPT-2's activation by one operation: it takes a sixth of a small model's time."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(parent, name, nn.GELU(approximate="tanh"))


@contextmanager
def _replaced(modules: Sequence[nn.Module], by: Callable[..., Tensor]) -> Iterator[None]:
    """Call `by(forward, ...)` in place of each module's forward."""
    patched = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(by, module.forward)
    try:
        yield
    finally:
        for module, patch in zip(modules, patched, strict=True):
            del module.forward
            if patch is not None:  # that another library had put there
                module.forward = patch


def check_fit(tokenizer: Any, known: int) -> None:
    """Refuse a tokenizer with more tokens than the model. Raises `UsageError`."""
    if len(tokenizer) > known:
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {known}: they do not "
            "belong together"
        )


def zero_head(width: int) -> nn.Linear:
    """A head of one number, 0 at the start."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class LanguagePolicy(nn.Module):
    """π(token | text so far) and V(text so far), with the interface of `ActorCritic`."""

    normalize_returns = False
    value_scale = ValueScale(NetConfig())

    def __init__(
        self, lm: LanguageModel, decoding: Decoding, critic: LanguageModel | None = None
    ) -> None:
        super().__init__()
        self.lm, self.decoding, self.critic = lm, decoding, critic
        self.value_head = zero_head((critic or lm).width)

    def actor_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.lm.parameters() if p.requires_grad]

    def critic_parameters(self) -> list[nn.Parameter]:
        trunk = [] if self.critic is None else list(self.critic.parameters())
        return [p for p in (*trunk, *self.value_head.parameters()) if p.requires_grad]

    def evaluate(self, sequences: Sequences, *, entropy: bool, value: bool = True) -> Evaluation:
        """Log-probability, entropy and value of each action, given the text before it. All [B]."""
        logits, hidden = self.lm.read(sequences)
        if self.critic is not None and value:
            hidden = self.critic.hidden(sequences, sequences.before_actions)
        policy = self.decoding.distribution(logits, sequences.reply_index)
        log_prob = policy.log_prob(sequences.actions)
        values = self.value_head(hidden).squeeze(-1) if value else torch.zeros_like(log_prob)
        return Evaluation(log_prob, policy.entropy() if entropy else None, values, policy)


def context(config: Any) -> int | None:
    """Maximum length of a sequence of a model with this configuration, if it has one."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def _close(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Logits equal up to rounding, relative to the range of `scale`."""
    return bool((one - other).abs().max() <= 1e-5 * (scale.max() - scale.min()))
