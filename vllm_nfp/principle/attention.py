"""Decode attention of one layer, as the kernels of vLLM's attention backends run it.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.idle_compute import PredictionError
from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import ACTIVATION_BYTES, FloatArray, Terms, soft_maximum
from vllm_nfp.text import hint, same_name

PARTIAL_BYTES = 4
"""Splits leave their partial outputs and the sums of their weights in FP32."""
SOFTMAX_FLOPS = 220.0
"""Softmax of one score, in FLOPs that take as long on the matrix units.

From the forward speeds at head sizes 64, 128 and 256 in the FlashAttention-3 paper (497, 648 and
756 TFLOP/s, figure 5): seconds per score are linear in the head size, with this intercept.
"""
REFERENCE_FLOPS = 512.0
"""FLOPs per score at head size 128, where :attr:`AttentionConstants.flops` is taken."""
MAX_GRAPH_SPLITS = 32
"""vLLM 0.32's flash_attn_max_num_splits_for_cuda_graph, the bound inside CUDA graphs."""
MAX_GRAPH_TOKENS = 512
"""vLLM 0.32's default max_cudagraph_capture_size; larger steps take FlashAttention's own bound."""
MAX_SPLITS = 128
"""The bound on splits that FlashAttention 2 and 3 give their heuristics."""
GRANULE_ROWS = 64
"""Rows between the steps of most attention kernels."""

_HOPPER = ("H100", "H200", "H20", "H800", "GH200")


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
    return name.endswith("_seconds") or name == "exposed_blocks"


H100_ATTENTION = AttentionConstants()


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """One decode step as an attention kernel sees it, for an array of N.

    Attributes:
        heads: one rank's heads.
        batch_size: sequences, all of one length.
        cached_tokens: keys that each sequence's positions see, new ones included, for each N.
        positions: N, query positions per sequence.
        num_sms: SMs of the device.
        windowed: whether the layer has a sliding window, for which kernels take other tiles.
        causal: whether a position sees only those before it; decides a tile at head size 64.
        max_graph_tokens: the largest step that runs in a CUDA graph.
    """

    heads: AttentionHeads
    batch_size: int
    cached_tokens: FloatArray
    positions: FloatArray
    num_sms: int
    windowed: bool = False
    causal: bool = True
    max_graph_tokens: int = MAX_GRAPH_TOKENS

    @property
    def packed_rows(self) -> FloatArray:
        """Query rows per sequence and KV head."""
        return self.heads.group * self.positions


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a kernel cuts its work: query rows, cached tokens, and groups that share neither.

    Attributes:
        units: groups of query rows per sequence that walk the cache apart.
        rows: query rows of each.
        tile_rows, tile_tokens: size of a block.
        one_warpgroup: whether one warpgroup runs the tile alone.
    """

    units: FloatArray
    rows: FloatArray
    tile_rows: FloatArray
    tile_tokens: FloatArray
    one_warpgroup: npt.NDArray[np.bool_]

    @property
    def query_blocks(self) -> FloatArray:
        """Query blocks of a unit."""
        return np.ceil(self.rows / self.tile_rows)

    def kv_blocks(self, cached_tokens: FloatArray) -> FloatArray:
        """Blocks of the cache that each query block walks."""
        return np.ceil(cached_tokens / self.tile_tokens)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The work tiles of a step and how they run.

    Attributes:
        tiles: the size of blocks.
        splits: splits of the cache that hold any block.
        blocks: blocks of the cache in a split.
        work_tiles: query blocks of all sequences and heads, times splits.
        waves: rounds in which the SMs run them.
    """

    tiles: Tiles
    splits: FloatArray
    blocks: FloatArray
    work_tiles: FloatArray
    waves: FloatArray


