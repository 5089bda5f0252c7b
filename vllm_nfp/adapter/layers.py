"""Finds a model's decoder layers and, in each, what reads the KV cache and what is the FFN."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from vllm_nfp.types import Module


class UnsupportedModelError(RuntimeError):
    """No decoder layers were found in the model; the message says what was looked for."""


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer and the modules in it that are timed."""

    index: int
    module: nn.Module
    attention: tuple[nn.Module, ...]
    """The modules that read the KV cache; projections around them are not part."""
    ffn: tuple[nn.Module, ...]
    ffn_kind: Module | None
    """dense_ffn or moe_ffn; None where the layer has no FFN."""


def find_decoder_layers(
    model: nn.Module, contexts: Mapping[str, Any], moe_names: Sequence[str]
) -> tuple[DecoderLayer, ...]:
    """The model's decoder layers in order.

    Args:
        model: the model as loaded.
        contexts: vLLM's map from a layer's name to the module that runs as an opaque op:
            attention modules and MoE layers.
        moe_names: the names among them that are MoE layers.

    Raises:
        UnsupportedModelError: if no list of layers holds the attention modules.
    """
    moe = {id(contexts[name]) for name in moe_names if name in contexts}
    attention = {
        id(module)
        for name, module in contexts.items()
        if isinstance(module, nn.Module) and id(module) not in moe and hasattr(module, "kv_cache")
    }
    stack = _layer_stack(model, attention)
    layers = []
    for index, layer in enumerate(stack):
        found = tuple(m for m in layer.modules() if id(m) in attention)
        if found:
            ffn, kind = _ffn_of(layer, attention, moe)
            layers.append(DecoderLayer(index, layer, found, ffn, kind))
    return tuple(layers)


def _layer_stack(model: nn.Module, attention: set[int]) -> nn.ModuleList:
    """The ModuleList whose direct items hold the most attention modules."""
    best: tuple[int, nn.ModuleList] | None = None
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            held = sum(any(id(m) in attention for m in item.modules()) for item in module)
            if held and (best is None or held > best[0]):
                best = (held, module)
    if best is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of decoder layers with attention in them"
        )
    return best[1]


def _ffn_of(
    layer: nn.Module, attention: set[int], moe: set[int]
) -> tuple[tuple[nn.Module, ...], Module | None]:
    """The layer's children beside attention that hold linear layers or experts; norms do not."""
    from vllm.model_executor.layers.linear import LinearBase

    ffn = tuple(
        child
        for child in layer.children()
        if not any(id(m) in attention for m in child.modules())
        and any(isinstance(m, LinearBase) or id(m) in moe for m in child.modules())
    )
    if not ffn:
        return (), None
    is_moe = any(id(m) in moe for child in ffn for m in child.modules())
    return ffn, Module.MOE_FFN if is_moe else Module.DENSE_FFN


def linear_layers(layer: DecoderLayer) -> dict[str, Any]:
    """The layer's linear layers by their names within it."""
    from vllm.model_executor.layers.linear import LinearBase

    return {
        name: module
        for name, module in layer.module.named_modules()
        if isinstance(module, LinearBase) and hasattr(module, "weight")
    }


