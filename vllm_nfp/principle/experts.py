"""Seconds of routed experts as vLLM 0.32's Triton kernel runs them, split by what they go into.

A step of T tokens wakes U(T) experts, each read once. The rows of an expert are cut into blocks
of BLOCK_SIZE_M; every block is multiplied with the expert's matrix in tiles of BLOCK_SIZE_N
columns, and reads the matrix anew as far as L2 no longer holds it. Each of the two products takes
the soft maximum of its traffic and its padded arithmetic. Sources, all in vLLM 0.32's
model_executor/layers/fused_moe/: fused_moe.py (kernel, tile rule), moe_align_block_size.py,
experts/triton_moe.py (order of kernels). The router's product and shared experts are dense
products and counted elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import Gemm, Quantization
from vllm_nfp.principle.terms import (
    ACTIVATION_BYTES,
    FloatArray,
    Terms,
    add_terms,
    soft_maximum,
)

IntArray = npt.NDArray[np.int64]

ROUTED_KERNELS = 5
"""Top-k, two products, activation, sum over a token's experts."""
ALIGNMENT_KERNELS = 2
"""moe_align_block_size: count and align, then sort."""
NAIVE_SPARSITY = 4
"""SPARSITY_FACTOR of _prepare_expert_assignment: up to E / 4 rows each row is its own block."""
SHARED_STREAM_TOKENS = 256
"""Default of VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD: up to it shared experts run on a stream
of their own beside router and routed experts (runner/shared_experts.py)."""
BUSY_SMS = 0.5
"""Assumed: share of the SMs that must have a tile for memory to run at full rate."""
MAX_GROUPS = 32
"""Experts of like share are counted together, so that a scan of positions stays fast."""
_WINDOW_DEVIATIONS = 5.0
_WINDOW_BLOCKS = 8


TYPICAL_SKEW = 0.75
"""Exponent of the routing that ``typical`` names: shares fall with rank ** -0.75. Of the exponents
0, 0.25, ... 1 the one with which most public times of routed experts under power-law routers
(aiconfigurator 0.12, H100 and H200, BF16) come within 10 % (docs/validation.md)."""
MOST_SKEW = 2.0


class ExpertError(ValueError):
    """Routing, tiles or constants that cannot be; the message names the value."""


@dataclass(frozen=True, slots=True)
class ExpertConstants:
    """What the grouped products reach of the data sheet; defaults are fitted on an H100 SXM."""

    bandwidth: float = 0.936
    """Share of peak bytes per second for weights in endlessly long rows."""
    row_gap_bytes: float = 8.04
    """A tile reads weights in rows of BLOCK_SIZE_K elements; each costs as if this much longer."""
    flops: float = 0.638
    """Share of peak FLOP/s."""
    kept_l2: float = 0.836
    """Share of L2's size in which a matrix stays for the expert's next block."""
    activation_bandwidth: float = 0.715
    """Bytes per second of activations over the peak of memory; above 1 if L2 serves them."""
    kernel_seconds: float = 4.22e-6
    """Time of a kernel inside a CUDA graph beside its work."""
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
    "sharpness": (1.0, 64.0),
}
"""Least and most of every constant."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of one rank and how tokens reach them.

    Tokens are those that the rank's experts see: of all data-parallel replicas together.
    """

    num_experts: int
    """Experts of which the rank holds weights: ModelShape.local_experts."""
    experts_per_token: float
    """Of them, those that a token meets on average: ModelShape.local_experts_per_token."""
    shares: tuple[float, ...] | None = None
    """Share of the rank's rows that each expert gets; None: uniform. Adds up to 1."""
    expert_parallel: bool = False
    """Other ranks hold other experts; rows are then always sorted, however few."""

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise ExpertError(f"num_experts must be 1 or more, not {self.num_experts}")
        if not 0 < self.experts_per_token <= self.num_experts:
            raise ExpertError(
                f"experts_per_token must be above 0 and at most num_experts {self.num_experts}, "
                f"not {self.experts_per_token!r}"
            )
        if self.shares is not None:
            self._check_shares(self.shares)

    def chances(self) -> tuple[FloatArray, FloatArray]:
        """Chances that a token meets an expert, and how many experts have each.

        More than MAX_GROUPS experts of given shares are put into as many groups of neighbours.
        """
        if self.shares is None:
            chance = self.experts_per_token / self.num_experts
            return np.array([chance]), np.array([float(self.num_experts)])
        every = np.minimum(np.sort(self.shares) * self.experts_per_token, 1.0)
        groups = np.array_split(every, min(MAX_GROUPS, self.num_experts))
        counts = np.array([float(len(group)) for group in groups])
        return np.array([group.mean() for group in groups]), counts

    def _check_shares(self, shares: Sequence[float]) -> None:
        if len(shares) != self.num_experts:
            raise ExpertError(
                f"shares must name all num_experts {self.num_experts}, not {len(shares)}"
            )
        wrong = [share for share in shares if not 0 <= share <= 1]
        if wrong or not math.isclose(sum(shares), 1.0, rel_tol=1e-6):
            raise ExpertError("shares must lie from 0 to 1 and add up to 1")
        if max(shares) * self.experts_per_token > 1 + 1e-6:
            raise ExpertError(
                f"shares give an expert {max(shares):.3g} of the rows, but it can meet a token "
                f"only once: at most {1 / self.experts_per_token:.3g}"
            )