TileRule = Callable[[AttentionStep], Tiles]
SplitRule = Callable[[AttentionStep, Tiles], FloatArray]


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """The tile and split rules of one of vLLM's attention backends."""

    name: str
    tiles: TileRule
    splits: SplitRule
    source: str
    """Where the rules come from."""
    assumed: bool = True
    """Whether the time constants were never fitted to this backend."""

    def schedule(self, step: AttentionStep) -> Schedule:
        """Cut a step into work tiles."""
        tiles = self.tiles(step)
        kv_blocks = tiles.kv_blocks(step.cached_tokens)
        blocks = np.ceil(kv_blocks / self.splits(step, tiles))
        splits = np.ceil(kv_blocks / blocks)
        work_tiles = step.batch_size * tiles.units * tiles.query_blocks * splits
        return Schedule(tiles, splits, blocks, work_tiles, np.ceil(work_tiles / step.num_sms))


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
    schedule = (FLASH_ATTN_3 if backend is None else backend).schedule(step)
    tiles = schedule.tiles
    score = _score_seconds(hardware, heads, constants)
    speed = np.where(tiles.one_warpgroup & heads.fp8, constants.one_warpgroup_fp8, 1.0)
    block = tiles.tile_rows * tiles.tile_tokens * score / speed

    rows = batch_size * heads.kv_heads * step.packed_rows
    padded_rows = batch_size * tiles.units * tiles.query_blocks * tiles.tile_rows
    plain = rows * cached_tokens * score / hardware.num_sms
    padded = padded_rows * cached_tokens * score / speed / hardware.num_sms
    whole = schedule.waves * schedule.blocks * block

    rate = hardware.memory_bytes_per_second
    cache_bytes = batch_size * heads.kv_heads * cached_tokens * heads.token_bytes
    traffic = cache_bytes / (rate * constants.bandwidth)
    levels = [
        soft_maximum(traffic, arithmetic, constants.overlap)
        for arithmetic in (plain, np.maximum(plain, padded), np.maximum(plain, whole))
    ]
    return {
        "memory": traffic
        + rows * _query_bytes(heads) / (rate * constants.query_bandwidth)
        + _combine_seconds(schedule, rows, heads, rate, constants),
        "compute": levels[0] - traffic,
        "query_block": levels[1] - levels[0] + constants.exposed_blocks * block,
        "wave": levels[2] - levels[1] + schedule.waves * constants.wave_seconds,
    }


def fixed_seconds(heads: AttentionHeads, constants: AttentionConstants = H100_ATTENTION) -> float:
    """Seconds per layer that depend on nothing: the cache update and all launches included."""
    return constants.kernel_seconds + (constants.quantize_seconds if heads.fp8 else 0.0)


def granularity(group: int, tile_rows: int = GRANULE_ROWS) -> int:
    """Positions per sequence between two steps of the staircase; 1 or more."""
    return max(1, math.ceil(tile_rows / group))


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


# Tile rules


def _tiles(
    step: AttentionStep,
    tile_rows: npt.ArrayLike,
    tile_tokens: npt.ArrayLike,
    *,
    rows: FloatArray | None = None,
    units: npt.ArrayLike | None = None,
    one_warpgroup: npt.ArrayLike = False,
) -> Tiles:
    """Tiles of arrays as long as N; the rows of a KV head packed if nothing else is said."""

    def full(value: npt.ArrayLike) -> FloatArray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), step.positions.shape)

    return Tiles(
        units=full(step.heads.kv_heads if units is None else units),
        rows=step.packed_rows if rows is None else rows,
        tile_rows=full(tile_rows),
        tile_tokens=full(tile_tokens),
        one_warpgroup=np.broadcast_to(
            np.asarray(one_warpgroup, dtype=np.bool_), step.positions.shape
        ),
    )


def flash_attention_3_tiles(step: AttentionStep) -> Tiles:
    """Tiles on Hopper for a paged cache whose pages are smaller than a block.

    tile_size_fwd_sm90 in hopper/tile_size.h and use_one_mma_wg in hopper/heuristics.h of vLLM's
    FlashAttention: one warpgroup runs a tile of 64 rows if they hold all rows, at head sizes 64
    and 128 without a window. 192 cached tokens of the 8-bit tile of 128 rows are those of a build
    with two-level accumulation.
    """
    heads = step.heads
    alone = (
        (step.packed_rows <= 64)
        & (heads.score_dim in (64, 128) and heads.score_dim == heads.value_dim)
        & (not step.windowed)
    )
    if heads.fp8:
        small = (64, 128 if heads.score_dim <= 96 else 96)
        large = _first_fit(
            heads.score_dim,
            ((64, (192, 128)), (96, (128, 128)), (128, (128, 192)), (192, (128, 96))),
        ) or (128, 64 if step.windowed else 128)
    elif heads.score_dim <= 64 and heads.value_dim > 64:
        small = large = (64, 64) if heads.value_dim > 256 else (128, 96)
    else:
        small = (64, 192 if heads.score_dim <= 64 else 128)
        large = _first_fit(
            heads.score_dim,
            (
                (64, (192, 128 if step.causal and not step.windowed else 160)),
                (96, (192, 128)),
                (128, (128, 128)),
                (192, (128, 96)),
            ),
        ) or (128, 64 if step.windowed else 80)
    return _tiles(
        step,
        np.where(alone, small[0], large[0]),
        np.where(alone, small[1], large[1]),
        one_warpgroup=alone,
    )


