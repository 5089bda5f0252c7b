"""The expected step before any measurement: seconds of its parts, for each N of a cell.

Cliffs belong to the prior. A step beyond the largest CUDA graph is launched kernel by kernel. It
takes the longer of its GPU work and its launches. The place of this cliff is known, the time of the
launches is not. So launches are a part of the step with a wide uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.give_way import give_way
from vllm_nfp.principle.graphs import padded_tokens
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Module

FloatArray: TypeAlias = NDArray[np.float64]
SingleArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]

LAUNCH_DEVIATION = 0.4
"""Standard deviation of log launch time before a step without a CUDA graph was measured. Recorded
hosts scatter by 0.2, but all of them had the same kind of processor: a choice, not a fit."""
LEAST_LAUNCH_DEVIATION = 0.15
LAUNCH_SECONDS_PER_LAYER, LAUNCH_SECONDS_PER_MOE_LAYER = 8e-4, 1.6e-3
"""Host time to launch one layer without a CUDA graph. Recorded on hosts of H100: dense layers 0.6
to 0.9 ms, layers with experts 1.3 to 2.1 ms, geometric mean 1.6 (benchmarks/results, draft lengths
of 2026-11-26 and servers at the defaults of 2026-11-28)."""
ACTIVE = 1.0 / 16.0
"""Share of the experts that a token activates, where the model is not known."""
STATES = 1024.0
"""Recurrent states whose transfer takes as long as all else at one token, where the model is not
known: a choice, like the other figures of :func:`generic_prior`."""
CELLS_KEPT = 512


class Part(IntEnum):
    """Parts of a step. Their errors are independent; the values index arrays."""

    DENSE_FFN = 0
    MOE_FFN = 1
    ATTENTION = 2
    COMMUNICATION = 3
    OTHER = 4
    """Projections, norms and the LM head."""
    LAUNCH = 5
    """The host's launches, where the step has no CUDA graph."""
    STEP = 6
    """What the sum of the parts misses."""
    ROUTING = 7
    """How many experts wake in all layers of a whole step, against the few that are timed alone."""
    LINEAR_ATTENTION = 8
    """Layers that keep a state in place of a cache."""


PART_OF = {
    Module.DENSE_FFN: Part.DENSE_FFN,
    Module.MOE_FFN: Part.MOE_FFN,
    Module.ATTENTION: Part.ATTENTION,
    Module.COMMUNICATION: Part.COMMUNICATION,
    Module.LINEAR_ATTENTION: Part.LINEAR_ATTENTION,
}
WORK = (
    Part.DENSE_FFN,
    Part.MOE_FFN,
    Part.ATTENTION,
    Part.LINEAR_ATTENTION,
    Part.COMMUNICATION,
    Part.OTHER,
)


@dataclass(frozen=True, slots=True)
class PriorCell:
    """The expected step of one batch size and context, for N = 1, 2, ...

    Attributes:
        seconds: of the whole step by part, shape [parts, n]; LAUNCH is 0 in a CUDA graph.
        tokens: of the step, shape [n].
        padded: the same with the padding to a captured size.
        in_graph: whether a CUDA graph holds the step, shape [n].
        log_step: log of the whole step's time, shape [n].
        shares: d log of the step / d log of each part, shape [parts, n].
        layers: that have each module; None: the times are in no unit, only their ratios count.
    """

    batch_size: int
    context: int
    seconds: FloatArray
    tokens: IntArray
    padded: IntArray
    in_graph: NDArray[np.bool_]
    log_step: FloatArray
    shares: FloatArray
    layers: Mapping[Module, int] | None = None

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that the model has, the whole step last."""
        return (*(m for m, part in PART_OF.items() if self.seconds[part, 0] > 0.0), Module.MODEL)

    def log_seconds(self, module: Module) -> FloatArray:
        """log t(N) of all layers' module, or of the whole step; shape [n]."""
        if module is Module.MODEL:
            return self.log_step
        return np.asarray(np.log(self.seconds[PART_OF[module]]))

    def weights(self, module: Module) -> FloatArray:
        """d log t / d log of each part, [parts, n]; columns sum to 1 but for STEP and ROUTING."""
        if module is Module.MODEL:
            return self.shares
        weights = np.zeros_like(self.seconds)
        weights[PART_OF[module]] = 1.0
        return weights


Prior: TypeAlias = Callable[[int, int], PriorCell]
"""(batch size, context) -> the expected step."""


def with_launch(prior: Prior, log_factor: float, deviation: float) -> Prior:
    """The prior with another launch time, as steps without a CUDA graph have shown it.

    Args:
        log_factor: log of the launch time over that of ``prior``.
        deviation: standard deviation of its log.
    """

    @lru_cache(maxsize=CELLS_KEPT)
    def cell(batch_size: int, context: int) -> PriorCell:
        known = prior(batch_size, context)
        seconds = known.seconds.copy()
        seconds[Part.LAUNCH] *= np.exp(log_factor)
        log_step, shares = _step(seconds, deviation)
        return replace(known, seconds=seconds, log_step=log_step, shares=shares)

    return cell