@lru_cache(maxsize=256)
def skewed_shares(
    num_experts: int, experts_per_token: float, exponent: float
) -> tuple[float, ...] | None:
    """Share of each expert under a router that prefers some: proportional to rank ** -exponent.

    None for an exponent of 0, uniform routing. An expert meets a token at most once, which bounds
    its share; what is above goes to the others, in proportion.
    """
    if not exponent:
        return None
    shares = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
    most = min(1.0, 1.0 / experts_per_token)
    for full in range(num_experts):
        rest = shares[full:].sum()
        scaled = shares[full:] * (1.0 - full * most) / rest
        if scaled[0] <= most * (1 + 1e-9):
            break
    kept = np.concatenate([np.full(full, most), np.minimum(scaled, most)])
    return tuple((kept / kept.sum()).tolist())


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """The kernel's tiles, an entry for each number of tokens."""

    block_m: IntArray
    block_n: IntArray
    block_k: IntArray
    group_m: IntArray
    """Blocks of rows that run through the columns side by side and share weights."""


def default_config(
    tokens: FloatArray,
    quantization: Quantization,
    num_experts: int,
    block_shape: tuple[int, int] = (128, 128),
) -> MoeConfig:
    """Tiles that vLLM 0.32 takes on CUDA where no tuned file fits the device.

    ``get_default_config``; for wna16 the Triton kernel's, with get_moe_wna16_block_config. vLLM
    may run wna16 and mxfp4 with other kernels (Marlin, CUDA), of which this knows nothing.

    Args:
        tokens: rows of the step before they are copied to their experts.
        quantization: how weights are stored.
        num_experts: experts of the rank.
        block_shape: rows and columns that share a scale; for fp8_block alone.
    """
    if quantization == "fp8_block":
        narrow = (tokens <= 8) & (block_shape[0] % 64 == 0)
        return _config(
            np.where(tokens <= 64, 16, 64),
            np.where(narrow, 64, block_shape[0]),
            np.full(tokens.shape, block_shape[1]),
            np.where(tokens <= 16, 1, 32),
        )
    if quantization == "wna16":
        return _config(
            np.select([tokens <= 20, tokens <= 40], [16, 32], 64),
            np.where(tokens == 1, 32, 64),
            np.where(tokens == 1, 64, 32),
            np.ones(tokens.shape),
        )
    small = (tokens <= 64) | (quantization == "fp8")
    return _config(
        np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16, 32, 64], 128),
        np.where(tokens <= 64, 64, 128),
        np.where(small, 128, 64),
        np.where(tokens // num_experts > 128, 16, 1),
    )


