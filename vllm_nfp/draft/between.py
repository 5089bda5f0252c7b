"""Curves for batch sizes whose own is not known: between two that are, or beyond them."""

from __future__ import annotations

import math
from dataclasses import replace

from vllm_nfp.draft.curve import StepCurve, weakest
from vllm_nfp.types import Basis

CLOSE = 2
"""Batch sizes up to this factor apart are interpolated between."""


def slower(low: StepCurve, high: StepCurve) -> StepCurve:
    """A curve for batch sizes between two that are far apart: at each N the slower of theirs.

    With experts a larger batch makes a position cheaper, in a dense model more expensive. Either
    way the gain of drafting is at least that of this curve, as long as the time in between lies
    between its neighbours. t(1) is the shorter one, at which a draft's seconds count most.
    """
    counts = _counts(low, high)
    return StepCurve(
        low.batch_size,
        low.context,
        min(low.seconds_at_one, high.seconds_at_one),
        tuple((n, max(low.ratio(n), high.ratio(n))) for n in counts),
        min(_without(low, high), default=None),
        bases=tuple(weakest((low.basis(n), high.basis(n))) for n in counts),
        intervals=tuple(_both(low, high, n) for n in counts),
    )


def between(low: StepCurve, high: StepCurve, batch_size: int) -> StepCurve:
    """The curve of a batch size between two that are close; see :func:`ratio_between`."""
    points, bases, intervals = [(1, 1.0)], [Basis.INFERRED], [(1.0, 1.0)]
    for n in _counts(low, high)[1:]:
        ratio, basis = ratio_between(low, high, batch_size, n)
        lower, upper = _both(low, high, n)
        points.append((n, ratio))
        bases.append(basis)
        intervals.append((min(ratio, lower), max(ratio, upper)))
    tokens = [without * c.batch_size for c in (low, high) for without in _without(c)]
    beyond = [n for n, _ in points if tokens and n * batch_size >= min(tokens)]
    return StepCurve(
        batch_size,
        low.context,
        _seconds_at_one(low, high, batch_size),
        tuple(points),
        min(beyond, default=None),
        bases=tuple(bases),
        intervals=tuple(intervals),
    )


def larger(low: StepCurve, batch_size: int) -> StepCurve:
    """The curve of a batch size above all known ones, from steps of as many tokens.

    Kernels go by tokens: B sequences with N positions take what the largest known batch takes with
    N B / B_0. The KV cache of the further sequences is left out, so that t(1) is rather too short
    and the gain too small. Where not even one draft is known this way, the batch size at which
    it still is stands in, and the basis is ``predicted``.
    """
    reach = max(low.batch_size, low.batch_size * low.largest // 2)
    if batch_size > reach:
        curve = larger(low, reach)
        bases = (Basis.PREDICTED,) * len(curve.points)
        return replace(curve, batch_size=batch_size, bases=bases)
    factor = batch_size / low.batch_size
    one = low.ratio_between(factor)

    def at(n: int) -> int:
        return -(-n * batch_size // low.batch_size)

    counts = [n for n, _ in low.points if at(n) <= low.largest]
    last = low.largest * low.batch_size // batch_size
    counts += [last] if last > counts[-1] else []
    beyond = [n for n in counts for first in _without(low) if at(n) >= first]
    return StepCurve(
        batch_size,
        low.context,
        low.seconds_at_one * one,
        ((1, 1.0), *((n, low.ratio(at(n)) / one) for n in counts[1:])),
        min(beyond, default=None),
        bases=tuple(weakest((Basis.INFERRED, low.basis(at(n)))) for n in counts),
        intervals=((1.0, 1.0), *(_scaled(low.interval(at(n)), one) for n in counts[1:])),
    )


def smaller(high: StepCurve, batch_size: int) -> StepCurve:
    """The curve of a batch size below all known ones: that of the smallest one stands in."""
    bases = tuple(weakest((Basis.INFERRED, high.basis(n))) for n, _ in high.points)
    return replace(high, batch_size=batch_size, bases=bases, boundaries=())


def _scaled(interval: tuple[float, float], by: float) -> tuple[float, float]:
    return interval[0] / by, interval[1] / by


def ratio_between(
    low: StepCurve, high: StepCurve, batch_size: int, positions: int
) -> tuple[float, Basis]:
    """t(N) / t(1) of a batch size between two, for N up to the largest of both, and its basis.

    Kernels and CUDA graphs go by tokens, so steps of as many tokens are compared: the time is on
    the line, over log B, between those of both neighbours at B N tokens, each of them at its next
    larger point. No such step was measured. On recorded H100 steps this chooses better than the
    slower of the neighbours (docs/draft-lengths.md).
    """
    fewer = min(low.largest, -(-positions * batch_size // low.batch_size))
    more = -(-positions * batch_size // high.batch_size)
    time = log_line(
        low.seconds_at_one * low.ratio(fewer),
        high.seconds_at_one * high.ratio(more),
        share(low.batch_size, high.batch_size, batch_size),
    )
    basis = weakest((Basis.INFERRED, low.basis(fewer), high.basis(more)))
    return time / _seconds_at_one(low, high, batch_size), basis


def share(low: float, high: float, place: float) -> float:
    """How far a place is from ``low`` to ``high``, over their logarithms."""
    return math.log(place / low) / math.log(high / low)


def log_line(low: float, high: float, weight: float) -> float:
    """The value on the line between two logarithms."""
    return math.exp((1.0 - weight) * math.log(low) + weight * math.log(high))


def _seconds_at_one(low: StepCurve, high: StepCurve, batch_size: int) -> float:
    return log_line(
        low.seconds_at_one * low.ratio_between(batch_size / low.batch_size),
        high.seconds_at_one,
        share(low.batch_size, high.batch_size, batch_size),
    )


def _counts(low: StepCurve, high: StepCurve) -> list[int]:
    """Counts of either, as far as both reach."""
    last = min(low.largest, high.largest)
    return sorted({n for curve in (low, high) for n, _ in curve.points if n <= last})


def _both(low: StepCurve, high: StepCurve, positions: int) -> tuple[float, float]:
    """The interval that holds those of both."""
    one, other = low.interval(positions), high.interval(positions)
    return min(one[0], other[0]), max(one[1], other[1])


def _without(*curves: StepCurve) -> list[int]:
    return [c.without_graph_from for c in curves if c.without_graph_from is not None]
