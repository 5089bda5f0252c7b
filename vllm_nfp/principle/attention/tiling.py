"""How attention kernels cut a decode step: query blocks, cache blocks, splits and waves.

A backend is a tile rule and a split rule. Each backend has a file of its own beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import FloatArray

MAX_GRAPH_TOKENS = 512
"""vLLM 0.32's default max_cudagraph_capture_size; larger steps take FlashAttention's own bound."""
MAX_SPLITS = 128
"""The bound on splits that FlashAttention 2 and 3 give their heuristics."""
GRANULE_ROWS = 64
"""Rows between the steps of most attention kernels."""


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
    tiles_per_sm: int = 1
    """Work tiles that an SM runs at once, sharing its units; above 1 too few tiles leave memory
    idle, while the one large tile of FlashAttention 3 on each SM loads ahead."""

    def schedule(self, step: AttentionStep) -> Schedule:
        """Cut a step into work tiles."""
        tiles = self.tiles(step)
        kv_blocks = tiles.kv_blocks(step.cached_tokens)
        blocks = np.ceil(kv_blocks / self.splits(step, tiles))
        splits = np.ceil(kv_blocks / blocks)
        work_tiles = step.batch_size * tiles.units * tiles.query_blocks * splits
        places = step.num_sms * self.tiles_per_sm
        return Schedule(tiles, splits, blocks, work_tiles, np.ceil(work_tiles / places))


def granularity(group: int, tile_rows: int = GRANULE_ROWS) -> int:
    """Positions per sequence between two steps of the staircase; 1 or more."""
    return max(1, math.ceil(tile_rows / group))


def tiles_of(
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


def filling_splits(step: AttentionStep, tiles: Tiles) -> FloatArray:
    """As many splits as give every SM a work tile: assumed of planners that balance work."""
    work_tiles = step.batch_size * tiles.units * tiles.query_blocks
    kv_blocks = tiles.kv_blocks(step.cached_tokens)
    splits: FloatArray = np.clip(step.num_sms // work_tiles, 1.0, kv_blocks)
    return splits