def _first_fit(
    head_dim: int, table: tuple[tuple[int, tuple[int, int]], ...]
) -> tuple[int, int] | None:
    return next((tile for largest, tile in table if head_dim <= largest), None)


def flash_attention_2_tiles(step: AttentionStep) -> Tiles:
    """FlashAttention 2 packs the query heads of a group at N=1 alone.

    run_mha_fwd_splitkv_dispatch in csrc/flash_attn/src/flash_fwd_launch_template.h (64 rows), and
    seqlenq_ngroups_swapped in csrc/flash_attn/flash_api.cpp: above one position each query head
    walks the cache by itself.
    """
    head_dim = step.heads.score_dim
    tokens = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    one = (step.positions == 1) & (not step.windowed)
    return _tiles(
        step,
        64,
        tokens,
        rows=np.where(one, step.packed_rows, step.positions),
        units=step.heads.kv_heads * np.where(one, 1, step.heads.group),
    )


def triton_tiles(step: AttentionStep) -> Tiles:
    """vLLM's v1/attention/ops/triton_unified_attention.py: whole positions in 16 rows or more."""
    group = step.heads.group
    tile_rows = max(16, 1 << (group - 1).bit_length())
    positions_per_block = tile_rows // group
    blocks = np.ceil(step.positions / positions_per_block)
    tokens = np.where(step.positions > 1, 32, 32 if step.heads.fp8 else 16)
    # A block holds whole positions: rows that do not divide the tile stay empty.
    return _tiles(step, tile_rows, tokens, rows=blocks * tile_rows)


def flashinfer_tiles(step: AttentionStep) -> Tiles:
    """FA2DetermineCtaTileQ in FlashInfer's utils.cuh: 16, 64 or 128 rows; 64 tokens assumed."""
    rows = step.packed_rows
    largest = 128 if step.heads.score_dim < 256 else 64
    return _tiles(step, np.where(rows > 64, largest, np.where(rows > 16, 64, 16)), 64)


def mla_tiles(tile_rows: int, tile_tokens: int = 64) -> TileRule:
    """All heads and positions of a sequence packed into blocks of ``tile_rows``."""
    return lambda step: _tiles(step, tile_rows, tile_tokens)


def triton_mla_tiles(step: AttentionStep) -> Tiles:
    """vLLM's triton_mla.py: each position walks the cache by itself, 16 heads in a block."""
    units = step.heads.kv_heads * step.positions
    return _tiles(step, 16, 32, rows=np.full_like(step.positions, step.heads.group), units=units)


# Split rules


def flash_attention_3_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """Splits that FlashAttention 3 picks on the device for sequences of one length.

    prepare_varlen_num_blocks_kernel in hopper/flash_prepare_scheduler.cu: as many as give each SM
    its share of all blocks and a tenth more. The bound is vLLM's in CUDA graphs, and
    num_splits_heuristic for one sequence beyond them.
    """
    kv_blocks = tiles.kv_blocks(step.cached_tokens)
    heads_blocks = tiles.units * tiles.query_blocks
    # FP32, in the kernel's order: a product that is whole must not be rounded up.
    total = np.float32(1.1) * (step.batch_size * tiles.query_blocks * kv_blocks).astype(np.float32)
    shared = total * tiles.units.astype(np.float32) / np.float32(step.num_sms)
    blocks_per_sm = np.ceil(shared).astype(np.float64)
    captured = step.batch_size * step.positions <= step.max_graph_tokens
    most = np.where(
        captured,
        MAX_GRAPH_SPLITS,
        efficient_splits(heads_blocks, kv_blocks, step.num_sms, least_blocks=4),
    )
    splits: FloatArray = np.clip(np.ceil(kv_blocks / blocks_per_sm), 1.0, most)
    return splits


def efficient_splits(
    work_tiles: FloatArray, kv_blocks: FloatArray, num_sms: int, *, least_blocks: int = 0
) -> FloatArray:
    """num_splits_heuristic of FlashAttention 2 and 3: 1 if 80 % of the SMs are busy, or for few
    blocks; else the fewest splits that fill whole waves to 85 % of the best.
    """
    splits = np.arange(1, MAX_SPLITS + 1, dtype=np.float64)
    waves = work_tiles[:, None] * splits / num_sms
    possible = splits <= np.minimum(num_sms, kv_blocks)[:, None]
    efficiency = np.where(possible, waves / np.ceil(waves), 0.0)
    enough = efficiency >= 0.85 * efficiency.max(axis=1, keepdims=True)
    fewest = splits[np.argmax(enough, axis=1)]
    return np.where((work_tiles >= 0.8 * num_sms) | (kv_blocks <= least_blocks), 1.0, fewest)