def _step(
    seconds: FloatArray, deviation: float = LAUNCH_DEVIATION
) -> tuple[FloatArray, FloatArray]:
    """log of the whole step's time, and its derivative by the log of each part.

    A power mean of work and launches stands for the expectation of their maximum, where log launch
    time has this standard deviation: with the exponent 1.702 / deviation its derivative is the
    logistic approximation of the probability that launches bound the step.
    """
    power = 1.702 / max(deviation, LEAST_LAUNCH_DEVIATION)
    total = seconds[list(WORK)].sum(axis=0)
    # Relative to the work, since powers of seconds may underflow.
    work, launch = np.ones_like(total), (seconds[Part.LAUNCH] / total) ** power
    bound_by_work = work / (work + launch)
    shares = np.zeros_like(seconds)
    shares[list(WORK)] = seconds[list(WORK)] / total * bound_by_work
    shares[Part.LAUNCH] = 1.0 - bound_by_work
    shares[Part.STEP], shares[Part.ROUTING] = 1.0, shares[Part.MOE_FFN]
    return np.log(total) + np.log(work + launch) / power, shares


def predicted_prior(
    shape: ModelShape, target: Target, serving: Serving, max_positions: int
) -> Prior:
    """The principle's prediction for a model on a device it knows.

    Args:
        max_positions: last N.
    """

    @lru_cache(maxsize=CELLS_KEPT)
    def cell(batch_size: int, context: int) -> PriorCell:
        positions = np.arange(1, max_positions + 1, dtype=np.float64)
        step = Step(shape, target, serving, batch_size, context, positions)
        seconds = np.zeros((len(Part), max_positions))
        named = {
            "dense FFN": Part.DENSE_FFN,
            "MoE FFN": Part.MOE_FFN,
            "attention": Part.ATTENTION,
            "communication": Part.COMMUNICATION,
            "linear attention": Part.LINEAR_ATTENTION,
        }
        for name, cost in step.each_part():
            seconds[named.get(name, Part.OTHER)] += cost.seconds()
            give_way()
        found = _cell(batch_size, context, seconds, serving.capture_sizes, launch)
        return replace(found, layers=layers)

    launch = LAUNCH_SECONDS_PER_LAYER * (shape.num_layers - shape.num_moe_layers)
    launch += LAUNCH_SECONDS_PER_MOE_LAYER * shape.num_moe_layers
    linear = shape.linear_attention
    layers = {
        Module.DENSE_FFN: shape.num_dense_layers,
        Module.MOE_FFN: shape.num_moe_layers,
        Module.ATTENTION: shape.attention_layers,
        Module.COMMUNICATION: shape.num_layers,
        Module.LINEAR_ATTENTION: 0 if linear is None else linear.layers,
    }
    return cell


def _cell(
    batch_size: int,
    context: int,
    seconds: FloatArray,
    capture_sizes: tuple[int, ...],
    launch_seconds: float,
) -> PriorCell:
    counts = range(1, seconds.shape[1] + 1)
    tokens = batch_size * np.array(counts, dtype=np.int64)
    held = [padded_tokens(capture_sizes, batch_size, n) for n in counts]
    in_graph = np.array([size is not None for size in held])
    padded = np.array([size or t for size, t in zip(held, tokens, strict=True)], dtype=np.int64)
    if capture_sizes:
        seconds[Part.LAUNCH] = np.where(in_graph, 0.0, launch_seconds)
    return PriorCell(batch_size, context, seconds, tokens, padded, in_graph, *_step(seconds))


def generic_prior(
    capture_sizes: tuple[int, ...],
    max_positions: int,
    modules: tuple[Module, ...] = (Module.ATTENTION, Module.DENSE_FFN),
    knee: float = 128.0,
    cached_tokens: float = 65536.0,
) -> Prior:
    """A guess for an unknown device or model; give it wide hyperparameters.

    A part that works on tokens is flat up to the knee and then linear in B x N. Experts cost like
    the number of distinct ones that uniform routing activates. Attention is linear in B x L, and
    flat in N up to 16 positions. Only ratios matter: a step of one token without context takes 1.

    Args:
        modules: those of the model.
        knee: tokens from which on arithmetic bounds a product.
        cached_tokens: B x L at which attention takes as long as all else at one token.
    """

    @lru_cache(maxsize=CELLS_KEPT)
    def cell(batch_size: int, context: int) -> PriorCell:
        positions = np.arange(1, max_positions + 1, dtype=np.float64)
        seconds = np.zeros((len(Part), max_positions))
        held = [padded_tokens(capture_sizes, batch_size, int(n)) for n in positions]
        padded = [size or batch_size * n for size, n in zip(held, positions, strict=True)]
        flat = np.maximum(1.0, np.array(padded) / knee)
        ffns = [PART_OF[m] for m in modules if m in (Module.DENSE_FFN, Module.MOE_FFN)]
        for part in ffns:
            seconds[part] = 0.6 / len(ffns) * flat
        if Part.MOE_FFN in ffns:
            tokens = batch_size * positions
            active = (1.0 - (1.0 - ACTIVE) ** tokens) / ACTIVE
            each = np.maximum(1.0, tokens * ACTIVE / knee)
            seconds[Part.MOE_FFN] = 0.6 / len(ffns) * active * each
        if Module.LINEAR_ATTENTION in modules:
            # Its projections, and a state read once and written at each position.
            states = batch_size * (1.0 + positions) / 2.0
            seconds[Part.LINEAR_ATTENTION] = 0.3 * flat + states / STATES
        if Module.COMMUNICATION in modules:
            seconds[Part.COMMUNICATION] = 0.1 * flat
        seconds[Part.OTHER] = (0.4 if ffns else 1.0) * flat
        cached = batch_size * (context + positions) / cached_tokens
        seconds[Part.ATTENTION] = 0.02 + cached * np.maximum(1.0, positions / 16.0)
        return _cell(batch_size, context, seconds, capture_sizes, 2.0)

    return cell
