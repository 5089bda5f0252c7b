"""Seconds of one layer's decode attention: a time model shared by all backends.

A step gives each KV head ``group x N`` query rows. A backend packs them into query blocks (the M
of its tile), walks the cache in blocks of tokens, and splits the cache to fill the device. One
such piece of work, a query block against a split, is a work tile; an SM runs one at a time, so
work tiles run in waves::

    t = fixed + soft maximum(traffic, waves x blocks per work tile x block time)
        + query, output and partial results + one block that nothing hides + waves x ramp

The query blocks of one KV head run side by side and share its cache through L2, so memory time
does not grow with their number. Only FlashAttention 3 is fitted (16 and 8 bits, head size 128, on
an H100); see :data:`ATTENTION_BACKENDS` for what is assumed of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from vllm_nfp.principle.attention.flash_attention_3 import FLASH_ATTN_3
from vllm_nfp.principle.attention.tiling import (
    MAX_GRAPH_TOKENS,
    AttentionBackend,
    AttentionStep,
    Schedule,
)
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import ACTIVATION_BYTES, FloatArray, Terms, soft_maximum

PARTIAL_BYTES = 4
"""Splits leave their partial outputs and the sums of their weights in FP32."""
SOFTMAX_FLOPS = 220.0
"""Softmax of one score, in FLOPs that take as long on the matrix units.

From the forward speeds at head sizes 64, 128 and 256 in the FlashAttention-3 paper (497, 648 and
756 TFLOP/s, figure 5): seconds per score are linear in the head size, with this intercept.
"""
BUSY_SMS = 0.5
"""Assumed, as of routed experts: share of the SMs that must have a work tile for memory to run at
full rate, where tiles are small (:attr:`AttentionBackend.tiles_per_sm`)."""
REFERENCE_FLOPS = 512.0
"""FLOPs per score at head size 128, where :attr:`AttentionConstants.flops` is taken."""


@dataclass(frozen=True, slots=True)
class AttentionConstants:
    """What FlashAttention 3 reaches of the data sheet's figures, and what it costs by itself.

    The defaults were fitted to vLLM 0.32 on an H100 SXM with cold L2: benchmarks/README.md says
    to what, and how well they predict other shapes. Shares carry over to other devices.
    """

    bandwidth: float = 0.881
    """Share of peak bytes per second that reading the cache reaches."""
    flops: float = 0.753
    """Share of peak 16-bit FLOP/s at head size 128 with both warpgroups of a tile at work."""
    flops_fp8: float = 0.283
    """The same of peak 8-bit FLOP/s, with an 8-bit cache; V is transposed on the way."""
    one_warpgroup_fp8: float = 0.598
    """Speed of the 8-bit tile of 64 rows, which one warpgroup runs, relative to the full one."""
    overlap: float = 5.11
    """Exponent p of the soft maximum (traffic^p + arithmetic^p)^(1/p); infinite: a hard one."""
    query_bandwidth: float = 0.427
    """Bytes per second of queries and outputs, relative to peak memory bandwidth."""
    partial_bandwidth: float = 0.781
    """The same of partial results; they stay in L2 in part, so it may exceed 1."""
    exposed_blocks: float = 0.824
    """Blocks of a work tile's arithmetic that no load hides: its first or last."""
    kernel_seconds: float = 8.47e-6
    """Per layer: cache update, attention and combine kernel, launched in a CUDA graph."""
    wave_seconds: float = 1.39e-6
    """Per wave: filling and draining the pipeline."""
    combine_seconds: float = 1.2e-6
    """Least that combining splits adds."""
    quantize_seconds: float = 1.73e-6
    """Per layer with an 8-bit cache: quantizing the query."""
    latent_seconds: float = 0.0
    """Per layer of latent attention: norms, rotary, both products of each head with the latent's
    matrices and the copies around them, as far as no dense product counts them."""
    latent_passes: float = 0.0
    """Times that each head's query row passes memory in these kernels."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                not math.isfinite(value)
                or value < 0
                or (value == 0 and not _may_be_zero(field.name))
            ):
                raise ValueError(f"{field.name} must be finite and above 0, not {value!r}")
        for name in ("bandwidth", "flops", "flops_fp8"):
            if getattr(self, name) > 1:
                raise ValueError(
                    f"{name} must be a share of at most 1, not {getattr(self, name)!r}"
                )
        if self.overlap < 1:
            raise ValueError(f"overlap must be 1 or more, not {self.overlap!r}")


def _may_be_zero(name: str) -> bool:
    return name.endswith("_seconds") or name in ("exposed_blocks", "latent_passes")


H100_ATTENTION = AttentionConstants()


def attention_terms(
    hardware: Hardware,
    heads: AttentionHeads,
    *,
    batch_size: int,
    cached_tokens: FloatArray,
    positions: FloatArray,
    constants: AttentionConstants = H100_ATTENTION,
    backend: AttentionBackend | None = None,
    windowed: bool = False,
    causal: bool = True,
    max_graph_tokens: int = MAX_GRAPH_TOKENS,
) -> Terms:
    """Seconds of one layer's attention beside :func:`fixed_seconds`, by what they are spent on.

    - memory: the cache, queries and outputs, and the partial results of splits.
    - compute: what plain arithmetic on all SMs lies above it.
    - query_block: what padding to query blocks adds, and the block that no load hides.
    - wave: what unfilled waves and padded cache blocks add, and each wave's ramp.

    Causal and bidirectional blocks of N positions differ here by their tiles alone. That holds at
    head size 128. At 64, causal blocks of two positions were seen to take 4 to 24 % longer than
    one position, bidirectional ones 1 to 4 %: not modelled, so that NFP of causal blocks is
    predicted too high there.
    """
    step = AttentionStep(
        heads,
        batch_size,
        cached_tokens,
        positions,
        hardware.num_sms,
        windowed,
        causal,
        max_graph_tokens,
    )
    rules = FLASH_ATTN_3 if backend is None else backend
    schedule = rules.schedule(step)
    tiles = schedule.tiles
    score = _score_seconds(hardware, heads, constants)
    speed = np.where(tiles.one_warpgroup & heads.fp8, constants.one_warpgroup_fp8, 1.0)
    block = tiles.tile_rows * tiles.tile_tokens * score / speed

    rows = batch_size * heads.kv_heads * step.packed_rows
    padded_rows = batch_size * tiles.units * tiles.query_blocks * tiles.tile_rows
    plain = rows * cached_tokens * score / hardware.num_sms
    padded = padded_rows * cached_tokens * score / speed / hardware.num_sms
    beside = np.ceil(schedule.work_tiles / (schedule.waves * hardware.num_sms))
    whole = schedule.waves * beside * schedule.blocks * block

    rate = hardware.memory_bytes_per_second
    cache_bytes = batch_size * heads.kv_heads * cached_tokens * heads.token_bytes
    traffic = cache_bytes / (rate * constants.bandwidth)
    # Query blocks of one KV head walk the same cache: more of them ask for no more of it at once.
    readers = batch_size * heads.kv_heads * schedule.splits
    asking = readers / (BUSY_SMS * hardware.num_sms)
    slowed = traffic / np.minimum(1.0, asking) if rules.tiles_per_sm > 1 else traffic
    levels = [
        soft_maximum(moved, arithmetic, constants.overlap)
        for moved, arithmetic in (
            (traffic, plain),
            (traffic, np.maximum(plain, padded)),
            (slowed, np.maximum(plain, whole)),
        )
    ]
    return {
        "memory": traffic
        + rows * _query_bytes(heads) / (rate * constants.query_bandwidth)
        + _combine_seconds(schedule, rows, heads, rate, constants),
        "compute": levels[0] - traffic,
        "query_block": levels[1] - levels[0] + constants.exposed_blocks * block,
        "wave": levels[2] - levels[1] + schedule.waves * constants.wave_seconds,
    }


def latent_cost(
    hardware: Hardware, heads: AttentionHeads, constants: AttentionConstants, tokens: FloatArray
) -> tuple[float, Terms]:
    """Seconds per layer of latent attention's small kernels: fixed, and growing with the rows."""
    row_bytes = heads.group * heads.score_dim * ACTIVATION_BYTES
    passed = constants.latent_passes * row_bytes * tokens
    return constants.latent_seconds, {"memory": passed / hardware.memory_bytes_per_second}


