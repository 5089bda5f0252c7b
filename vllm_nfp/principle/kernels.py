"""Seconds that one kernel takes, for an array of row counts, split by what they are spent on.

"Granularity" and "Predictor" of THEORY.md: a kernel takes max(traffic, padded arithmetic). The
terms of a kernel add up to that time: traffic first, then what plain arithmetic lies above it,
then what padding to tiles and unfilled waves add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import AttentionHeads, Gemm, Quantization

Limit = Literal[
    "memory",
    "tile",
    "wave",
    "experts",
    "query_block",
    "graph_padding",
    "compute",
    "lm_head",
    "communication",
]
FloatArray = npt.NDArray[np.float64]
Terms = dict[Limit, FloatArray]
"""Seconds by what they are spent on, one value for each number of positions."""

GEMM_TILE_ROWS = 64
"""The M of a warpgroup's matrix instruction on Hopper; assumed elsewhere too."""
GEMM_TILE_COLUMNS = 128
"""Assumed: the middle of what cuBLAS and CUTLASS choose between."""
GEMM_MAX_SPLITS = 4
"""Assumed: the library may split the inner dimension this often to fill the device."""
KV_TILE = 128
"""Cached tokens per step of FlashAttention 3's loop at head size 128: the smallest split."""
ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What kernels reach of the data sheet's figures, and what a kernel costs by itself."""

    bandwidth: float
    """Share of peak bytes per second, for memory and links."""
    flops: float
    """Share of peak FLOP/s."""
    kernel_seconds: float
    """Time of a kernel inside a CUDA graph beside its work: launch, ramp and drain."""
    source: str

    def __post_init__(self) -> None:
        for name in ("bandwidth", "flops"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be a share above 0 and at most 1, not {share!r}")
        if not 0 <= self.kernel_seconds < 1:
            raise ValueError(f"kernel_seconds must lie from 0 to 1, not {self.kernel_seconds!r}")


UNCALIBRATED = Efficiency(
    bandwidth=0.85,
    flops=0.75,
    kernel_seconds=2e-6,
    source="uncalibrated: assumed round figures for every device; 0.75 is what the "
    "FlashAttention-3 paper reports of an H100's FP16 peak",
)


@dataclass(frozen=True, slots=True)
class Device:
    """Hardware as kernels reach it: work in, seconds out."""

    hardware: Hardware
    efficiency: Efficiency

    def traffic(self, amount: FloatArray) -> FloatArray:
        """Seconds to move bytes to or from memory."""
        rate = self.hardware.memory_bytes_per_second * self.efficiency.bandwidth
        return amount / rate

    def arithmetic(self, flops: FloatArray, fp8: bool) -> FloatArray:
        """Seconds of arithmetic with every unit busy."""
        return flops / (self.hardware.peak_flops(fp8) * self.efficiency.flops)

    def spilled(self, amount: FloatArray) -> FloatArray:
        """Bytes of an activation that do not fit in L2, where the next kernel would find it."""
        return np.maximum(0.0, amount - self.hardware.l2_bytes)


def roofline(traffic: Terms, arithmetic: Sequence[tuple[Limit, FloatArray]]) -> Terms:
    """Split max(traffic, arithmetic...) into terms that add up to it.

    Each entry of ``arithmetic`` is a fuller account of the same work than the one before, so
    its term is what it adds above all before it.
    """
    terms = dict(traffic)
    level: FloatArray = sum_terms(traffic)
    for limit, seconds in arithmetic:
        raised = np.maximum(level, seconds)
        terms[limit] = raised - level
        level = raised
    return terms


def sum_terms(terms: Mapping[Limit, FloatArray]) -> FloatArray:
    """All terms together."""
    total: FloatArray = np.sum(list(terms.values()), axis=0, dtype=np.float64)
    return total


def gemm_terms(device: Device, gemm: Gemm, tokens: FloatArray) -> Terms:
    """A dense matrix product: rows padded to tiles, output tiles run in waves over the SMs."""
    activations = device.spilled(tokens * gemm.inputs * ACTIVATION_BYTES) + device.spilled(
        tokens * gemm.outputs * ACTIVATION_BYTES
    )
    row_tiles = np.ceil(tokens / GEMM_TILE_ROWS)
    tiles = row_tiles * np.ceil(gemm.outputs / GEMM_TILE_COLUMNS)
    slowdown = np.min(
        [wave_slowdown(tiles * n, device.hardware.num_sms) for n in range(1, GEMM_MAX_SPLITS + 1)],
        axis=0,
    )
    row_flops = 2.0 * gemm.parameters
    plain = device.arithmetic(tokens * row_flops, gemm.fp8)
    padded = device.arithmetic(row_tiles * GEMM_TILE_ROWS * row_flops, gemm.fp8)
    return roofline(
        {"memory": device.traffic(gemm.weight_traffic + activations)},
        (("compute", plain), ("tile", padded), ("wave", padded * slowdown)),
    )


def wave_slowdown(tiles: FloatArray, num_sms: int) -> FloatArray:
    """Time of whole waves over that of the same tiles with every SM busy; 1 or more."""
    return np.ceil(tiles / num_sms) * num_sms / tiles


def awake_experts(tokens: FloatArray, num_experts: int, experts_per_token: int) -> FloatArray:
    """Distinct experts that a step touches under uniform routing, U(T) in THEORY.md."""
    return num_experts * (1.0 - (1.0 - experts_per_token / num_experts) ** tokens)


def moe_block_rows(tokens: FloatArray, quantization: Quantization) -> FloatArray:
    """BLOCK_SIZE_M that vLLM 0.32 picks for a step of ``tokens``, without a tuned config file.

    The rule of ``get_default_config`` in model_executor/layers/fused_moe/fused_moe.py on CUDA,
    for the Triton kernel; a tuned file or another kernel (CUDA for wna16 at small steps) may
    choose otherwise.
    """
    edges = {
        "fp8_block": ((64, 16), (np.inf, 64)),
        "wna16": ((20, 16), (40, 32), (np.inf, 64)),
    }.get(quantization, ((32, 16), (96, 32), (512, 64), (np.inf, 128)))
    limits = [limit for limit, _ in edges]
    rows = np.array([rows for _, rows in edges], dtype=np.float64)
    return rows[np.searchsorted(limits, tokens)]


def expert_terms(
    device: Device,
    gemms: Sequence[Gemm],
    tokens: FloatArray,
    *,
    num_experts: int,
    experts_per_token: int,
    quantization: Quantization,
) -> Terms:
    """Routed experts of one layer: each awake one is read whole and pads its tokens to blocks.

    An expert with m tokens on average fills max(1, m / b + (b - 1) / 2b) blocks of b rows: the
    last block is as likely to hold any number of rows.
    """
    awake = awake_experts(tokens, num_experts, experts_per_token)
    rows = tokens * experts_per_token / awake
    block = moe_block_rows(tokens, quantization)
    padded_rows = np.maximum(block, rows + (block - 1) / 2)
    terms: Terms = {}
    for gemm in gemms:
        row_flops = 2.0 * gemm.parameters * awake
        tiles = awake * padded_rows / block * np.ceil(gemm.outputs / GEMM_TILE_COLUMNS)
        padded = device.arithmetic(padded_rows * row_flops, gemm.fp8)
        slowdown = wave_slowdown(tiles, device.hardware.num_sms)
        added = roofline(
            {"experts": device.traffic(awake * gemm.weight_traffic)},
            (
                ("compute", device.arithmetic(rows * row_flops, gemm.fp8)),
                ("tile", padded),
                ("wave", padded * slowdown),
            ),
        )
        terms = add_terms(terms, added)
    return terms


def attention_tile_rows(rows: FloatArray, head_dim: int) -> FloatArray:
    """Query rows of a tile in FlashAttention 3 on Hopper in 16 bits; assumed elsewhere too.

    From hopper/tile_size.h and heuristics.h: 192 rows up to head size 96, else 128, and 64 at
    head size 128 if they hold all rows.
    """
    full = np.full_like(rows, 192.0 if head_dim <= 96 else 128.0)
    return np.where((rows <= 64) & (head_dim == 128), 64.0, full)


def attention_terms(
    device: Device,
    heads: AttentionHeads,
    *,
    batch_size: int,
    cached_tokens: FloatArray,
    positions: FloatArray,
    tile_rows: int | None,
) -> Terms:
    """Decode attention of one layer: g query heads x N positions packed into query blocks.

    The cache is read once whatever the number of blocks: those of one KV head run side by side
    and share it through L2. A step with few blocks splits the cache to fill the device.
    """
    units = batch_size * heads.kv_heads
    rows = heads.group * positions
    tile = (
        attention_tile_rows(rows, heads.value_dim)
        if tile_rows is None
        else np.full_like(rows, float(tile_rows))
    )
    blocks = np.ceil(rows / tile)
    slowdown = split_slowdown(units * blocks, cached_tokens, device.hardware.num_sms)
    row_flops = units * cached_tokens * heads.flops_per_pair
    padded = device.arithmetic(blocks * tile * row_flops, heads.fp8)
    return roofline(
        {"memory": device.traffic(units * cached_tokens * heads.token_bytes)},
        (
            ("compute", device.arithmetic(rows * row_flops, heads.fp8)),
            ("query_block", padded),
            ("wave", padded * slowdown),
        ),
    )


def split_slowdown(tiles: FloatArray, cached_tokens: FloatArray, num_sms: int) -> FloatArray:
    """Time over that with every SM busy, with the cache split to fill whole waves.

    After num_splits_heuristic in FlashAttention 3's hopper/heuristics.h: no split from 0.8 tiles
    per SM on; below, as many as come closest to filling 1 to 4 waves.
    """
    most = np.where(tiles >= 0.8 * num_sms, 1.0, np.ceil(cached_tokens / KV_TILE))
    filled: FloatArray = np.min(
        [
            wave_slowdown(tiles * np.clip(waves * num_sms // tiles, 1.0, most), num_sms)
            for waves in (1, 2, 3, 4)
        ],
        axis=0,
    )
    return filled


def transfer_terms(device: Device, amount: FloatArray, ranks: int, rounds: int) -> Terms:
    """A ring collective: each rank sends (ranks - 1) / ranks of the bytes in every round.

    An all-reduce has two rounds, an all-gather one.
    """
    rate = device.hardware.link_bytes_per_second * device.efficiency.bandwidth
    return {"communication": rounds * (ranks - 1) / ranks * amount / rate}


def add_terms(*all_terms: Mapping[Limit, FloatArray]) -> Terms:
    """Sum of terms, name by name."""
    total: Terms = {}
    for terms in all_terms:
        for limit, seconds in terms.items():
            total[limit] = total[limit] + seconds if limit in total else seconds
    return total