def flash_attention_2_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """The heuristic for two blocks on each SM at N=1, and no splits above.

    mha_varlen_fwd in csrc/flash_attn/flash_api.cpp refuses splits of a paged cache there.
    """
    chosen = efficient_splits(
        step.batch_size * tiles.units * tiles.query_blocks,
        tiles.kv_blocks(step.cached_tokens),
        2 * step.num_sms,
    )
    return np.where((step.positions == 1) & (not step.windowed), chosen, 1.0)


def triton_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """16 segments at N=1 while there are at most 128 sequences and KV heads; none above.

    use_3d in triton_unified_attention.py, constants of v1/attention/backends/triton_attn.py.
    """
    split = (step.positions == 1) & (step.batch_size <= 128 // step.heads.kv_heads)
    return np.where(split, 16.0, 1.0)


def filling_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """As many splits as give every SM a work tile: assumed of planners that balance work."""
    work_tiles = step.batch_size * tiles.units * tiles.query_blocks
    kv_blocks = tiles.kv_blocks(step.cached_tokens)
    splits: FloatArray = np.clip(step.num_sms // work_tiles, 1.0, kv_blocks)
    return splits


def triton_mla_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """_compute_num_kv_splits in v1/attention/backends/mla/triton_mla.py: 512 tokens or more."""
    ideal = np.maximum(1.0, step.cached_tokens // 512)
    splits: FloatArray = np.minimum(2.0 ** np.ceil(np.log2(ideal)), 2.0 * step.num_sms)
    return splits


FLASH_ATTN_3 = AttentionBackend(
    "FLASH_ATTN_3",
    flash_attention_3_tiles,
    flash_attention_3_splits,
    source="vLLM's FlashAttention: hopper/tile_size.h, flash_prepare_scheduler.cu, heuristics.h",
    assumed=False,
)
FLASH_ATTN_2 = AttentionBackend(
    "FLASH_ATTN_2",
    flash_attention_2_tiles,
    flash_attention_2_splits,
    source="vLLM's FlashAttention: csrc/flash_attn/flash_api.cpp and its launch template",
)
ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            FLASH_ATTN_3,
            FLASH_ATTN_2,
            AttentionBackend(
                "TRITON_ATTN",
                triton_tiles,
                triton_splits,
                source="vLLM 0.32: v1/attention/ops/triton_unified_attention.py",
            ),
            AttentionBackend(
                "FLASHINFER",
                flashinfer_tiles,
                filling_splits,
                source="tile rows as FlashInfer's FA2 template picks them; splits assumed",
            ),
            AttentionBackend(
                "FLASH_ATTN_MLA",
                mla_tiles(64),
                flash_attention_3_splits,
                source="hopper/tile_size.h for head sizes 64 and 512; bound on splits assumed",
            ),
            AttentionBackend(
                "FLASHMLA",
                mla_tiles(64),
                filling_splits,
                source="FlashMLA's blocks of 64 rows and 64 tokens; its scheduler assumed to fill",
            ),
            AttentionBackend(
                "TRITON_MLA",
                triton_mla_tiles,
                triton_mla_splits,
                source="vLLM 0.32: v1/attention/backends/mla/triton_mla.py",
            ),
            AttentionBackend(
                "CUTLASS_MLA", mla_tiles(128, 128), filling_splits, source="assumed: 128 rows"
            ),
            AttentionBackend(
                "FLASHINFER_MLA", mla_tiles(128, 128), filling_splits, source="assumed: 128 rows"
            ),
        )
    }
)
"""Tile rules by vLLM's name. Only FLASH_ATTN_3 was timed: the rules of the others are read from
their sources or assumed, as each says, and they run with FLASH_ATTN_3's constants."""


def backend_by_name(name: str, hardware: Hardware) -> AttentionBackend:
    """A backend by vLLM's name; FLASH_ATTN is version 3 on Hopper, else version 2.

    Case, dashes and underscores do not matter.

    Raises:
        PredictionError: for an unknown name, with the known ones.
    """
    names = ("FLASH_ATTN", *ATTENTION_BACKENDS)
    known = same_name(name, names)
    if known is None:
        raise PredictionError(
            f"unknown attention backend {name!r:.80}{hint(name, names)}: known are "
            f"{', '.join(names)}"
        )
    if known == "FLASH_ATTN":
        known = "FLASH_ATTN_3" if hardware.name.startswith(_HOPPER) else "FLASH_ATTN_2"
    return ATTENTION_BACKENDS[known]
