"""Finds a model's decoder layers and, in each, what reads the KV cache and what is the FFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    states: tuple[nn.Module, ...] = ()
    """The modules that keep a recurrent state; their projections are part of them."""

    @property
    def timed(self) -> tuple[tuple[Module, nn.Module], ...]:
        """What is timed in it, each under its name."""
        ffn_kind = self.ffn_kind
        return (
            *((Module.ATTENTION, module) for module in self.attention),
            *((Module.LINEAR_ATTENTION, module) for module in self.states),
            *((ffn_kind, module) for module in self.ffn if ffn_kind is not None),
        )

    @property
    def modules(self) -> tuple[Module, ...]:
        """The names, once each."""
        return tuple(dict.fromkeys(kind for kind, _ in self.timed))


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
    from vllm.model_executor.layers.mamba.abstract import MambaBase

    moe = {id(contexts[name]) for name in moe_names if name in contexts}
    caching = [
        module
        for module in contexts.values()
        if isinstance(module, nn.Module) and id(module) not in moe and hasattr(module, "kv_cache")
    ]
    states = {id(module) for module in caching if isinstance(module, MambaBase)}
    both = {id(module) for module in caching}
    stack = _layer_stack(model, both)
    layers = []
    for index, layer in enumerate(stack):
        found = [module for module in layer.modules() if id(module) in both]
        ffn, kind = _ffn_of(layer, both, moe)
        if found or (kind is not None and states):
            attention = tuple(module for module in found if id(module) not in states)
            kept = tuple(module for module in found if id(module) in states)
            layers.append(DecoderLayer(index, layer, attention, ffn, kind, kept))
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
    return (layer.ffn_kind, windows, len(layer.states))


def _spread(group: Sequence[DecoderLayer], count: int) -> list[DecoderLayer]:
    if count >= len(group):
        return list(group)
    if count == 1:
        return [group[len(group) // 2]]
    step = (len(group) - 1) / (count - 1)
    return [group[round(i * step)] for i in range(count)]
