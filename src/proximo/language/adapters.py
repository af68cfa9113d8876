"""LoRA, W x + (α/r) B A x: the model's own W stays, and only A and B of rank r are trained.

Hu et al. 2021 (arXiv 2106.09685). The one module that knows peft.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from proximo.language.config import ModelConfig
from proximo.types import UsageError

Module = TypeVar("Module", bound=nn.Module)


def add_adapters(net: Any, settings: ModelConfig, seed: int) -> None:
    """Put adapters beside layers of a causal language model, and freeze all else in it.

    B begins at 0, so that nothing changes at first. Raises `UsageError` for targets that it lacks.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError("model.lora_rank needs peft: pip install 'proximo[language]'") from error
    for target in settings.lora_targets:
        _check_target(net, target)
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,
        target_modules=list(settings.lora_targets) or "all-linear",
        exclude_modules=None if settings.lora_targets else _other_than_linear(net) or None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # GPT-2's layers hold W transposed, which peft sees for itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        # Of fused experts: peft gives them patterns of its own, and warns of those.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        try:
            peft.inject_adapter_in_model(config, net)
        except ValueError as error:
            raise UsageError(f"model.lora_targets cannot have adapters: {error}") from error
    net.eval()


def _other_than_linear(net: Any) -> list[str]:
    """Layers that are linear by their class and do more than W x + b, such as a router's."""
    # peft refuses these, as their state space layers may use the weight without its layer.
    mixers = net.config.model_type in ("falcon_h1", "nemotron_h")
    return [
        name
        for name, module in net.named_modules()
        if (isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward)
        or (mixers and name.endswith(".out_proj"))
    ]


def _check_target(net: Any, target: str) -> None:
    modules = dict(net.named_modules())
    found = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
    if not found:
        own = sorted({n.rpartition(".")[2] for n, m in modules.items() if hasattr(m, "weight")})
        raise UsageError(
            f"model.lora_targets has {target!r}, which this model lacks; it has: {', '.join(own)}"
        )
    words, head = net.get_input_embeddings(), net.get_output_embeddings()
    if words.weight is head.weight and (words in found or head in found):
        raise UsageError(
            f"model.lora_targets has {target!r}, but in this model the first and the last layer "
            "share their weights: adapters of one of them could not be merged"
        )


def adapted(net: nn.Module) -> list[tuple[str, Any]]:
    """The layers that have adapters, by name."""
    if not hasattr(net, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, m) for name, m in net.named_modules() if isinstance(m, BaseTunerLayer)]


def merged(net: nn.Module) -> nn.Module:
    """A copy on the CPU with W + (α/r) B A in W's place: a plain model again."""
    own = {id(p): nn.Parameter(p.detach().to("cpu", copy=True)) for p in net.parameters()}
    net = copy.deepcopy(net, own).cpu()
    for name, layer in reversed(adapted(net)):  # fused experts: a layer may stand in another one
        layer.merge()
        net.set_submodule(name, layer.get_base_layer())
    vars(net).pop("peft_config", None)
    return net


@contextmanager
def switched_off(net: nn.Module) -> Iterator[None]:
    """The model as it is without its adapters; for what needs no gradient."""
    layers = [layer for _, layer in adapted(net)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def twin(module: Module) -> Module:
    """A copy of what is trained. What is frozen never changes, so both have the same."""
    frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, frozen)
