"""Changes what decoder layers do during one run, and undoes it: skipped, observed, fused."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from vllm_nfp.adapter.layers import DecoderLayer
from vllm_nfp.types import Module


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
    """Call ``on_edge(layer index, module, is_start)`` around each module that is timed."""
    handles: list[Any] = []
    try:
        for layer in layers:
            for kind, module in layer.timed:
                handles += _edges(module, layer.index, kind, on_edge)
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
