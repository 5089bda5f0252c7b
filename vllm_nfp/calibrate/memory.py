"""Which plans may have their engines up at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.principle.hf_config import shape_from_config

SHARE_OF_FREE = 0.85
"""Fraction of the free memory that engines may use; the rest is a reserve."""
BESIDE_BYTES = 5 << 29
"""2.5 GiB for each engine: CUDA context, activations, graphs, copies of linear layers."""
_WEIGHT_BYTES = 2
"""FP8 models too start from 16-bit weights, which are quantized after loading."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Plans whose engines run side by side, group after group.

    Attributes:
        groups: in the order of the plans.
        too_large: plans that do not fit alone.
    """

    groups: tuple[tuple[ModelPlan, ...], ...]
    too_large: tuple[ModelPlan, ...]


def needed_bytes(plan: ModelPlan) -> int:
    """Estimate of the GPU memory that the plan's engine takes.

    Raises:
        ShapeError: if the plan's config gives no shape.
    """
    weights = shape_from_config(plan.config).total_parameters * _WEIGHT_BYTES
    return weights + plan.kv_cache_bytes + BESIDE_BYTES


def group(plans: Sequence[ModelPlan], free_bytes: int) -> Groups:
    """Put each plan into the first group that has room for it.

    Args:
        free_bytes: of the GPU, before anything starts.
    """
    budget = int(free_bytes * SHARE_OF_FREE)
    groups: list[list[ModelPlan]] = []
    rooms: list[int] = []
    too_large: list[ModelPlan] = []
    for plan in plans:
        needed = needed_bytes(plan)
        if needed > budget:
            too_large.append(plan)
            continue
        place = next((i for i, room in enumerate(rooms) if room >= needed), len(groups))
        if place == len(groups):
            groups.append([])
            rooms.append(budget)
        groups[place].append(plan)
        rooms[place] -= needed
    return Groups(tuple(map(tuple, groups)), tuple(too_large))
