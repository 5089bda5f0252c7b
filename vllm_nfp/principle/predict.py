"""Near-free parallelism without a measurement: THEORY.md's "Predictor" over kernel models.

Times are per layer for a module and per step for the model. Nothing here is calibrated: see
:data:`vllm_nfp.principle.kernels.UNCALIBRATED` for what is assumed.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.idle_compute import (
    Module,
    PredictionError,
    check_cell,
    idle_compute_nfp,
    modules_of,
)
from vllm_nfp.principle.kernels import (
    ACTIVATION_BYTES,
    UNCALIBRATED,
    Device,
    Efficiency,
    FloatArray,
    Limit,
    Terms,
    add_terms,
    attention_terms,
    expert_terms,
    gemm_terms,
    sum_terms,
    transfer_terms,
)
from vllm_nfp.principle.shape import Gemm, ModelShape

DEFAULT_MAX_POSITIONS = 512

FFN_KERNELS = 3
"""Gate-up product, activation, down product."""
ROUTING_KERNELS = 4
"""Router product, top-k, sorting tokens by expert, sum over experts."""
ATTENTION_KERNELS = 2
"""The split kernel and the one that combines the splits."""
OTHER_LAYER_KERNELS = 4
"""Two norms, rotary embedding, cache write."""
OTHER_STEP_KERNELS = 3
"""Embedding, last norm, LM head."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted boundary of one module in one cell."""

    nfp: int
    """Largest N with t(n) <= (1 + epsilon) t(1) for every n up to it; at most max_positions."""
    idle_compute_nfp: int
    """The same by the idle-compute rule, without a cap."""
    limited_by: Limit
    """What grew most from N=1 to the first N over the line, or to the last N if none is."""
    curve: tuple[float, ...]
    """Seconds for N = 1, 2, ..., max_positions."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``vllm-nfp predict --json``."""

    module: Module
    batch_size: int
    context: int
    epsilon: float
    nfp: int
    idle_compute_nfp: int
    limited_by: Limit


@dataclass(frozen=True, slots=True)
class _Cost:
    """A module's time: what does not depend on N, and terms that may."""

    fixed: float
    terms: Terms

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.fixed + other.fixed, add_terms(self.terms, other.terms))

    def times(self, factor: float) -> _Cost:
        terms: Terms = {limit: factor * seconds for limit, seconds in self.terms.items()}
        return _Cost(factor * self.fixed, terms)

    def seconds(self) -> FloatArray:
        return self.fixed + sum_terms(self.terms)


@dataclass(frozen=True, slots=True)
class _Step:
    """All that a step's cost depends on."""

    shape: ModelShape
    device: Device
    batch_size: int
    context: int
    positions: FloatArray
    attention_tile: int | None
    """Query rows of a tile; None: the kernel's own choice."""
    capture_sizes: tuple[int, ...]
    """Ascending."""

    @property
    def tokens(self) -> FloatArray:
        return self.batch_size * self.positions

    def module(self, module: Module) -> _Cost:
        costs: dict[Module, Callable[[], _Cost]] = {
            "dense_ffn": self._dense_ffn,
            "moe_ffn": self._moe_ffn,
            "attention": lambda: self._attention().times(1 / self.shape.num_layers),
            "model": self._model,
        }
        return costs[module]()

    def _model(self) -> _Cost:
        shape = self.shape
        layer = self._projections() + self._kernels(OTHER_LAYER_KERNELS)
        cost = layer.times(shape.num_layers) + self._attention() + self._lm_head()
        if shape.num_dense_layers:
            cost += self._dense_ffn().times(shape.num_dense_layers)
        if shape.num_moe_layers:
            cost += self._moe_ffn().times(shape.num_moe_layers)
        return cost

    def _dense_ffn(self) -> _Cost:
        products = self._products(self.shape.dense_ffn_gemms)
        return self._kernels(FFN_KERNELS) + products + self._all_reduce()

    def _moe_ffn(self) -> _Cost:
        # Graph padding adds no expert work: vLLM 0.32 routes padded tokens to no expert.
        shape = self.shape
        routed = expert_terms(
            self.device,
            shape.expert_gemms,
            self.tokens,
            num_experts=shape.num_experts,
            experts_per_token=shape.experts_per_token,
            quantization=shape.quantization,
        )
        shared_kernels = FFN_KERNELS if shape.shared_intermediate_size else 0
        return (
            self._kernels(FFN_KERNELS + ROUTING_KERNELS + shared_kernels)
            + _Cost(0.0, routed)
            + self._products(shape.shared_gemms)
            + self._all_reduce()
        )

    def _attention(self) -> _Cost:
        """All layers, full and sliding; the cache holds context and positions."""
        cached = self.context + self.positions
        sliding = self.shape.num_sliding_layers
        cost = self._attention_layer(cached).times(self.shape.num_layers - sliding)
        if self.shape.sliding_window is not None and sliding:
            # The windows of N neighbours together span N - 1 tokens more than one of them.
            union = np.minimum(cached, self.shape.sliding_window + self.positions - 1)
            cost += self._attention_layer(union).times(sliding)
        return cost

    def _attention_layer(self, cached: FloatArray) -> _Cost:
        terms = attention_terms(
            self.device,
            self.shape.attention,
            batch_size=self.batch_size,
            cached_tokens=cached,
            positions=self.positions,
            tile_rows=self.attention_tile,
        )
        return self._kernels(ATTENTION_KERNELS) + _Cost(0.0, terms)

    def _projections(self) -> _Cost:
        gemms = self.shape.projection_gemms
        return self._kernels(len(gemms)) + self._products(gemms) + self._all_reduce()

    def _lm_head(self) -> _Cost:
        """Logits of every position, outside the graph; all growth counts as the LM head's."""
        terms = gemm_terms(self.device, self.shape.lm_head_gemm, self.tokens)
        cost = _Cost(0.0, {"lm_head": sum_terms(terms)}) + self._kernels(OTHER_STEP_KERNELS)
        return cost + self._collective(self.shape.vocab_size, rounds=1)

    def _products(self, gemms: Sequence[Gemm]) -> _Cost:
        """Dense products inside the graph, with the cost of padding to a captured size."""

        def terms(tokens: FloatArray) -> Terms:
            return add_terms(*(gemm_terms(self.device, gemm, tokens) for gemm in gemms))

        plain = terms(self.tokens)
        if not self.capture_sizes:
            return _Cost(0.0, plain)
        padded = np.array([_next_size(count, self.capture_sizes) for count in self.tokens])
        added = sum_terms(terms(padded)) - sum_terms(plain)
        return _Cost(0.0, {**plain, "graph_padding": added})

    def _all_reduce(self) -> _Cost:
        return self._collective(self.shape.hidden_size, rounds=2)

    def _collective(self, width: int, rounds: int) -> _Cost:
        ranks = self.shape.tensor_parallel_size
        if ranks == 1:
            return _Cost(0.0, {})
        moved = self.tokens * width * ACTIVATION_BYTES
        terms = transfer_terms(self.device, moved, ranks, rounds)
        return self._kernels(1) + _Cost(0.0, terms)

    def _kernels(self, count: int) -> _Cost:
        return _Cost(count * self.device.efficiency.kernel_seconds, {})


