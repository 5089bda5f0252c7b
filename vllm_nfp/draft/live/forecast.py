"""Forecasts how long a step of a draft length takes that was not tried.

Two sources, in this order: a length measured in the cell itself, extended by the probe's curve
t(N) / t(1) and the time of a drafted token; the straight line through measured lengths. Trials are
proposed from the forecast (:mod:`vllm_nfp.draft.live.promise`); only their results choose.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.curve_set import CurveSet, Point
from vllm_nfp.draft.live.draft_seconds import by_pairs, middle
from vllm_nfp.draft.live.steps import CellKey, distance
from vllm_nfp.draft.live.trial import Basis
from vllm_nfp.types import Basis as CurveBasis

EVIDENCE_OCTAVES = 1.0
"""The cost of a drafted token counts for batch sizes within this distance."""
LEAST_SHARE = 0.1
"""No length is forecast to take less than this fraction of the one it is computed from."""
LEAST_SHARE_OF_DRAFTS = 0.5
"""Of the time that a longer draft adds, what making it must take if the rest is a prediction: a
prediction of the rest that is twice too small or a third too large moves the cost by half. On an
H200 (2026-11-28, 24 layers of an 8B model, EAGLE-3 head) making it takes 0.85 of that at one
sequence, 0.7 at eight."""
HOST_STEPS = 8
"""Steps without a CUDA graph whose median is the host's time."""
MOST_RATIOS = 4096
PLACES_AN_OCTAVE = 8
"""Contexts that are read off as one: an eighth of an octave."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Draft lengths that were compared in a cell."""

    key: CellKey
    relative: Mapping[int, float]
    """Time by draft length, in a unit of the cell's own."""
    unit_seconds: float
    """That unit, in seconds."""
    place: tuple[int, int] | None = None
    """Real batch size and context of its last step; None: those of the key."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected duration of a step of a length that was not tried."""

    relative: float | None
    """Time of a step in the cell's unit; None: not known."""
    basis: Basis


