"""What the probe finds out: pairs of times, curves, boundaries, predictions, and its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from vllm_nfp.types.shapes import Above0, Cell, Count, Module, Size, Whole


class State(StrEnum):
    """What the probe is doing."""

    WARMING = "warming"
    """No estimate yet."""
    PROBING = "probing"
    """Estimates exist; some points still lack samples."""
    STEADY = "steady"
    """Every point that can be measured has its samples; the probe now refreshes them."""
    PASSIVE = "passive"
    """Nothing is probed, for the reason in the snapshot; real steps are watched."""
    DISABLED = "disabled"
    """Off, for the reason in the log and in the snapshot."""


class Basis(StrEnum):
    """What an answer rests on."""

    MEASURED = "measured"
    """Pairs of this very shape, or for an FFN of as many tokens."""
    INFERRED = "inferred"
    """Measurements nearby: they took half or more of the prediction's variance away."""
    PREDICTED = "predicted"
    """The prediction; what was measured says little of this shape."""


class InCell:
    """What belongs to one module at one batch size and context."""

    __slots__ = ()
    module: Module
    batch_size: Size
    context: Size

    @property
    def cell(self) -> Cell:
        """Where it belongs."""
        return Cell(self.module, self.batch_size, self.context)


@dataclass(frozen=True, slots=True)
class CurvePoint(InCell):
    """One point of t(N): the time of one module at one number of positions per sequence."""

    module: Module
    batch_size: Size
    context: Size
    positions: Size
    samples: Count
    """Pairs of this very shape; those of all other points for N = 1."""
    median_seconds: Above0
    ratio: Above0
    """Time over that of one position, from pairs."""
    ratio_lower: float
    """Lower end of the 95 % interval of the ratio; 0 where it is not known."""
    ratio_upper: float | None
    """Upper end; None where it is not known."""
    execution: str
    """How a step of this shape runs: full (CUDA graph), piecewise, or none (no graph)."""
    seconds_lower: float = 0.0
    """Lower end of the 95 % interval of the time; 0 where it is not known."""
    seconds_upper: float | None = None
    """Upper end; None where it is not known."""
    basis: Basis = Basis.MEASURED
    """What the ratio rests on. Profiles from before the cost surface hold measured points alone."""


@dataclass(frozen=True, slots=True)
class Boundary(InCell):
    """NFP of one module in one cell at one epsilon, on the grid of probed positions."""

    module: Module
    batch_size: Size
    context: Size
    epsilon: Above0
    positions: Size
    """Largest probed N for which it and all smaller probed n are within 1 + epsilon."""
    lower: Size
    upper: Size
    """95 % interval; lower <= positions <= upper."""
    at_limit: bool
    """No probed N is over the line: the boundary is at the largest probed N or beyond, and
    ``upper`` is censored there."""
    largest_free: Size
    """Largest probed N that is surely under the line, even if a smaller one is over it, since t
    is not monotone; ``positions`` if there is none. In 95 % it names no other N over the line."""
    basis: Basis = Basis.MEASURED
    """The weaker of what its two points rest on: the last that is free and the first that is
    not."""


@dataclass(frozen=True, slots=True)
class Prediction(InCell):
    """What the model without measurement says for one module in one cell."""

    module: Module
    batch_size: Size
    context: Size
    epsilon: Above0
    positions: Size
    idle_compute_positions: Count
    limited_by: str


@dataclass(frozen=True, slots=True)
class ActiveExperts:
    """Distinct experts of a layer that a step of so many tokens reads."""

    tokens: Size
    experts: Above0
    """The mean over layers and over draws of so many of the counted tokens."""
    uniform: Above0
    """The same if all experts were equally likely."""


@dataclass(frozen=True, slots=True)
class ExpertRouting:
    """How real steps reached the experts, counted from the choices of the model's routers.

    Counted are real steps that ran without a CUDA graph.
    """

    num_experts: Size
    experts_per_token: Size
    layers: Size
    """Layers whose routers were asked."""
    steps: Count
    """Real steps that were counted since the start; the latest of them are what answers rest on."""
    tokens: Whole
    """Tokens of theirs."""
    skew: Annotated[float, Meta(ge=0, le=2)]
    """The experts' shares fall about like rank ** -skew; 0: uniform."""
    active: Annotated[tuple[ActiveExperts, ...], Meta(max_length=16)]
    """Ascending in tokens; powers of two up to 1024."""


@dataclass(frozen=True, slots=True)
class LiveStep:
    """The last real decode step."""

    batch_size: Count
    context: Count
    """Mean number of tokens in the KV cache of a sequence."""
    positions: Count
    """Positions per sequence that the step ran."""


@dataclass(frozen=True, slots=True)
class StepLatency:
    """Time of real decode steps of one kind, without any probe in them."""

    batch_size: Count
    """Upper bound of the bucket of sequences in the step."""
    context: Count
    """Upper bound of the bucket of mean context lengths, in tokens."""
    positions: Count
    """Positions per sequence that the steps ran."""
    samples: Whole
    """Steps since the start; the median is taken over the most recent timed ones."""
    median_seconds: float
    """From the launch of the forward pass to the end of sampling, on the device."""
    period_seconds: float | None = None
    """Median from the begin of a step to that of the next, on the host; None: not known."""


@dataclass(frozen=True, slots=True)
class LayerLatency(InCell):
    """Time of one module of one decoder layer at one number of positions per sequence."""

    layer: Count
    module: Module
    batch_size: Size
    context: Size
    positions: Size
    samples: Count
    """Most recent runs that the median is taken over."""
    median_seconds: Above0


@dataclass(frozen=True, slots=True)
class LayerHistogram:
    """Cumulative counts of one layer's module times, as Prometheus wants them."""

    layer: Count
    module: Module
    bounds_seconds: tuple[float, ...]
    counts: tuple[Whole, ...]
    """Counts at or below each bound; one more entry than bounds, for the rest."""
    sum_seconds: float