def predict(
    shape: ModelShape,
    hardware: Hardware,
    batch_size: int,
    context: int,
    epsilon: float,
    module: Module,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    attention_tile: int | None = None,
    *,
    capture_sizes: Sequence[int] = (),
    efficiency: Efficiency = UNCALIBRATED,
) -> Prediction:
    """Predict NFP(epsilon; B, L) of one module by scanning N = 1 to ``max_positions``.

    Args:
        shape: the model.
        hardware: the device of each rank.
        batch_size: sequences in the step.
        context: tokens in the cache of each sequence before the step.
        epsilon: tolerance, as a share of the time of one position.
        module: which part; a module's times are those of one layer, the mean for attention.
        max_positions: last N of the scan.
        attention_tile: query rows of an attention tile; None: FlashAttention 3's choice.
        capture_sizes: token counts of the captured CUDA graphs, in any order; empty: no padding.
        efficiency: what kernels reach of the data sheet.

    Raises:
        PredictionError: if the model has no such module, or for a value out of bounds.
    """
    if attention_tile is not None and attention_tile < 1:
        raise PredictionError(f"attention_tile must be 1 row or more, not {attention_tile}")
    check_cell(shape, batch_size, context, module)
    step = _Step(
        shape,
        Device(hardware, efficiency),
        batch_size,
        context,
        _scan(max_positions),
        attention_tile,
        tuple(sorted(capture_sizes)),
    )
    cost = step.module(module)
    nfp, limited_by = _boundary(cost, epsilon)
    idle = idle_compute_nfp(shape, hardware, batch_size, context, module)
    return Prediction(nfp, idle, limited_by, tuple(cost.seconds().tolist()))


def predict_cells(
    shape: ModelShape,
    hardware: Hardware,
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    epsilons: Sequence[float],
) -> tuple[Row, ...]:
    """Predictions for every module that the model has, in every cell, at every epsilon.

    Raises:
        PredictionError: for a value out of bounds.
    """
    device, positions = Device(hardware, UNCALIBRATED), _scan(DEFAULT_MAX_POSITIONS)
    rows = []
    for module in modules_of(shape):
        for batch_size in batch_sizes:
            for context in contexts:
                idle = idle_compute_nfp(shape, hardware, batch_size, context, module)
                step = _Step(shape, device, batch_size, context, positions, None, ())
                cost = step.module(module)
                for epsilon in epsilons:
                    nfp, limit = _boundary(cost, epsilon)
                    rows.append(Row(module, batch_size, context, epsilon, nfp, idle, limit))
    return tuple(rows)


def _scan(max_positions: int) -> FloatArray:
    if max_positions < 1:
        raise PredictionError(f"max_positions must be 1 or more, not {max_positions}")
    return np.arange(1, max_positions + 1, dtype=np.float64)


def _boundary(cost: _Cost, epsilon: float) -> tuple[int, Limit]:
    """NFP, and the term that grew most up to the first N over the line."""
    if not math.isfinite(epsilon) or epsilon < 0:
        raise PredictionError(f"epsilon must be a share of 0 or more, not {epsilon!r}")
    seconds = cost.seconds()
    over = np.flatnonzero(seconds > (1 + epsilon) * seconds[0])
    nfp = int(over[0]) if over.size else len(seconds)
    last = min(nfp, len(seconds) - 1)
    growth = {limit: float(term[last] - term[0]) for limit, term in cost.terms.items()}
    grown = max(growth, key=lambda limit: growth[limit])
    return nfp, grown if growth[grown] > 0 else "memory"


def _next_size(tokens: float, sizes: tuple[int, ...]) -> float:
    """The captured size that a step is padded to; above the largest it runs unpadded."""
    index = bisect.bisect_left(sizes, tokens)
    return float(sizes[index]) if index < len(sizes) else tokens
