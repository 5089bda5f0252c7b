"""A module of a model at one batch size and context: its measured and its predicted curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vllm_nfp.crossing import count_free
from vllm_nfp.types import Module

Group = Literal["reference", "set-aside"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One module of one model in one cell: measured and predicted curves on the same grid."""

    group: Group
    source: str
    """kernel or whole model."""
    model: str
    module: Module
    decoding: str
    """causal or block."""
    batch_size: int
    context: int
    positions: tuple[int, ...]
    measured_ratio: tuple[float, ...]
    predicted_ratio: tuple[float, ...]
    measured_seconds: float
    predicted_seconds: float
    """Both at N = 1."""
    idle_compute_nfp: int
    step_at: Mapping[int, int]
    """Measured NFP -> positions in a granularity step there."""


def first_crossing(
    positions: Sequence[int], ratios: Sequence[float], epsilon: float
) -> tuple[int, bool]:
    """Largest N whose ratio, and that of every N before it, is at most 1 + epsilon."""
    free = count_free(ratios, epsilon)
    return positions[free - 1], free == len(positions)
