"""The expected step before any measurement: seconds of its parts, for each N of a cell.

Cliffs belong to the prior. A step beyond the largest CUDA graph is launched kernel by kernel. It
takes the longer of its GPU work and its launches. The place of this cliff is known, the time of the
launches is not. So launches are a part of the step with a wide uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.give_way import give_way
from vllm_nfp.principle.graphs import CapturedGraphs, RunSteps
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Step
from vllm_nfp.surface.parts import PART_OF, FloatArray, IntArray, Part
from vllm_nfp.surface.whole_step import Bend, WholeStep, both_steps
from vllm_nfp.types import Module

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


@dataclass(frozen=True, slots=True)
class PriorCell:
    """The expected step of one batch size and context, for N = 1, 2, ...

    Attributes:
        seconds: of the whole step by part, shape [parts, n]; LAUNCH is 0 in a CUDA graph.
        tokens: of the step, shape [n].
        padded: the same with the padding to a captured size.
        in_graph: whether a CUDA graph holds the step, shape [n].
        step: the whole step.
        bare: the same as a probe runs it on KV blocks without content.
        alike: see :func:`vllm_nfp.surface.whole_step.whole_step`.
        layers: that have each module; None: the times are in no unit, only their ratios count.
    """

    batch_size: int
    context: int
    seconds: FloatArray
    tokens: IntArray
    padded: IntArray
    in_graph: NDArray[np.bool_]
    step: WholeStep
    bare: WholeStep
    alike: FloatArray | None = None
    layers: Mapping[Module, int] | None = None

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that the model has, the whole step last."""
        return (*(m for m, part in PART_OF.items() if self.seconds[part, 0] > 0.0), Module.MODEL)

    @property
    def log_step(self) -> FloatArray:
        """log of the whole step's time, shape [n]."""
        return self.step.log_seconds

    def log_seconds(self, module: Module, content: bool = True) -> FloatArray:
        """log t(N) of all layers' module, or of the whole step; shape [n].

        Args:
            content: that of KV blocks with content, which only the whole step depends on.
        """
        if module is Module.MODEL:
            return (self.step if content else self.bare).log_seconds
        return np.asarray(np.log(self.seconds[PART_OF[module]]))

    def weights(self, module: Module, content: bool = True) -> FloatArray:
        """d log t / d log of each part, [parts, n].

        Columns sum to 1 but for STEP, ROUTING and CONTEXT.

        Args:
            content: see :meth:`log_seconds`.
        """
        if module is Module.MODEL:
            return (self.step if content else self.bare).shares
        weights = np.zeros_like(self.seconds)
        weights[PART_OF[module]] = 1.0
        return weights


Prior: TypeAlias = Callable[[int, int], PriorCell]
"""(batch size, context) -> the expected step."""


def bent(prior: Prior, log_launch: float, bend: Bend) -> Prior:
    """The prior with what measurements have shown of launches, and of positions of one sequence.

    Args:
        log_launch: log of the launch time over that of ``prior``.
    """

    @lru_cache(maxsize=CELLS_KEPT)
    def cell(batch_size: int, context: int) -> PriorCell:
        known = prior(batch_size, context)
        seconds = known.seconds.copy()
        seconds[Part.LAUNCH] *= np.exp(log_launch)
        step, bare = both_steps(seconds, known.alike, bend)
        return replace(known, seconds=seconds, step=step, bare=bare)

    return cell


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
        found = _cell(batch_size, context, seconds, alike_of(step), step.as_run, launch)
        return replace(found, layers=layers)

    def alike_of(step: Step) -> FloatArray | None:
        if not shape.num_moe_layers:
            return None
        give_way()
        ratio = step.moe_ffn_alike().seconds() / step.moe_ffn().seconds()
        return np.asarray(ratio / ratio[0])

    launch = LAUNCH_SECONDS_PER_LAYER * (shape.num_layers - shape.num_moe_layers)
    launch += LAUNCH_SECONDS_PER_MOE_LAYER * shape.num_moe_layers
    if not serving.graphs.sizes:
        launch = 0.0  # there is no cliff where no step has a graph
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
    alike: FloatArray | None,
    run: RunSteps,
    launch_seconds: float,
) -> PriorCell:
    tokens = batch_size * np.arange(1, seconds.shape[1] + 1, dtype=np.int64)
    padded = run.tokens.astype(np.int64)
    seconds[Part.LAUNCH] = np.where(run.in_graph, 0.0, launch_seconds)
    steps = both_steps(seconds, alike)
    return PriorCell(batch_size, context, seconds, tokens, padded, run.in_graph, *steps, alike)


def generic_prior(
    graphs: CapturedGraphs,
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
    launch = 2.0 if graphs.sizes else 0.0

    @lru_cache(maxsize=CELLS_KEPT)
    def cell(batch_size: int, context: int) -> PriorCell:
        positions = np.arange(1, max_positions + 1, dtype=np.float64)
        seconds = np.zeros((len(Part), max_positions))
        run = graphs.run_steps(batch_size, positions)
        flat = np.maximum(1.0, run.tokens / knee)
        ffns = [PART_OF[m] for m in modules if m in (Module.DENSE_FFN, Module.MOE_FFN)]
        for part in ffns:
            seconds[part] = 0.6 / len(ffns) * flat
        alike = None
        if Part.MOE_FFN in ffns:
            tokens = batch_size * positions
            active = (1.0 - (1.0 - ACTIVE) ** tokens) / ACTIVE
            alike = active[0] / active
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
        return _cell(batch_size, context, seconds, alike, run, launch)

    return cell
