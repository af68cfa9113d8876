"""LoRA, W x + (α/r) B A x: the weight W is frozen, and only A and B of rank r are trained.

Hu et al. 2021 (arXiv 2106.09685). The one module that knows peft.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from proximo.disk import check_regular, read
from proximo.errors import UsageError
from proximo.language.config import ModelConfig

MAX_CONFIG_BYTES = 2**20  # size of an adapter's configuration at most

Module = TypeVar("Module", bound=nn.Module)


def add_adapters(net: Any, settings: ModelConfig, seed: int) -> None:
    """Add adapters, at first without effect, and freeze other weights. Raises `UsageError`."""
    for target in settings.lora_targets:
        _check_target(net, target)
    rank = settings.lora_rank
    config = {
        "r": rank,
        "lora_alpha": 2 * rank if settings.lora_alpha is None else settings.lora_alpha,
        "target_modules": list(settings.lora_targets) or "all-linear",
        "exclude_modules": None if settings.lora_targets else _other_than_linear(net) or None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            _inject(net, config)
        except ValueError as error:
            raise UsageError(f"model.lora_targets cannot have adapters: {error}") from error
    net.eval()


def _inject(net: nn.Module, settings: dict[str, Any]) -> None:
    try:
        import peft
    except ImportError as error:
        raise UsageError("adapters need peft: pip install 'proximo[language]'") from error
    with warnings.catch_warnings():
        # GPT-2's layers hold W transposed, which peft detects.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        # For fused experts peft sets patterns and then warns of them.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        peft.inject_adapter_in_model(peft.LoraConfig(**settings), net)


def _other_than_linear(net: Any) -> list[str]:
    """Names of layers of a linear class that compute more than W x + b, such as routers."""
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
    layers = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
    if not layers:
        known = sorted({n.rpartition(".")[2] for n, m in modules.items() if hasattr(m, "weight")})
        raise UsageError(
            f"model.lora_targets has {target!r}, which this model lacks; it has: {', '.join(known)}"
        )
    words, head = net.get_input_embeddings(), net.get_output_embeddings()
    if words.weight is head.weight and (words in layers or head in layers):
        raise UsageError(
            f"model.lora_targets has {target!r}, but in this model the first and the last layer "
            "share their weights: adapters of one of them could not be merged"
        )


def adapted(net: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the layers with adapters."""
    if not hasattr(net, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, m) for name, m in net.named_modules() if isinstance(m, BaseTunerLayer)]


def merged(net: nn.Module) -> nn.Module:
    """A copy on the CPU with W + (α/r) B A in place of W, and no adapters."""
    copies = {id(p): nn.Parameter(p.detach().to("cpu", copy=True)) for p in net.parameters()}
    net = copy.deepcopy(net, copies).cpu()
    _merge(net)
    return net


def _merge(net: nn.Module) -> None:
    for name, layer in reversed(adapted(net)):  # fused experts: a layer may stand in another one
        layer.merge()
        net.set_submodule(name, layer.get_base_layer())
    vars(net).pop("peft_config", None)


class Adapter(NamedTuple):
    """A LoRA adapter stored in a model's folder."""

    settings: dict[str, Any]  # of a `peft.LoraConfig`
    weights: Path


def _is_rank(x: Any) -> bool:
    return type(x) is int and 0 < x <= 2**16


def _is_scale(x: Any) -> bool:
    return type(x) in (int, float) and 0 <= x <= 1e6


def _of_layers(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: type(x) is dict and all(_is_name(k) and check(v) for k, v in x.items())


SETTINGS: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_scale,
    "target_modules": lambda x: x == "all-linear" or (type(x) is list and all(map(_is_name, x))),
    "fan_in_fan_out": lambda x: type(x) is bool,
    "use_rslora": lambda x: type(x) is bool,
    "rank_pattern": _of_layers(_is_rank),
    "alpha_pattern": _of_layers(_is_scale),
    "init_lora_weights": lambda x: x in (True, False, "gaussian"),  # others change the model itself
}
"""Settings that are read, with their checks: others could make peft import modules by name."""
WITHOUT_EFFECT = {
    *("peft_type", "task_type", "bias", "inference_mode", "lora_dropout", "ensure_weight_tying"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "runtime_config"),
    *("megatron_core", "qalora_group_size"),
}
"""Settings without an effect on the merged weights."""


def _is_name(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch(r"[\w.]{1,200}", x) is not None


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter stored in a folder, if any. Raises `UsageError` unless it is plain LoRA."""
    file = folder / "adapter_config.json"
    if not file.exists():
        return None
    try:
        config = json.loads(read(file, MAX_CONFIG_BYTES))
        kind, bias = config.get("peft_type"), config.get("bias", "none")
        settings = {name: config[name] for name in SETTINGS.keys() & config.keys()}
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UsageError(f"the adapter {file} cannot be read: {error}") from error
    if kind != "LORA" or bias != "none" or "target_modules" not in settings:
        raise UsageError(
            f"the adapter {file} has peft_type {kind!r:.80} and bias {bias!r:.80}: only LORA, "
            "without bias and with target_modules, is read"
        )
    for name, value in config.items():
        wrong = value if name not in SETTINGS else not SETTINGS[name](value)
        if wrong and name not in WITHOUT_EFFECT:
            raise UsageError(
                f"the adapter {file} has {name} {value!r:.80}, which is not read: merge it into "
                "its model by the program that wrote it"
            )
    return Adapter(settings, folder / "adapter_model.safetensors")


def apply_adapter(net: nn.Module, adapter: Adapter) -> None:
    """Merge an adapter into the weights of its model. Raises `UsageError` if it does not fit."""
    try:
        check_regular(adapter.weights)
        saved = load_file(adapter.weights)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the adapter {adapter.weights} cannot be read: {error}") from error
    ranks = [adapter.settings.get("r", 8), *adapter.settings.get("rank_pattern", {}).values()]
    if max(ranks) > max((min(x.shape) for x in saved.values() if x.ndim > 1), default=0):
        raise UsageError(f"the adapter {adapter.weights} does not fit its configuration: see r")
    _inject(net, adapter.settings)
    injected = {
        name.replace(".default.", ".").removesuffix(".default"): x
        for name, x in net.named_parameters()
        if ".lora_" in name
    }
    saved = {name.removeprefix("base_model.model."): x for name, x in saved.items()}
    for name in sorted(injected.keys() | saved.keys()):
        there, here = saved.get(name), injected.get(name)
        if there is None or here is None or there.shape != here.shape:
            raise UsageError(f"the adapter {adapter.weights} does not fit its model: see {name!r}")
        here.data.copy_(there)
    _merge(net)
    net.requires_grad_(True)


@contextmanager
def adapters_disabled(net: nn.Module) -> Iterator[None]:
    """The model without its adapters, for passes without gradients."""
    layers = [layer for _, layer in adapted(net)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def copy_trainable(module: Module) -> Module:
    """A copy with trainable weights of its own; the frozen ones are shared."""
    frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, frozen)
