"""Seconds of a dense product as a library runs it: output tiles in waves of one for each SM.

A tile of r rows (tokens) and c columns (outputs), over K / s of the inner dimension where s tiles
share an output (split K), takes its SM the longer of

- arithmetic: 2 r c K / s / (an SM's share of FLOP/s), for whole tiles, however many rows are used;
- reading (r + c) K / s elements through L2 at an SM's share of its rate.

All tiles of a wave read their weights from memory together, at the memory's rate, so that a wave
takes the soft maximum of both. The last wave has fewer tiles, but as long an arithmetic. Then come
activations that are read and written once, the first tile's fill, and for s > 1 another kernel
that adds the partial results up, in 32 bits through L2.

The library is taken to find the fastest (r, c, s). So nothing depends on T alone: a product steps
where one more row of tiles starts another wave, which is a matter of T, the outputs and the SMs.
That is what carries the constants over to other devices. docs/validation.md says which data they
were fitted to, and which other forms were tried. In tall matrices of few outputs a time may fall by
some per cent at a step: one more row of tiles spreads the weights more evenly over the waves.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.layer_parts import Gemm
from vllm_nfp.principle.terms import (
    ACTIVATION_BYTES,
    FloatArray,
    Terms,
    check_bounds,
    soft_maximum,
)

SIDES = (64, 128, 256)
"""Rows and columns of a tile, as in cuBLAS's and CUTLASS's kernels since Ampere."""
MOST_OUTPUTS = 128 * 256
"""Outputs of a tile: the most that an SM's registers hold in 32 bits."""
SPLITS = (1, 2, 3, 4, 6, 8)
"""Tiles that share an output."""
PARTIAL_BYTES = 4
SHARPNESS = 8.0
"""Of the soft maximum of memory and arithmetic in a wave."""
PLANS: FloatArray = np.array(
    [
        (rows, columns, split)
        for rows, columns, split in itertools.product(SIDES, SIDES, SPLITS)
        if rows * columns <= MOST_OUTPUTS
    ],
    dtype=np.float64,
)
"""Tile and split of every kernel, shape [plans, 3]."""


@dataclass(frozen=True, slots=True)
class TiledConstants:
    """Constants of the form above; the defaults are fitted to own runs on an H100."""

    bandwidth: float = 0.882
    """Share of peak bytes per second."""
    flops: float = 0.905
    """Share of peak FLOP/s."""
    l2_bandwidth: float = 6.25
    """Bytes per second through L2 over the memory's peak."""
    kernel_seconds: float = 3.21e-6
    """Start and end of one product inside a CUDA graph."""
    fill: float = 1.06
    """Time before the first tile computes, in readings of one tile."""
    split_seconds: float = 5.9e-7
    """The kernel that adds partial results up."""
    split_traffic: float = 0.482
    """Its bytes, over those of every partial result once written and once read."""

    def __post_init__(self) -> None:
        check_bounds(self, TILED_BOUNDS)


TILED_BOUNDS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.05, 1.0),
    "flops": (0.02, 1.0),
    "l2_bandwidth": (1.0, 32.0),
    "kernel_seconds": (0.0, 1e-3),
    "fill": (0.0, 8.0),
    "split_seconds": (0.0, 1e-3),
    "split_traffic": (0.0, 16.0),
}
"""Least and most of every constant."""


def tiled_terms(
    hardware: Hardware, constants: TiledConstants, gemm: Gemm, tokens: FloatArray, fp8: bool
) -> Terms:
    """Seconds without the kernel's own time, by limit; they add up.

    ``compute`` is arithmetic of the tokens alone beyond memory traffic, ``wave`` what the last
    wave's idle SMs cost, ``tile`` all else: whole tiles, reading through L2, fill and split K.

    Args:
        tokens: T, shape [n].
        fp8: whether it multiplies in FP8.
    """
    rate = hardware.memory_bytes_per_second * constants.bandwidth
    flops = hardware.peak_flops(fp8) * constants.flops
    once = ACTIVATION_BYTES * tokens * (gemm.inputs + gemm.outputs) / rate
    memory = gemm.weight_traffic / rate + once
    plain = soft_maximum(memory, 2.0 * gemm.parameters * tokens / flops, SHARPNESS)
    products, idle = _fastest(hardware, constants, gemm, tokens, fp8)
    return {
        "memory": memory,
        "wave": idle,
        "compute": plain - memory,
        "tile": np.maximum(0.0, once + products - idle - plain),
    }


def _fastest(
    hardware: Hardware, constants: TiledConstants, gemm: Gemm, tokens: FloatArray, fp8: bool
) -> tuple[FloatArray, FloatArray]:
    """Seconds of the fastest plan at each T, without activations, and of its idle SMs."""
    rows, columns, split = PLANS.T[:, :, None]
    sms = hardware.num_sms
    l2_rate = hardware.memory_bytes_per_second * constants.l2_bandwidth
    inner = gemm.inputs / split
    row_tiles = np.ceil(tokens / rows)
    tiles = row_tiles * np.ceil(gemm.outputs / columns) * split
    multiplying = 2.0 * rows * columns * inner * sms
    multiplying /= hardware.peak_flops(fp8) * constants.flops
    element = 1.0 if fp8 else float(ACTIVATION_BYTES)
    reading = (rows * element + columns * gemm.weight_bytes) * inner * sms / l2_rate
    busy = np.maximum(multiplying, reading)
    # A weight is read from memory once, by the first row of tiles that needs it.
    loading = columns * gemm.weight_bytes * inner / row_tiles
    loading /= hardware.memory_bytes_per_second * constants.bandwidth
    whole, left = np.divmod(tiles, sms)
    full = soft_maximum(busy, sms * loading, SHARPNESS)
    last = np.where(left > 0, soft_maximum(busy, np.maximum(left, 1) * loading, SHARPNESS), 0.0)
    partial = 2.0 * PARTIAL_BYTES * split * tokens * gemm.outputs / l2_rate
    adding = constants.split_seconds + constants.split_traffic * partial
    seconds = whole * full + last + constants.fill * reading + np.where(split > 1, adding, 0.0)
    best = np.argmin(seconds, axis=0), np.arange(len(tokens))
    idle = np.maximum(0.0, last - left / sms * full)
    return seconds[best], idle[best]