def sample_layers(layers: Sequence[DecoderLayer], per_kind: int) -> tuple[DecoderLayer, ...]:
    """Layers to time: the first, the last, and evenly between, for each kind of layer.

    Args:
        layers: all decoder layers.
        per_kind: how many of each kind; 0 takes all of them.
    """
    if per_kind == 0:
        return tuple(layers)
    kinds: dict[tuple[Any, ...], list[DecoderLayer]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    chosen = [layer for group in kinds.values() for layer in _spread(group, per_kind)]
    return tuple(sorted(chosen, key=lambda layer: layer.index))


def _kind(layer: DecoderLayer) -> tuple[Any, ...]:
    # The cache of a sparse attention's indexer has no window, nor has MLA before 0.29.
    windows = tuple(str(getattr(m, "sliding_window", None)) for m in layer.attention)
    return (layer.ffn_kind, windows)


def _spread(group: Sequence[DecoderLayer], count: int) -> list[DecoderLayer]:
    if count >= len(group):
        return list(group)
    if count == 1:
        return [group[len(group) // 2]]
    step = (len(group) - 1) / (count - 1)
    return [group[round(i * step)] for i in range(count)]


def can_skip(layer: DecoderLayer) -> bool:
    """Whether the layer's inputs can stand in for its outputs."""
    return "hidden_states" in inspect.signature(layer.module.forward).parameters


@contextmanager
def skipped(layers: Sequence[DecoderLayer]) -> Iterator[None]:
    """Have the layers return their inputs while the context lasts."""
    done: list[nn.Module] = []
    try:
        for layer in layers:
            layer.module.__dict__["forward"] = _identity(layer.module.forward)
            done.append(layer.module)
        yield
    finally:
        for module in done:
            module.__dict__.pop("forward", None)


def _identity(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that changes nothing: returns (hidden_states, residual), or hidden_states alone."""
    signature = inspect.signature(forward)

    def passthrough(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        hidden = values["hidden_states"]
        if "residual" not in signature.parameters:
            return hidden
        residual = values.get("residual")
        # A copy: a fused norm adds in place, and must not find one tensor in both places.
        return hidden, hidden.clone() if residual is None else residual

    return passthrough


@contextmanager
def observed(
    layers: Sequence[DecoderLayer], on_edge: Callable[[int, Module, bool], None]
) -> Iterator[None]:
    """Call ``on_edge(layer index, module, is_start)`` around each attention and FFN call."""
    handles: list[Any] = []
    try:
        for layer in layers:
            for module in layer.attention:
                handles += _edges(module, layer.index, Module.ATTENTION, on_edge)
            for module in layer.ffn:
                if layer.ffn_kind is not None:
                    handles += _edges(module, layer.index, layer.ffn_kind, on_edge)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered(
    layers: Sequence[DecoderLayer], on_layer: Callable[[int | None], None]
) -> Iterator[None]:
    """Call ``on_layer(index)`` as each layer begins and ``on_layer(None)`` as it ends."""
    handles: list[Any] = []

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        on_layer(None)

    def before(index: int) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _args: on_layer(index)

    try:
        for layer in layers:
            handles.append(layer.module.register_forward_pre_hook(before(layer.index)))
            handles.append(layer.module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edges(
    module: nn.Module, index: int, kind: Module, on_edge: Callable[[int, Module, bool], None]
) -> list[Any]:
    def before(_module: nn.Module, _args: Any) -> None:
        on_edge(index, kind, True)

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        on_edge(index, kind, False)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


@contextmanager
def fused_ops(layers: Sequence[DecoderLayer]) -> Iterator[None]:
    """Have custom ops in the timed layers run their fused kernels instead of plain PyTorch.

    Under torch.compile vLLM gives such an op its plain implementation, for the compiler to fuse.
    The timed run is not compiled: without this, the activation of an FFN would take several
    kernels, and a rotary embedding would load one that serving does not (see ``light_ops``).
    """
    from vllm.model_executor.custom_op import CustomOp
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
    from vllm.platforms import current_platform

    changed: list[tuple[nn.Module, Any]] = []
    try:
        if current_platform.is_cuda():
            rotary = _rotary_ops(layers, RotaryEmbeddingBase)
            for op in itertools.chain(_custom_ops(layers, CustomOp), rotary):
                changed.append((op, op._forward_method))
                op._forward_method = op.forward_cuda
        yield
    finally:
        for op, method in changed:
            op._forward_method = method


def _custom_ops(layers: Sequence[DecoderLayer], base: type[nn.Module]) -> Iterator[Any]:
    """Ops of dense FFNs that have a CUDA kernel but are set to the plain implementation."""
    for layer in layers:
        if layer.ffn_kind is not Module.DENSE_FFN:
            continue
        for child in layer.ffn:
            for op in child.modules():
                has_kernel = isinstance(op, base) and "forward_cuda" in type(op).__dict__
                if has_kernel and op._forward_method != op.forward_cuda:
                    yield op


def _rotary_ops(layers: Sequence[DecoderLayer], base: type[nn.Module]) -> tuple[nn.Module, ...]:
    """Rotary embeddings, once each: layers share them."""
    modules = (module for layer in layers for module in layer.module.modules())
    return tuple(dict.fromkeys(module for module in modules if isinstance(module, base)))
