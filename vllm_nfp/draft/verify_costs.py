"""What a decode step costs by requests and tokens, made of the cost surface's answers.

vLLM's adaptive verification asks, at every step, what so many tokens cost, and trims drafts by the
answer. The answer here is that of the surface for the number of requests that run and for their
contexts. docs/adaptive-verification.md describes it.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.give_way import in_pieces
from vllm_nfp.results.snapshot import hand_over_file, read_hand_over
from vllm_nfp.types import Basis, CurvePoint
from vllm_nfp.types.shapes import Above0, Count, NotBelow0, Size

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Curve: TypeAlias = "dict[int, CurvePoint]"
"""Points of one batch size by positions."""
SCHEMA = 1
Tables: TypeAlias = "Mapping[int, FloatArray]"
"""By requests of a step; see :func:`verify_ms`."""
TABLES_AT_A_TIME = 2
"""Tables that are made before a pause: some 0.3 ms."""
ADDED_AT_A_TIME = 32
"""Tables that something is added to before a pause: some 0.2 ms."""
WIDEST = 1.2
"""Upper over lower end of a ratio's 95 % interval. Errors that wide, independent at each N, lose
1.1 % of goodput on average, 2.2 % at the worst of the recorded points (benchmarks/cost_width.py).
The same holds t(1), whose error is common to all N and counts against drafting alone."""
NEXT_ROW = 2.0
"""Batch sizes of two rows between which a step is priced: the reported ones are powers of two."""
SAME_REST = 0.02
"""Change of the time beside a step's work, as a fraction of the shortest step of its batch size,
that no choice depends on. All of 1.4 ms beside 5 ms loses 0.5 % of goodput where it is not priced
(2026-11-28, recorded drafts; docs/adaptive-verification.md)."""
NOTHING_BESIDE = 0.0, 0.0
"""Seconds beside the work of steps that verify all drafts, and of those that cut some."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """Steps of one batch size, at the context of the costs."""

    batch_size: Size
    seconds: tuple[Above0, ...]
    """With 1, 2, 3, ... positions per sequence."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Time of a step beside what the device works on the model and drafts: sampling, the host."""

    batch_size: Size
    whole: NotBelow0
    """Seconds, of steps that verify all their drafts."""
    cut: NotBelow0
    """Seconds, of steps that verify some."""


@dataclass(frozen=True, slots=True)
class VerifyCosts:
    """What decode steps cost at the contexts of one moment; replaced whole, alike on all ranks."""

    engine: str
    version: Count
    context: Count
    """Mean over the sequences, in tokens."""
    rows: tuple[CostRow, ...]
    """By batch size, ascending."""
    rests: tuple[Rest, ...] = ()
    """The same."""
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class PricedCosts:
    """Costs with the tables that steps look up, made beforehand."""

    version: int
    by_requests: Tables
    """With what is beside; batch sizes of which nothing is known are left out."""
    beside: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Milliseconds of that in these tables: in their last entry, and in the others."""

    def of_work(self, requests: int, place: int) -> float | None:
        """Milliseconds of the device's work alone in an entry of a table; None without a table."""
        table = self.by_requests.get(requests)
        if table is None:
            return None
        place = min(max(0, place), len(table) - 1)
        whole, cut = self.beside.get(requests, NOTHING_BESIDE)
        return float(table[place]) - (whole if place == len(table) - 1 else cut)


def work_tables(
    rows: Sequence[CostRow], most_requests: int, capture_sizes: Sequence[int]
) -> Tables:
    """Make the table of each batch size that is known; in the background, gives way.

    Args:
        most_requests: of a step.
        capture_sizes: tokens of the CUDA graphs, ascending.
    """
    tables = (
        (requests, verify_ms(rows, requests, capture_sizes))
        for requests in in_pieces(range(1, most_requests + 1), TABLES_AT_A_TIME)
    )
    return {requests: table for requests, table in tables if table is not None}


