"""What steps cost by requests and tokens: tables, made beforehand, that steps look up."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm_nfp.draft.verify_costs import NEXT_ROW, Beside, CostRow, VerifyCosts, rest_at
from vllm_nfp.give_way import in_pieces

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Tables: TypeAlias = "Mapping[int, FloatArray]"
"""By requests of a step; see :func:`verify_ms`."""
TABLES_AT_A_TIME = 2
"""Tables that are made before a pause: some 0.3 ms."""
ADDED_AT_A_TIME = 32
"""Tables that something is added to before a pause: some 0.2 ms."""


@dataclass(frozen=True, slots=True)
class PricedCosts:
    """Costs with the tables that steps look up, made beforehand."""

    version: int
    by_requests: Tables
    """With what is beside; batch sizes of which nothing is known are left out."""
    work: Tables = field(default_factory=dict)
    """The device's work alone, of the same batch sizes."""

    def of_work(self, requests: int, place: int) -> float | None:
        """Milliseconds of the device's work alone in an entry of a table; None without a table."""
        table = self.work.get(requests)
        return None if table is None else float(table[min(max(0, place), len(table) - 1)])


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
    for requests in in_pieces(sorted(work), ADDED_AT_A_TIME):
        whole, cut = rest_at(costs.rests, requests)
        table = _bounded(work[requests], cut)
        table[-1] = _bounded(work[requests][-1:], whole)[0]
        tables[requests] = table
    return PricedCosts(costs.version, tables, work)


class TableMaker:
    """Makes the tables of one version of the costs after another, in one thread in the background.

    The tables of the device's work take most of the time. They are made anew only for other rows.

    Args:
        most_requests: of a step.
        capture_sizes: tokens of the CUDA graphs, ascending.
    """

    def __init__(self, most_requests: int, capture_sizes: Sequence[int]) -> None:
        self._most_requests, self._capture_sizes = most_requests, capture_sizes
        self._rows: tuple[CostRow, ...] = ()
        self._work: Tables = {}
        """Of these rows."""

    def made(self, costs: VerifyCosts) -> PricedCosts:
        """The costs with their tables."""
        if costs.rows != self._rows:
            self._work = work_tables(costs.rows, self._most_requests, self._capture_sizes)
            self._rows = costs.rows
        return priced(costs, self._work)


def _bounded(work: FloatArray, beside: Beside) -> FloatArray:
    """Milliseconds of steps: the device's or the host's, whichever takes longer."""
    return np.maximum(work + 1e3 * beside.seconds, 1e3 * beside.least)


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
    """At the batch size of a row, or between two that are near; None at any other."""
    above = bisect_left(rows, batch_size, key=lambda row: row.batch_size)
    if above == len(rows):
        return None
    high = rows[above]
    if high.batch_size == batch_size:
        return high.seconds
    if above == 0 or high.batch_size > NEXT_ROW * rows[above - 1].batch_size:
        return None
    return _blended(rows[above - 1], high, batch_size, largest_graph)


def _blended(
    low: CostRow, high: CostRow, batch_size: int, largest_graph: int
) -> tuple[float, ...] | None:
    """At a batch size between two rows, on the line of log time over log batch size.

    Where the graphs end between the two, a step with a graph and one without are not blended.
    """
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
