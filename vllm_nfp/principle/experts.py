"""Seconds of routed experts as vLLM 0.32's Triton kernel runs them, split by what they go into.

A step of T tokens wakes U(T) experts, each read once. The rows of an expert are cut into blocks
of BLOCK_SIZE_M; every block is multiplied with the expert's matrix in tiles of BLOCK_SIZE_N
columns, and reads the matrix anew as far as L2 no longer holds it. Each of the two products takes
the soft maximum of its traffic and its padded arithmetic. Where the rate of L2 is known, a third
part is what all blocks read through it, and tiles run in whole waves of one for each SM. Sources,
all in vLLM 0.32's
model_executor/layers/fused_moe/: fused_moe.py (kernel, tile rule), moe_align_block_size.py,
experts/triton_moe.py (order of kernels). The router's product and shared experts are dense
products and counted elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.expert_tiles import MoeConfig
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.routing import ExpertError, Routed
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.terms import (
    ACTIVATION_BYTES,
    FloatArray,
    Terms,
    add_terms,
    soft_maximum,
)

ROUTED_KERNELS = 5
"""Top-k, two products, activation, sum over a token's experts."""
ALIGNMENT_KERNELS = 2
"""moe_align_block_size: count and align, then sort."""
NAIVE_SPARSITY = 4
"""SPARSITY_FACTOR of _prepare_expert_assignment: up to E / 4 rows each row is its own block."""
SHARED_STREAM_TOKENS = 256
"""Default of VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD: up to it shared experts run on a stream
of their own beside router and routed experts (runner/shared_experts.py)."""
FULL_ROWS = 64
"""Rows of a tile from which Hopper multiplies out of shared memory (PTX ISA: wgmma has m64).
Smaller tiles go through registers (mma.sync)."""
NARROW_OUTPUTS = 8192
"""Outputs of the tile that takes ``narrow_loss`` longer: 32 x 256."""
_LEAST_SPREAD = 1e-3
"""Waves; an exact multiple of the SMs is still a full wave."""
IDLE_SHARPNESS = 3.0
"""Assumed: exponent of the soft maximum of a full and of a starved memory."""