def priced(costs: VerifyCosts, work: Tables) -> PricedCosts:
    """Add what is beside the device's work; in the background, gives way.

    Args:
        work: tables of the costs' rows.
    """
    tables: dict[int, FloatArray] = {}
    beside: dict[int, tuple[float, float]] = {}
    for requests in in_pieces(sorted(work), ADDED_AT_A_TIME):
        whole, cut = (1e3 * seconds for seconds in rest_at(costs.rests, requests))
        table = work[requests] + cut
        table[-1] += whole - cut
        tables[requests], beside[requests] = table, (whole, cut)
    return PricedCosts(costs.version, tables, beside)


def rest_at(rests: Sequence[Rest], batch_size: int) -> tuple[float, float]:
    """Seconds beside the work of whole and of cut steps, at the nearest batch size that is known.

    None is known beyond the distance of two rows.
    """
    near = min(rests, key=lambda rest: abs(math.log(rest.batch_size / batch_size)), default=None)
    if near is None or not 1 / NEXT_ROW <= near.batch_size / batch_size <= NEXT_ROW:
        return NOTHING_BESIDE
    return near.whole, near.cut


def same_rests(rows: Iterable[CostRow], rests: Sequence[Rest], others: Sequence[Rest]) -> bool:
    """Whether no choice depends on which of the two is in force."""
    return all(
        abs(a - b) <= SAME_REST * min(row.seconds)
        for row in rows
        for a, b in zip(
            rest_at(rests, row.batch_size), rest_at(others, row.batch_size), strict=True
        )
    )


