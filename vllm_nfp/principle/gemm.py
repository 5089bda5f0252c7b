"""Seconds of a dense matrix product of T tokens with a weight matrix, split by what they are for.

t(T) = t0 + softmax_p(memory(T), arithmetic(T)) (1 + selection(T)), where

- memory(T) = (W + a_o 2 T O + a_i 2 T K + a_w W (T / 128) idle) / (share of bandwidth): the weights
  once; activations, which cost more than their bytes, since every output tile reads its rows of
  them again from L2; and the last, partly filled wave of output tiles, in which too few SMs ask
  for memory. ``idle`` is (whole waves / waves) - 1 of O / 128 tiles, 0 below one wave, where the
  library splits the inner dimension.
- arithmetic(T) = 2 K O (T + T padded to 64 rows) / 2 / (share of FLOP/s): token tiles run from 8 to
  256 rows by the library's choice, so that half of the padding to 64 is paid on average.
- selection(T): the library does not always find its fastest kernel. Above the smooth curve times
  scatter by some per cent, which moves the boundary. ``slow_steps`` are its worst choices.

FP8 products in vLLM on Hopper run in its own CUTLASS kernels, whose tile is chosen by T alone
(scaled_mm_sm90_fp8_dispatch): their time steps at these T.
This form, fitted to products of five sizes on an H100 (benchmarks/README.md), describes the device
that was timed. Constants with ``tiles`` take that of ``tiled``, which carries over to others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.slow_steps import SlowStep, with_slow_steps
from vllm_nfp.principle.terms import (
    ACTIVATION_BYTES,
    FloatArray,
    Terms,
    check_bounds,
    soft_maximum,
    sum_terms,
)
from vllm_nfp.principle.tiled import TiledConstants, tiled_terms

TILE_COLUMNS = (64, 128)
"""Columns of an output tile; the library takes those that fill its waves better."""
TILE_ROWS = 64  # of the largest instruction tile on Hopper
WAVE_TOKENS = 128.0  # where the loss of a part-filled wave is ``wave_loss``


@dataclass(frozen=True, slots=True)
class Fp8GemmConstants:
    """Constants of FP8 products in vLLM's CUTLASS kernels."""

    bandwidth: float = 0.82
    """Share of peak bytes per second at the smallest tile."""
    flops: float = 0.55
    kernel_seconds: float = 6.2e-6
    """Of the product and of the quantization of its activations before it."""
    tile_tokens: tuple[int, ...] = (16, 64, 128)
    """Largest T of each tile configuration but the last."""
    tile_slowdown: tuple[float, ...] = (1.0, 1.08, 1.17)
    """Time over that of the smallest tile, in each of these."""
    row_tile_slowdown: float = 0.8
    """The same for each tile of 128 rows, beyond the last of them."""
    row_tile: int = 128
    tiles: TiledConstants | None = None
    """As below."""

    def __post_init__(self) -> None:
        check_bounds(self, FP8_BOUNDS)
        edges, steps = self.tile_tokens, self.tile_slowdown
        if not edges or len(edges) != len(steps):
            raise ValueError("tile_tokens and tile_slowdown must be as many, and one or more")
        if edges[0] < 1 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"tile_tokens must ascend from 1 or more, not {edges!r:.80}")
        least, most = FP8_BOUNDS["row_tile_slowdown"]
        if not all(least <= step <= most for step in steps):
            raise ValueError(f"tile_slowdown must lie from {least} to {most}, not {steps!r:.80}")