@dataclass(frozen=True, slots=True)
class ExpertConstants:
    """What the grouped products reach of the data sheet; defaults are fitted on an H100 SXM."""

    bandwidth: float = 0.935
    """Share of peak bytes per second for weights in endlessly long rows."""
    row_gap_bytes: float = 7.84
    """A tile reads weights in rows of BLOCK_SIZE_K elements; each costs as if this much longer."""
    flops: float = 0.639
    """Share of peak FLOP/s."""
    kept_l2: float = 0.833
    """Share of L2's size in which a matrix stays for the expert's next block."""
    activation_bandwidth: float = 0.712
    """Bytes per second of activations over the peak of memory; above 1 if L2 serves them."""
    kernel_seconds: float = 4.21e-6
    """Time of a kernel inside a CUDA graph beside its work."""
    busy_bytes: float = 8192.0
    """Bytes of weights per SM that must be on their way for memory to run at full rate. The default
    is assumed: 16-bit tiles of 64 x 128 on every other SM."""
    tile_depth: float = 0.0
    """Inputs of a product by which each of its tiles costs more than its own: to fill and empty a
    tile's pipeline takes as long as so many more. 0: not known."""
    busy_tiles: float = 0.0
    """Tiles per SM that memory needs to run at full rate, however much each reads. 0: not known."""
    l2_bandwidth: float = 0.0
    """Bytes of weights per second through L2 over the peak of memory. 0: not known; then blocks
    that L2 serves cost arithmetic alone, and only the first wave of tiles counts as a whole."""
    narrow_loss: float = 0.0
    """What a tile of fewer than FULL_ROWS rows and NARROW_OUTPUTS outputs takes longer through L2,
    as a share; in proportion to its outputs. 0: not known."""
    sharpness: float = 4.0
    """Exponent p of the soft maximum (traffic^p + arithmetic^p)^(1/p); not fitted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least, most = BOUNDS[field.name]
            if not least <= value <= most:
                raise ExpertError(f"{field.name} must lie from {least} to {most}, not {value!r}")


BOUNDS: Mapping[str, tuple[float, float]] = {
    "bandwidth": (0.05, 1.0),
    "row_gap_bytes": (0.0, 128.0),
    "flops": (0.02, 1.0),
    "kept_l2": (0.0, 4.0),
    "activation_bandwidth": (0.05, 20.0),
    "kernel_seconds": (0.0, 1e-4),
    "busy_bytes": (0.0, 1e6),
    "tile_depth": (0.0, 1e4),
    "busy_tiles": (0.0, 16.0),
    "l2_bandwidth": (0.0, 32.0),
    "narrow_loss": (0.0, 8.0),
    "sharpness": (1.0, 64.0),
}
"""Least and most of every constant."""


def expert_terms(
    hardware: Hardware,
    constants: ExpertConstants,
    gemms: Sequence[Gemm],
    tokens: FloatArray,
    routing: Routed,
    *,
    hidden_size: int,
    config: MoeConfig,
) -> Terms:
    """Routed experts of one layer, without the time of :data:`ROUTED_KERNELS` kernels.

    The terms add up to the whole: ``experts`` is to read each awake expert once, ``memory`` the
    activations, ``compute`` what arithmetic of the real rows adds, ``tile`` what blocks add
    (sorting rows into them, padding, weights read again from memory or L2, the narrow rows of a
    tile) and ``wave`` what SMs without a tile do.

    Args:
        hardware: the data sheet.
        constants: what the kernels reach of it.
        gemms: a routed expert's matrices, the first product's before the second's.
        tokens: rows of the step, ascending or not; shape (n,).
        routing: the rank's experts.
        hidden_size: width of the layer's output.
        config: the kernel's tiles for ``tokens``.
    """
    naive = config.unsorted_rows & _is_naive(tokens, routing)
    awake = routing.awake(tokens)
    rows = tokens * routing.experts_per_token
    blocks = np.where(naive, rows, routing.blocks(tokens, config.block_m))
    work = _Work(tokens, rows, awake, blocks, naive, config)
    device = _Reached(hardware, constants)
    between = (gemms[0].outputs + gemms[-1].inputs + hidden_size) * rows + hidden_size * tokens
    around: Terms = {
        "memory": device.activations(between),
        "tile": np.where(naive, 0.0, ALIGNMENT_KERNELS * constants.kernel_seconds),
    }
    return add_terms(*(_product_terms(device, gemm, work, routing) for gemm in gemms), around)


@dataclass(frozen=True, slots=True)
class _Work:
    """What a step gives the two products to do, an entry for each number of tokens."""

    tokens: FloatArray
    rows: FloatArray
    awake: FloatArray
    blocks: FloatArray
    naive: npt.NDArray[np.bool_]
    config: MoeConfig


@dataclass(frozen=True, slots=True)
class _Reached:
    """Hardware as the grouped products reach it: work in, seconds out."""

    hardware: Hardware
    constants: ExpertConstants

    def weights(self, amount: FloatArray) -> FloatArray:
        return amount / (self.hardware.memory_bytes_per_second * self.constants.bandwidth)

    def activations(self, elements: FloatArray) -> FloatArray:
        rate = self.hardware.memory_bytes_per_second * self.constants.activation_bandwidth
        return elements * ACTIVATION_BYTES / rate

    def arithmetic(self, flops: FloatArray, fp8: bool) -> FloatArray:
        return flops / (self.hardware.peak_flops(fp8) * self.constants.flops)

    def idle(self, tiles: FloatArray, tile_bytes: FloatArray) -> FloatArray:
        """Factor of a traffic's time if so many tiles are on their way at once."""
        sms = self.hardware.num_sms
        wanted = np.maximum(
            self.constants.busy_bytes * sms / (tiles * tile_bytes),
            self.constants.busy_tiles * sms / tiles,
        )
        return soft_maximum(np.ones_like(wanted), wanted, IDLE_SHARPNESS)

    def inside(self, padded: FloatArray, gemm: Gemm, work: _Work) -> FloatArray:
        """What SMs do to all blocks: multiply, and read their weights through L2 if its rate is
        known."""
        if not self.constants.l2_bandwidth:
            return padded
        rate = self.hardware.memory_bytes_per_second * self.constants.l2_bandwidth
        outputs = work.config.block_m * work.config.block_n / NARROW_OUTPUTS
        narrow = np.where(work.config.block_m < FULL_ROWS, self.constants.narrow_loss * outputs, 0)
        longer = (1.0 + narrow) * self.longer(gemm)
        return self.both(padded, work.blocks * gemm.weight_traffic * longer / rate)

    def longer(self, gemm: Gemm) -> float:
        """Factor of a tile's time for its pipeline's ends."""
        return 1.0 + self.constants.tile_depth / gemm.inputs

    def filled(self, work: _Work, columns: FloatArray) -> FloatArray:
        """Share of SMs with a tile, over all waves; of the first alone without the rate of L2.

        An expert's blocks beyond its first are few and by chance, so that their variance is their
        number. The mean number of waves is that of a uniform distribution as wide.
        """
        tiles = work.blocks * columns / self.hardware.num_sms
        if not self.constants.l2_bandwidth:
            return np.minimum(1.0, tiles)
        further = np.maximum(0.0, work.blocks - work.awake)
        spread = np.sqrt(3.0 * further) * columns / self.hardware.num_sms
        filled: FloatArray = tiles / np.maximum(1.0, _mean_ceiling(tiles, spread))
        return filled

    def both(self, traffic: FloatArray, arithmetic: FloatArray) -> FloatArray:
        """The two overlap, less and less the closer they are."""
        return soft_maximum(traffic, arithmetic, self.constants.sharpness)


