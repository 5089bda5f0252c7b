"""The batch sizes that are known well enough to choose drafts by, of the cost surface's answers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from vllm_nfp.draft.verify_costs import CostRow
from vllm_nfp.types import Basis, CurvePoint

Curve: TypeAlias = "dict[int, CurvePoint]"
"""Points of one batch size by positions."""
WIDEST = 2.5
"""Upper over lower end of a ratio's 95 % interval, and of t(1)'s where no pair was run. By answers
up to so wide, choices lost 0.03 to 1.1 % of goodput on average in recorded servers, and by costs
like vLLM's own 1.0 to 6.7 %; by wider ones 3.4 and 7.7 %. What an answer rests on says no more:
predicted ones lost no more than others as wide (``python -m benchmarks.answers.cost_width``). That
holds of
predictions for a known device and model, as in these servers."""


class Lack(IntEnum):
    """What a curve lacks to choose drafts by, the most first."""

    CURVE = 0
    """It does not reach all positions that a step may have."""
    TIME = 1
    """t(1) was not measured, and its interval is too wide."""
    GROUND = 2
    """A ratio rests on a guess alone."""
    WIDTH = 3
    """The interval of a ratio is too wide."""
    NOTHING = 4


def founded_rows(
    points: Iterable[CurvePoint], positions: int, largest_graph: int = 0, guessed: bool = False
) -> tuple[CostRow, ...]:
    """The batch sizes that are known well enough to choose drafts by, ascending.

    Where the graphs end within a row, a step beyond them needs not be known well: it is priced at
    the upper end of its interval. So one is chosen only if it pays even then, and the steps within
    the graphs need not wait for it.

    Args:
        points: of the whole step's curves, all at one context.
        positions: most positions per sequence of a step.
        largest_graph: tokens of the largest CUDA graph; 0: there is none.
        guessed: what is predicted is a guess, whose intervals say little.
    """
    curves = _by_batch_size(points)
    return tuple(
        _row(size, curves[size], positions, largest_graph)
        for size in sorted(curves)
        if _lack(size, curves[size], positions, largest_graph, guessed) is Lack.NOTHING
    )


def least_lack(
    points: Iterable[CurvePoint], positions: int, largest_graph: int = 0, guessed: bool = False
) -> Lack:
    """What the best known batch size lacks; see :func:`founded_rows`."""
    curves = _by_batch_size(points).items()
    lacks = (_lack(size, curve, positions, largest_graph, guessed) for size, curve in curves)
    return max(lacks, default=Lack.CURVE)


def _by_batch_size(points: Iterable[CurvePoint]) -> dict[int, Curve]:
    curves: dict[int, Curve] = {}
    for point in points:
        curves.setdefault(point.batch_size, {})[point.positions] = point
    return curves


def _used(curve: Curve, positions: int) -> list[int]:
    """Positions of the curve that tell of 1 to so many; empty if it does not reach them."""
    counts = sorted(curve)
    end = bisect_left(counts, positions)
    return counts[: end + 1] if 1 in curve and end < len(counts) else []


def _row(batch_size: int, curve: Curve, positions: int, largest_graph: int) -> CostRow:
    used = _used(curve, positions)
    held = _held(batch_size, largest_graph)
    known = {n: curve[n].median_seconds for n in used if n <= held}
    known |= {n: _at_most(curve[n]) for n in used if n > held}
    seconds = np.interp(np.arange(1, positions + 1), used, [known[n] for n in used])
    last = used[bisect_right(used, held) - 1]
    for n in range(last + 1, min(positions, used[-1]) + 1):
        after = used[bisect_left(used, n)]
        if n <= held < after:  # a step's time never rises faster than its tokens
            seconds[n - 1] = min(seconds[n - 1], known[last] * n / last)
        elif used[bisect_left(used, n) - 1] <= held:  # no blend with a step in a graph
            seconds[n - 1] = known[after]
    return CostRow(batch_size, tuple(seconds.tolist()))


def raised(rows: Sequence[CostRow], largest_graph: int, least: float) -> tuple[CostRow, ...]:
    """The rows where no step beyond the graphs takes less than its launches.

    Args:
        largest_graph: tokens of the largest CUDA graph; 0: there is none.
        least: seconds that the host needs for a step beyond it; 0: not known.
    """
    return tuple(
        CostRow(
            row.batch_size,
            tuple(
                max(seconds, least) if n > _held(row.batch_size, largest_graph) else seconds
                for n, seconds in enumerate(row.seconds, start=1)
            ),
        )
        for row in rows
    )


def _held(batch_size: int, largest_graph: int) -> int:
    """Most positions in a CUDA graph; without end where one position has none either."""
    return largest_graph // batch_size or np.iinfo(np.int64).max


def _at_most(point: CurvePoint) -> float:
    """The upper end of the interval of t(N), as t(1) is taken to be."""
    assert point.ratio_upper is not None
    return point.median_seconds * max(1.0, point.ratio_upper / point.ratio)


def _lack(batch_size: int, curve: Curve, positions: int, largest_graph: int, guessed: bool) -> Lack:
    used = _used(curve, positions)
    if not used:
        return Lack.CURVE
    held = _held(batch_size, largest_graph)
    one, *more = (curve[n] for n in used if n <= held)
    # Costs are in seconds, and an interval is that of a ratio: t(1) may be unknown beside it.
    if one.basis is not Basis.MEASURED and not is_narrow(one.seconds_lower, one.seconds_upper):
        return Lack.TIME
    if guessed and any(point.basis is Basis.PREDICTED for point in more):
        return Lack.GROUND
    if not all(is_narrow(point.ratio_lower, point.ratio_upper) for point in more):
        return Lack.WIDTH
    if any(curve[n].ratio_upper is None for n in used if n > held):
        return Lack.WIDTH
    return Lack.NOTHING


def is_narrow(lower: float, upper: float | None) -> bool:
    """Whether drafts may be chosen by an answer with this interval; None: it has no end."""
    return upper is not None and lower > 0.0 and upper <= WIDEST * lower
