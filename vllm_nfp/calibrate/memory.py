"""Which plans a GPU can run, and which of them may have their engines up at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.calibrate.device import Gpu
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.principle.hardware import Hardware
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


@dataclass(frozen=True, slots=True)
class RunnableGroups:
    """Plans that a GPU can run, group after group.

    Attributes:
        left_out: why each other plan is not run, one sentence each.
    """

    groups: tuple[tuple[ModelPlan, ...], ...]
    left_out: tuple[str, ...]


def groups_on(plans: Sequence[ModelPlan], gpu: Gpu, hardware: Hardware | None) -> RunnableGroups:
    """The plans that the GPU has the units and the memory for.

    Args:
        hardware: its data sheet; None: not known.
    """
    left_out = []
    if not gpu.has_fp8 or (hardware is not None and hardware.fp8_flops is None):
        left_out = [f"{p.label} is left out: {gpu.name} has no FP8" for p in plans if p.fp8]
        plans = [plan for plan in plans if not plan.fp8]
    found = group(plans, gpu.free_bytes)
    left_out += [
        f"{plan.label} is left out: it needs about {needed_bytes(plan) / 2**30:.1f} GiB of GPU "
        f"memory, {gpu.free_bytes / 2**30:.1f} GiB are free"
        for plan in found.too_large
    ]
    return RunnableGroups(found.groups, tuple(left_out))
