"""Weights of a model's linear layers: their bytes, and copies of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def with_own_weights(linear: Any) -> Any:
    """The same layer on a copy of its weights; vLLM's parameter classes refuse a deep copy."""
    twin = copy.copy(linear)
    twin._parameters = {
        name: None if p is None else nn.Parameter(p.detach().clone(), requires_grad=False)
        for name, p in linear._parameters.items()
    }
    return twin


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights, those included that vLLM has packed for a CPU and forgotten."""
    held = sum(p.numel() * p.element_size() for p in module.parameters())
    return int(held) + sum(map(_packed_bytes, module.modules()))


def _packed_bytes(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    inputs, outputs = _size(module, "input"), _size(module, "output")
    if not isinstance(weight, torch.Tensor) or weight.numel():
        return 0
    return inputs * outputs * int(weight.element_size())


def _size(module: nn.Module, side: str) -> int:
    """Inputs or outputs of a linear layer on this rank; 0 for other modules."""
    whole = getattr(module, f"{side}_size", 0)
    return int(getattr(module, f"{side}_size_per_partition", whole) or 0)