def fixed_seconds(heads: AttentionHeads, constants: AttentionConstants = H100_ATTENTION) -> float:
    """Seconds per layer that depend on nothing: the cache update and all launches included."""
    return constants.kernel_seconds + (constants.quantize_seconds if heads.fp8 else 0.0)


def _score_seconds(
    hardware: Hardware, heads: AttentionHeads, constants: AttentionConstants
) -> float:
    """Seconds on one SM for one query row and one cached token."""
    share = constants.flops
    if heads.fp8 and hardware.fp8_flops is not None:
        share = constants.flops_fp8
    rate = share * hardware.peak_flops(heads.fp8) / hardware.num_sms
    relative = (heads.flops_per_pair + SOFTMAX_FLOPS) / (REFERENCE_FLOPS + SOFTMAX_FLOPS)
    return REFERENCE_FLOPS / rate * relative


def _query_bytes(heads: AttentionHeads) -> int:
    return (heads.score_dim + heads.value_dim) * ACTIVATION_BYTES


def _combine_seconds(
    schedule: Schedule,
    rows: FloatArray,
    heads: AttentionHeads,
    rate: float,
    constants: AttentionConstants,
) -> FloatArray:
    """Partial results written and read back; 0 without splits."""
    partial = 2 * schedule.splits * rows * (heads.value_dim + 1) * PARTIAL_BYTES
    seconds = np.hypot(constants.combine_seconds, partial / (rate * constants.partial_bandwidth))
    return np.where(schedule.splits > 1, seconds, 0.0)