def tuned_config(tokens: FloatArray, table: Mapping[int, Mapping[str, int]]) -> MoeConfig:
    """Tiles from a tuned file's content: for each number of tokens those of the nearest entry.

    The rule of try_get_optimal_moe_config; of two entries as near, the first in the file. Keys
    are numbers of tokens, values name BLOCK_SIZE_M, _N, _K and GROUP_SIZE_M as vLLM's files do.

    Raises:
        ExpertError: if the table is empty or an entry lacks one of the four.
    """
    if not table:
        raise ExpertError("the table of tuned configurations is empty")
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
    for key, row in table.items():
        for name in names:
            if row.get(name, 0) < 1:
                raise ExpertError(f"the tuned configuration for {key} tokens has no {name} above 0")
    distance = np.abs(np.array(list(table))[:, None] - tokens[None, :])
    rows = [list(table.values())[index] for index in np.argmin(distance, axis=0)]
    return _config(*(np.array([row[name] for row in rows]) for name in names))


def awake_experts(tokens: FloatArray, routing: Routing) -> FloatArray:
    """Distinct experts of the rank that a step touches, U(T) in docs/theory.md."""
    chances, counts = routing.chances()
    asleep = (1.0 - chances[:, None]) ** tokens[None, :]
    awake: FloatArray = counts @ (1.0 - asleep)
    return awake


def expected_blocks(tokens: FloatArray, block_m: IntArray, routing: Routing) -> FloatArray:
    """Blocks of ``block_m`` rows that the rank's experts fill, on average.

    The sum over experts of E[ceil(m / b)], with m binomial: an expert meets each token or not.
    """
    chances, counts = routing.chances()
    shape = (len(chances), len(tokens))
    chance = np.broadcast_to(chances[:, None], shape)
    per_expert = _mean_blocks(
        np.broadcast_to(tokens, shape), chance, np.broadcast_to(block_m, shape).astype(np.float64)
    )
    blocks: FloatArray = counts @ per_expert
    return blocks


def expert_terms(
    hardware: Hardware,
    constants: ExpertConstants,
    gemms: Sequence[Gemm],
    tokens: FloatArray,
    routing: Routing,
    *,
    hidden_size: int,
    config: MoeConfig,
) -> Terms:
    """Routed experts of one layer, without the time of :data:`ROUTED_KERNELS` kernels.

    The terms add up to the whole: ``experts`` is to read each awake expert once, ``memory`` the
    activations, ``compute`` what arithmetic of the real rows adds, ``tile`` what blocks add
    (sorting rows into them, padding, weights read again, the narrow rows of a tile) and ``wave``
    what SMs without a tile do.

    Args:
        hardware: the data sheet.
        constants: what the kernels reach of it.
        gemms: a routed expert's matrices, the first product's before the second's.
        tokens: rows of the step, ascending or not; shape (n,).
        routing: the rank's experts.
        hidden_size: width of the layer's output.
        config: the kernel's tiles for ``tokens``.
    """
    naive = _is_naive(tokens, routing)
    awake = awake_experts(tokens, routing)
    rows = tokens * routing.experts_per_token
    blocks = np.where(naive, rows, expected_blocks(tokens, config.block_m, routing))
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

    def both(self, traffic: FloatArray, arithmetic: FloatArray) -> FloatArray:
        """The two overlap, less and less the closer they are."""
        return soft_maximum(traffic, arithmetic, self.constants.sharpness)


