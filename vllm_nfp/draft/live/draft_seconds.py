"""What one more drafted token costs, from steps of two lengths and the probe's curve."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping

LEAST_DRAFTS = 0.5
"""Fraction of the extra tokens of a longer draft that must remain once the growth of verification
is taken off, so that their cost can be computed."""


def draft_token_seconds(
    seconds: Mapping[int, float], ratio: Callable[[int], float | None]
) -> float | None:
    """Time of one more drafted token beside its verification; None if it cannot be computed.

    K drafted tokens take t(K) = v r(K + 1) + K d, where v is a step without drafts, r the probe's
    curve and d the unknown: two lengths give both. Pairs whose verification grows nearly as fast as
    the number of tokens are left out, since d is a small difference of large numbers there. So is
    K = 0, at which an EAGLE or draft model runs too.

    Args:
        seconds: of a step, by draft length.
        ratio: t(N) / t(1) of verification by the number N of positions; None: not known.
    """
    found = by_pairs(seconds, ratio)
    return max(0.0, statistics.median(found)) if found else None


def by_pairs(
    seconds: Mapping[int, float],
    ratio: Callable[[int], float | None],
    least_share: float | None = None,
) -> list[float]:
    """The same from each pair of neighbouring lengths that gives it.

    Args:
        least_share: of the time that a longer draft adds, what making it must take; None: any.
    """
    found = []
    for short, long in itertools.pairwise(sorted(length for length in seconds if length > 0)):
        one, other = ratio(short + 1), ratio(long + 1)
        if one is None or other is None:
            continue
        grows = other / one
        drafts, made = long - short * grows, seconds[long] - seconds[short] * grows
        if drafts < LEAST_DRAFTS * (long - short):
            continue
        if least_share is None or made > least_share * (seconds[long] - seconds[short]):
            found.append(made / drafts)
    return found