@dataclass(frozen=True, slots=True)
class GemmConstants:
    """Constants of the model above; see the module's text for each."""

    bandwidth: float = 0.856
    """Share of peak bytes per second."""
    flops: float = 0.762
    """Share of peak FLOP/s."""
    output_traffic: float = 1.66
    """a_o."""
    input_traffic: float = 3.74
    """a_i."""
    wave_loss: float = 0.369
    """a_w."""
    sharpness: float = 10.1
    """p of the soft maximum; higher is sharper."""
    kernel_seconds: float = 4.02e-6
    """t0: start, ramp and drain of one product inside a CUDA graph."""
    selection_loss: float = 0.02
    """Scatter above the smooth curve, as a share."""
    selection_tokens: float = 32.0
    """Tokens at which it is reached; at T = 1 there is none, by definition."""
    row_tile: int = TILE_ROWS
    """Rows to which arithmetic is padded."""
    padding_paid: float = 0.5
    """Share of this padding that is paid: 1 where the library has no narrower tiles to choose."""
    narrow_tokens: int = 4096
    """Largest T of the library's narrow tiles, which are never padded beyond it."""
    one_token: float = 1.0
    """Time of memory traffic at one token, which may run as matrix times vector, over tiles'."""
    wide_slowdown: float = 1.0
    """Time of memory traffic above it, over that of narrow tiles."""
    slow_steps: tuple[SlowStep, ...] = ()
    """Tokens at which the library chooses a slow kernel."""
    fp8: Fp8GemmConstants = field(default_factory=Fp8GemmConstants)
    tiles: TiledConstants | None = None
    """Of the other form, taken if given; of all above it then takes ``fp8`` and the scatter."""

    def __post_init__(self) -> None:
        check_bounds(self, BOUNDS)


BOUNDS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.05, 1.0),
    "flops": (0.02, 1.0),
    "output_traffic": (0.0, 32.0),
    "input_traffic": (0.0, 32.0),
    "wave_loss": (0.0, 8.0),
    "sharpness": (1.0, 64.0),
    "kernel_seconds": (0.0, 1e-3),
    "selection_loss": (0.0, 0.5),
    "selection_tokens": (1.0, 4096.0),
    "row_tile": (1, 4096),
    "padding_paid": (0.0, 1.0),
    "narrow_tokens": (1, 4096),
    "one_token": (0.5, 2.0),
    "wide_slowdown": (1.0, 16.0),
}
"""Least and most of every constant."""
FP8_BOUNDS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.05, 1.0),
    "flops": (0.02, 1.0),
    "kernel_seconds": (0.0, 1e-3),
    "row_tile_slowdown": (0.05, 16.0),
    "row_tile": (1, 4096),
}


def gemm_seconds(
    hardware: Hardware, constants: GemmConstants, gemm: Gemm, tokens: FloatArray
) -> FloatArray:
    """Seconds of the product, its kernel's own time included."""
    terms = gemm_terms(hardware, constants, gemm, tokens)
    return gemm_fixed_seconds(hardware, constants, gemm) + sum_terms(terms)


def gemm_fixed_seconds(hardware: Hardware, constants: GemmConstants, gemm: Gemm) -> float:
    """The part that no N changes."""
    used = constants.fp8 if _runs_fp8(hardware, gemm) else constants
    return (used.tiles or used).kernel_seconds


def gemm_terms(
    hardware: Hardware, constants: GemmConstants, gemm: Gemm, tokens: FloatArray
) -> Terms:
    """Seconds of T tokens, shape [n], without the fixed part, by limit; they add up."""
    fp8 = _runs_fp8(hardware, gemm)
    if (tiles := constants.fp8.tiles if fp8 else constants.tiles) is not None:
        terms = tiled_terms(hardware, tiles, gemm, tokens, fp8)
        scatter = 0.0 if fp8 else _scatter(constants, tokens)
        return {**terms, "tile": terms["tile"] + scatter * sum_terms(terms)}
    if fp8:
        return _fp8_terms(hardware, constants.fp8, gemm, tokens)
    terms = _smooth_terms(hardware, constants, gemm, tokens)
    return with_slow_steps(terms, constants.slow_steps, gemm, tokens)