def cost_file(run_dir: str, engine: str) -> Path:
    """The file that takes the costs from the rank that leads to the others.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "costs", engine)


def read_costs(path: Path) -> VerifyCosts:
    """Read such a file, trusting nothing in it.

    Raises:
        SnapshotError: if it holds no costs, or none that could be used.
        OSError: if it cannot be read, or is a link.
    """
    return read_hand_over(path, VerifyCosts, SCHEMA)


class Lack(IntEnum):
    """What a curve lacks to choose drafts by, the most first."""

    CURVE = 0
    """It does not reach all positions that a step may have."""
    TIME = 1
    """t(1) was not measured, and its interval is too wide."""
    BASIS = 2
    """A ratio rests on the prediction alone."""
    WIDTH = 3
    """The interval of a ratio is too wide."""
    NOTHING = 4


def founded_rows(
    points: Iterable[CurvePoint], positions: int, largest_graph: int = 0
) -> tuple[CostRow, ...]:
    """The batch sizes that are known well enough to choose drafts by, ascending.

    Where the graphs end within a row, a step beyond them needs not be known well: it is priced at
    the upper end of its interval. So one is chosen only if it pays even then, and the steps within
    the graphs need not wait for it.

    Args:
        points: of the whole step's curves, all at one context.
        positions: most positions per sequence of a step.
        largest_graph: tokens of the largest CUDA graph; 0: there is none.
    """
    curves = _by_batch_size(points)
    return tuple(
        _row(size, curves[size], positions, largest_graph)
        for size in sorted(curves)
        if _lack(size, curves[size], positions, largest_graph) is Lack.NOTHING
    )


def least_lack(points: Iterable[CurvePoint], positions: int, largest_graph: int = 0) -> Lack:
    """What the best known batch size lacks; see :func:`founded_rows`."""
    curves = _by_batch_size(points).items()
    lacks = (_lack(size, curve, positions, largest_graph) for size, curve in curves)
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


def _lack(batch_size: int, curve: Curve, positions: int, largest_graph: int) -> Lack:
    used = _used(curve, positions)
    if not used:
        return Lack.CURVE
    held = _held(batch_size, largest_graph)
    one, *more = (curve[n] for n in used if n <= held)
    # Costs are in seconds, and a basis is that of a ratio: without a pair t(1) may be unknown.
    if one.basis is not Basis.MEASURED and not _is_narrow(one.seconds_lower, one.seconds_upper):
        return Lack.TIME
    if any(point.basis is Basis.PREDICTED for point in (one, *more)):
        return Lack.BASIS
    if not all(_is_narrow(point.ratio_lower, point.ratio_upper) for point in more):
        return Lack.WIDTH
    if any(curve[n].ratio_upper is None for n in used if n > held):
        return Lack.WIDTH
    return Lack.NOTHING


def _is_narrow(lower: float, upper: float | None) -> bool:
    return upper is not None and lower > 0.0 and upper <= WIDEST * lower


def verify_ms(
    rows: Sequence[CostRow], batch_size: int, capture_sizes: Sequence[int]
) -> FloatArray | None:
    """What steps of so many requests cost, by tokens: from one a request on, in milliseconds.

    Sequences may have unequal numbers of positions: a step of T tokens is priced as T / batch_size
    positions in each. In a CUDA graph it costs what the graph's tokens cost.

    Args:
        capture_sizes: tokens of the CUDA graphs, ascending; empty: there are none.

    Returns:
        FloatArray: never falling, shape [(positions - 1) * batch_size + 1]. None if no two rows are
            near this batch size.
    """
    limit = capture_sizes[-1] if capture_sizes else 0
    seconds = _seconds_at(rows, batch_size, limit)
    if seconds is None:
        return None
    known = _padded(batch_size * np.arange(1, len(seconds) + 1), capture_sizes).tolist()
    costs: dict[int, float] = {}
    for tokens, cost in zip(known, itertools.accumulate(seconds, max), strict=True):
        costs[tokens] = cost
    inside = [tokens for tokens in costs if tokens <= limit]
    beyond = [tokens for tokens in costs if tokens > limit]
    asked = np.arange(batch_size, batch_size * len(seconds) + 1)
    padded = _padded(asked, capture_sizes)
    table = np.empty(len(asked))
    for known_tokens, here in ((inside, padded <= limit), (beyond, padded > limit)):
        if known_tokens:
            table[here] = np.interp(padded[here], known_tokens, [costs[t] for t in known_tokens])
    return np.asarray(1e3 * np.maximum.accumulate(table))


def _padded(tokens: IntArray, capture_sizes: Sequence[int]) -> IntArray:
    """Tokens that such steps run with: those of their graph, or their own without one."""
    sizes = np.array([*capture_sizes, np.iinfo(np.int64).max], dtype=np.int64)
    graph = sizes[np.searchsorted(sizes, tokens)]
    return np.where(graph == sizes[-1], tokens, graph)


def _seconds_at(
    rows: Sequence[CostRow], batch_size: int, largest_graph: int
) -> tuple[float, ...] | None:
    """At a batch size between two rows, on the line of log time over log batch size.

    Where the graphs end between the two, a step with a graph and one without are not blended.
    """
    above = bisect_left(rows, batch_size, key=lambda row: row.batch_size)
    if above == len(rows):
        return None
    high = rows[above]
    if high.batch_size == batch_size:
        return high.seconds
    if above == 0 or high.batch_size > NEXT_ROW * rows[above - 1].batch_size:
        return None
    low = rows[above - 1]
    held = largest_graph // high.batch_size
    if not held < len(high.seconds) or largest_graph < low.batch_size:
        return tuple(_between(low, high, n, n, batch_size * n) for n in _counts(low))
    if not held:
        return None  # all that is known of the batch size above has no graph
    seconds = []
    for n in _counts(low):
        if low.batch_size * n > largest_graph or n <= held:
            seconds.append(_between(low, high, n, n, batch_size * n))
        elif batch_size * n > largest_graph:
            seconds.append(high.seconds[n - 1])
        else:  # towards the last step of the batch size above that has a graph
            seconds.append(_between(low, high, n, held, batch_size * n))
    return tuple(seconds)


def _counts(row: CostRow) -> range:
    return range(1, len(row.seconds) + 1)


def _between(low: CostRow, high: CostRow, n: int, of_high: int, tokens: int) -> float:
    """On the line of log time over log tokens from n positions of a row to some of another."""
    ends = low.batch_size * n, high.batch_size * of_high
    a, b = low.seconds[n - 1], high.seconds[of_high - 1]
    if tokens >= ends[1]:
        return max(a, b)
    share = math.log(tokens / ends[0]) / math.log(ends[1] / ends[0])
    return float(a ** (1.0 - share) * b**share)