def _product_terms(device: _Reached, gemm: Gemm, work: _Work, routing: Routing) -> Terms:
    """One product: each level is a fuller account than the one before, a term what it adds."""
    config, sms = work.config, device.hardware.num_sms
    once = device.weights(work.awake * gemm.weight_traffic)
    activations = device.activations(work.rows * (gemm.inputs + gemm.outputs))
    read = work.awake + _read_again(device, gemm, work, routing)
    gap = 1.0 + device.constants.row_gap_bytes / (config.block_k * gemm.weight_bytes)
    traffic = device.weights(read * gemm.weight_traffic) * gap + activations
    row_flops = 2.0 * gemm.parameters
    plain = device.arithmetic(work.rows * row_flops, gemm.fp8)
    padded = device.arithmetic(work.blocks * config.block_m * row_flops, gemm.fp8)
    tiles = work.blocks * np.ceil(gemm.outputs / config.block_n)
    levels = (
        once + activations,
        device.both(once + activations, plain),
        device.both(traffic, padded),
        device.both(
            traffic / np.minimum(1.0, tiles / (BUSY_SMS * sms)),
            padded / np.minimum(1.0, tiles / sms),
        ),
    )
    return {
        "experts": once,
        "memory": activations,
        "compute": levels[1] - levels[0],
        "tile": levels[2] - levels[1],
        "wave": levels[3] - levels[2],
    }


def _read_again(device: _Reached, gemm: Gemm, work: _Work, routing: Routing) -> FloatArray:
    """Readings of an expert's matrix beyond the first, as far as L2 does not serve them.

    Between two blocks of an expert pass, sorted, its own matrix; unsorted, those of as many rows
    as lie between two of T tokens on average, (T + 1) / 3 tokens. Of these bytes L2 still holds
    what fits. Blocks of a group read together.
    """
    kept = device.constants.kept_l2 * device.hardware.l2_bytes
    apart = np.where(work.naive, routing.experts_per_token * (work.tokens + 1) / 3, 1.0)
    missed = np.maximum(0.0, 1.0 - kept / (apart * gemm.weight_traffic))
    further = np.maximum(0.0, work.blocks - work.awake)
    again: FloatArray = missed * further / np.where(work.naive, 1, work.config.group_m)
    return again


def _is_naive(tokens: FloatArray, routing: Routing) -> npt.NDArray[np.bool_]:
    """Few rows go unsorted, each as a block of its own (_prepare_expert_assignment)."""
    few = tokens * routing.experts_per_token * NAIVE_SPARSITY <= routing.num_experts
    naive: npt.NDArray[np.bool_] = few & (not routing.expert_parallel)
    return naive


def _mean_blocks(tokens: FloatArray, chance: FloatArray, block: FloatArray) -> FloatArray:
    """E[ceil(m / b)] = P(m > 0) + P(m > b) + P(m > 2b) + ... for a binomial m.

    P(m > 0) is exact, the others by an Edgeworth series to the skewness; a deviation of half a
    block or more leaves the last block's rows as good as uniform.
    """
    mean = tokens * chance
    deviation = np.maximum(1e-3, np.sqrt(mean * (1.0 - chance)))
    uniform = mean / block + (block - 1) / (2 * block)
    full = np.floor(np.maximum(0.0, mean - _WINDOW_DEVIATIONS * deviation) / block)
    counted = 1.0 - (1.0 - chance) ** tokens + full
    for further in range(1, _WINDOW_BLOCKS):
        rows = (full + further) * block
        score = np.clip((rows + 0.5 - mean) / deviation, -8.0, 8.0)
        skewness = (1.0 - 2.0 * chance) / deviation
        correction = skewness * (score**2 - 1.0) * _normal_density(score) / 6.0
        counted = counted + np.clip(_normal_tail(score) + correction, 0.0, 1.0)
    return np.where(deviation >= block / 2, uniform, counted)


def _normal_density(score: FloatArray) -> FloatArray:
    density: FloatArray = np.exp(-(score**2) / 2.0) / math.sqrt(2.0 * math.pi)
    return density


def _normal_tail(score: FloatArray) -> FloatArray:
    """P(Z > score); Abramowitz and Stegun 26.2.17, to 7.5e-8."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(score))
    coefficients = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530, 0.0)
    upper = _normal_density(score) * np.polyval(coefficients, t)
    return np.where(score >= 0, upper, 1.0 - upper)


def _config(*columns: npt.NDArray[np.generic]) -> MoeConfig:
    return MoeConfig(*(column.astype(np.int64) for column in columns))
