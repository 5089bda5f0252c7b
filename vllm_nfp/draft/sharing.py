"""One table for all batch sizes: neighbouring ranges share a draft length where that costs little.

A table of few ranges can be read, and each distinct draft length has CUDA graphs of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

SHARING_LOSS = 0.005
"""Fraction of the goodput that a range may lose to share its length, beyond the slack. With
it one percent is lost at most at the default slack, half of what is still called good."""


class _Way(NamedTuple):
    """Lengths of the ranges so far; the smallest is the best."""

    changes: int
    rises: int
    """Changes to a longer draft at a larger batch."""
    loss: float
    """Beyond the slack, summed over ranges."""
    drafted: int
    """Sum of the lengths."""
    lengths: tuple[int, ...]

    def then(self, length: int, loss: float) -> _Way:
        last = self.lengths[-1:]
        return _Way(
            self.changes + (last not in ((), (length,))),
            self.rises + any(length > before for before in last),
            self.loss + loss,
            self.drafted + length,
            (*self.lengths, length),
        )


def shared_lengths(scores: Sequence[Mapping[int, float]], slack: float) -> tuple[int, ...]:
    """A draft length for each range of batch sizes, shared by neighbours where that costs little.

    A range may take any length whose score is within the slack of its best, and within
    :data:`SHARING_LOSS` of that. Of all such tables: the fewest changes from one range to the next;
    of these the fewest to longer drafts; of these the least loss beyond the slack; then the
    shortest drafts.

    Args:
        scores: for each range, by draft length: the smallest fraction of the best goodput.
        slack: fraction of the goodput that is given up for a shorter draft.
    """
    ways = {0: _Way(0, 0, 0.0, 0, ())}
    for of_range in scores:
        ways = dict(_longer(ways, _allowed(of_range, slack)))
    return min(ways.values()).lengths


def shortest_good(scores: Mapping[int, float], slack: float) -> int:
    """The shortest length whose score is within the slack of the best."""
    enough = (1.0 - slack) * max(scores.values())
    return min(k for k, score in scores.items() if score >= enough)


def _allowed(scores: Mapping[int, float], slack: float) -> dict[int, float]:
    """Lengths that a range may take, and what each loses beyond the slack."""
    enough = (1.0 - slack) * max(scores.values())
    least = (1.0 - SHARING_LOSS) * enough
    return {k: max(0.0, enough - score) for k, score in scores.items() if score >= least}


def _longer(ways: Mapping[int, _Way], allowed: Mapping[int, float]) -> Iterator[tuple[int, _Way]]:
    """The best way to each length of the next range.

    Args:
        ways: the best to each length of the range before.
    """
    before = sorted(ways)
    shorter = list(accumulate((ways[k] for k in before), min))
    longer = list(accumulate((ways[k] for k in reversed(before)), min))[::-1]
    for length, loss in allowed.items():
        below, above = bisect_left(before, length), bisect_right(before, length)
        best = [*shorter[max(0, below - 1) : below], *longer[above : above + 1]]
        best += [ways[length]] if length in ways else []
        yield length, min(way.then(length, loss) for way in best)