def _smooth_terms(
    hardware: Hardware, constants: GemmConstants, gemm: Gemm, tokens: FloatArray
) -> Terms:
    rate = hardware.memory_bytes_per_second * constants.bandwidth
    activations = ACTIVATION_BYTES * (
        constants.output_traffic * gemm.outputs + constants.input_traffic * gemm.inputs
    )
    memory = (gemm.weight_traffic + tokens * activations) / rate
    memory = memory * np.where(tokens <= 1, constants.one_token, 1.0)
    idle = _idle_share_of_waves(gemm.outputs, hardware.num_sms)
    lost = constants.wave_loss * gemm.weight_traffic * idle / rate * (tokens / WAVE_TOKENS)
    flops = hardware.peak_flops(False) * constants.flops
    plain = 2.0 * gemm.parameters * tokens / flops
    narrow = tokens <= constants.narrow_tokens
    tile = np.where(narrow, min(constants.row_tile, TILE_ROWS), constants.row_tile)
    padding = np.ceil(tokens / tile) * tile - tokens
    padded = 2.0 * gemm.parameters * (tokens + constants.padding_paid * padding) / flops
    slower = np.where(narrow, 1.0, constants.wide_slowdown)
    return _levels(memory, lost, plain, padded, constants, tokens, slower)


def _levels(
    memory: FloatArray,
    lost: FloatArray,
    plain: FloatArray,
    padded: FloatArray,
    constants: GemmConstants,
    tokens: FloatArray,
    slower: FloatArray,
) -> Terms:
    """What each fuller account of the same work adds above the one before."""
    with_waves = memory + lost
    with_compute = soft_maximum(with_waves, plain, constants.sharpness)
    with_padding = soft_maximum(slower * with_waves, padded, constants.sharpness)
    scatter = _scatter(constants, tokens)
    return {
        "memory": memory,
        "wave": lost,
        "compute": with_compute - with_waves,
        "tile": with_padding - with_compute + scatter * with_padding,
    }


def _scatter(constants: GemmConstants, tokens: FloatArray) -> FloatArray:
    return constants.selection_loss * np.minimum(1.0, (tokens - 1) / constants.selection_tokens)


def _fp8_terms(
    hardware: Hardware, constants: Fp8GemmConstants, gemm: Gemm, tokens: FloatArray
) -> Terms:
    base = gemm.weight_traffic / (hardware.memory_bytes_per_second * constants.bandwidth)
    memory = np.full_like(tokens, base)
    tiled = base * fp8_slowdown(constants, tokens)
    flops = hardware.peak_flops(True) * constants.flops
    plain = np.maximum(tiled, 2.0 * gemm.parameters * tokens / flops)
    rows = np.ceil(tokens / constants.row_tile) * constants.row_tile
    padded = np.maximum(plain, 2.0 * gemm.parameters * (tokens + rows) / 2 / flops)
    return {"memory": memory, "compute": plain - tiled, "tile": tiled - memory + padded - plain}


def fp8_slowdown(constants: Fp8GemmConstants, tokens: FloatArray) -> FloatArray:
    """Time over that of the smallest tile; more than 1 from the first edge on."""
    steps = np.array([*constants.tile_slowdown, np.inf])
    inside: FloatArray = steps[np.searchsorted(constants.tile_tokens, tokens)]
    beyond = constants.row_tile_slowdown * np.ceil(tokens / constants.row_tile)
    return np.where(np.isfinite(inside), inside, np.maximum(beyond, constants.tile_slowdown[-1]))


def _idle_share_of_waves(columns: int, num_sms: int) -> float:
    """(Whole waves / waves) - 1 of output tiles, with the tile width that leaves least idle."""
    waves = [columns / width / num_sms for width in TILE_COLUMNS]
    return min(math.ceil(w) / w - 1.0 if w > 1 else 0.0 for w in waves)


def _runs_fp8(hardware: Hardware, gemm: Gemm) -> bool:
    return gemm.fp8 and hardware.fp8_flops is not None