class StepModel:
    """Forecasts of step times.

    Args:
        lengths: draft lengths that may be chosen, ascending.
        widest_graph: tokens of the widest step with a CUDA graph; None: no graphs, or not known.
    """

    def __init__(self, lengths: Sequence[int], widest_graph: int | None) -> None:
        self._lengths = tuple(lengths)
        self._widest_graph = widest_graph
        self._curves = CurveSet.of(())
        self._read_off: dict[tuple[int, int, int], Point | None] = {}
        """By batch size, rounded context and N."""
        self._without_graph: deque[float] = deque(maxlen=HOST_STEPS)
        """Seconds of the last steps without a CUDA graph: the host's time, at any batch size."""
        self.draft_seconds: dict[int, float] = {}
        """Time of one more drafted token beside its verification, by batch size, where known."""
        self._pairs_used: dict[int, int] = {}
        """Pairs of lengths that this rests on."""

    def set_curves(self, curves: CurveSet | Iterable[StepCurve]) -> None:
        """Use the probe's latest curves of the whole step.

        For a :class:`CurveSet` this costs one comparison if it is the one in use.
        """
        found = curves if isinstance(curves, CurveSet) else CurveSet.of(curves)
        if found is not self._curves:
            self._curves = found
            self._read_off.clear()

    def has_graph(self, batch_size: int, length: int) -> bool:
        """Whether a step with this many drafts runs in a CUDA graph."""
        return self._widest_graph is None or batch_size * (length + 1) <= self._widest_graph

    def saw(self, batch_size: int, length: int, seconds: float) -> None:
        """Take in a timed step."""
        if not self.has_graph(batch_size, length):
            self._without_graph.append(seconds)

    def learn_draft_seconds(self, at: Compared) -> None:
        """Update the cost of a drafted token, unless it rests on more pairs of lengths already.

        Drafts are a small difference, so that the probe's curve goes before any prediction. A
        predicted curve serves where verification hardly grows.
        """
        seconds = {length: t * at.unit_seconds for length, t in at.relative.items()}
        predicted = self._is_predicted(at, at.relative)
        least = LEAST_SHARE_OF_DRAFTS if predicted else None
        found = by_pairs(seconds, lambda positions: self._ratio(at, positions), least)
        batch_size, pairs = at.key[0], 0 if predicted else len(found)
        if found and pairs >= self._pairs_used.get(batch_size, 0):
            self.draft_seconds[batch_size] = middle(found)
            self._pairs_used[batch_size] = pairs

    def forecast(self, here: Compared, length: int) -> Forecast:
        """How long a step of a length takes, without the cell's own measurement of it."""
        known = {k: t for k, t in here.relative.items() if k != length}
        anchor = min(known, key=lambda other: (abs(other - length), other))
        modelled = self._modelled(here, length, anchor)
        relative = _on_the_line(known, length) if modelled is None else modelled * known[anchor]
        if not self.has_graph(here.key[0], length) and self._without_graph:
            host = statistics.median(self._without_graph) / here.unit_seconds
            relative = host if relative is None else max(relative, host)
        basis = Basis.BESIDE if self._are_beside(anchor, length) else Basis.FAR
        return Forecast(relative, basis)

    def _is_predicted(self, at: Compared, lengths: Iterable[int]) -> bool:
        found = (self._point(at, length + 1) for length in lengths)
        return any(point is not None and point[1] == CurveBasis.PREDICTED for point in found)

    def _are_beside(self, one: int, other: int) -> bool:
        places = self._lengths
        return one in places and abs(places.index(one) - places.index(other)) == 1

    def _modelled(self, at: Compared, length: int, reference: int) -> float | None:
        """Time of a length's step over the reference's, from curve and drafting; None: no curve."""
        one, other = self._ratio(at, reference + 1), self._ratio(at, length + 1)
        if one is None or other is None:
            return None
        each = self._draft_seconds_near(at.key[0]) / at.unit_seconds
        whole = at.relative[reference]
        # A drafting model runs once at K = 0 as well.
        verifying = max(LEAST_SHARE * whole, whole - max(1, reference) * each)
        return max(LEAST_SHARE, (verifying * other / one + max(1, length) * each) / whole)

    def _ratio(self, at: Compared, positions: int) -> float | None:
        found = self._point(at, positions)
        return None if found is None else found[0]

    def _point(self, at: Compared, positions: int) -> Point | None:
        return self.point(*(at.place or at.key), positions)

    def point(self, batch_size: int, context: int, positions: int) -> Point | None:
        """t(N) / t(1) and its basis at a real batch size and, rounded, context.

        Good enough to propose trials; only real steps decide. None where no curve is near.
        """
        octave = round(PLACES_AN_OCTAVE * math.log2(max(1, context)))
        key = (batch_size, octave, positions)
        if key not in self._read_off:
            if len(self._read_off) >= MOST_RATIOS:
                self._read_off.clear()
            rounded = round(2.0 ** (octave / PLACES_AN_OCTAVE))
            self._read_off[key] = self._curves.ratio(batch_size, rounded, positions)
        return self._read_off[key]

    def _draft_seconds_near(self, batch_size: int) -> float:
        """That of the nearest batch size; far from all, the smallest: it grows with the batch."""
        if not self.draft_seconds:
            return 0.0
        nearest = min(self.draft_seconds, key=lambda b: distance((b, 1), (batch_size, 1)))
        if distance((nearest, 1), (batch_size, 1)) <= EVIDENCE_OCTAVES:
            return self.draft_seconds[nearest]
        return min(self.draft_seconds.values())


def _on_the_line(measured: Mapping[int, float], length: int) -> float | None:
    """Time of a length from the two nearest measured ones; None with fewer, or below 0."""
    nearest = sorted(measured, key=lambda other: (abs(other - length), other))[:2]
    if len(nearest) < 2:
        return None
    one, other = nearest
    slope = (measured[other] - measured[one]) / (other - one)
    seconds = measured[one] + slope * (length - one)
    return seconds if seconds > 0.0 else None