def _product_terms(device: _Reached, gemm: Gemm, work: _Work, routing: Routed) -> Terms:
    """One product: each level is a fuller account than the one before, a term what it adds."""
    config = work.config
    once = device.weights(work.awake * gemm.weight_traffic)
    activations = device.activations(work.rows * (gemm.inputs + gemm.outputs))
    read = work.awake + _read_again(device, gemm, work, routing)
    gap = 1.0 + device.constants.row_gap_bytes / (config.block_k * gemm.weight_bytes)
    longer = device.longer(gemm)
    traffic = device.weights(read * gemm.weight_traffic) * gap * longer + activations
    row_flops = 2.0 * gemm.parameters
    plain = device.arithmetic(work.rows * row_flops, gemm.fp8)
    padded = device.arithmetic(work.blocks * config.block_m * row_flops, gemm.fp8) * longer
    inside = device.inside(padded, gemm, work)
    columns = np.ceil(gemm.outputs / config.block_n)
    tile_elements = (config.block_n * config.block_k).astype(np.float64)
    levels = (
        once + activations,
        device.both(once + activations, plain),
        device.both(traffic, inside),
        device.both(
            traffic * device.idle(work.blocks * columns, tile_elements * gemm.weight_bytes),
            inside / device.filled(work, columns),
        ),
    )
    return {
        "experts": once,
        "memory": activations,
        "compute": levels[1] - levels[0],
        "tile": levels[2] - levels[1],
        "wave": levels[3] - levels[2],
    }


def _read_again(device: _Reached, gemm: Gemm, work: _Work, routing: Routed) -> FloatArray:
    """Readings of an expert's matrix beyond the first, as far as L2 does not serve them.

    Between two blocks of an expert pass, sorted, its own matrix; unsorted, those of the rows
    between. Of these bytes L2 still holds what fits. Blocks of a group read together.
    """
    kept = device.constants.kept_l2 * device.hardware.l2_bytes
    apart = np.where(work.naive, routing.rows_apart(work.tokens), 1.0)
    missed = np.maximum(0.0, 1.0 - kept / (apart * gemm.weight_traffic))
    further = np.maximum(0.0, work.blocks - work.awake)
    again: FloatArray = missed * further / np.where(work.naive, 1, work.config.group_m)
    return again


def _mean_ceiling(middle: FloatArray, spread: FloatArray) -> FloatArray:
    """E[ceil(x)] of an x that is uniform within ``spread`` of the middle; ceil without a spread."""
    half = np.maximum(spread, _LEAST_SPREAD)
    middle = middle - _LEAST_SPREAD

    def integral(end: FloatArray) -> FloatArray:
        whole = np.floor(end)
        area: FloatArray = (whole + 1.0) * (end - whole / 2.0)
        return area

    mean: FloatArray = (integral(middle + half) - integral(middle - half)) / (2.0 * half)
    return mean


def _is_naive(tokens: FloatArray, routing: Routed) -> npt.NDArray[np.bool_]:
    """Few rows go unsorted, each as a block of its own (_prepare_expert_assignment)."""
    few = tokens * routing.experts_per_token * NAIVE_SPARSITY <= routing.num_experts
    naive: npt.NDArray[np.bool_] = few & (not routing.expert_parallel)
    return naive
