"""What one more drafted token costs, from steps of two lengths and the probe's curve."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

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
    return middle(found) if found else None


def middle(found: Sequence[tuple[float, int]]) -> float:
    """The median of seconds by weight, 0 at least; between two where each half has the same weight.

    Args:
        found: (seconds, weight) of at least one pair of lengths.
    """
    half, passed, least = sum(weight for _, weight in found) / 2.0, 0, 0.0
    for seconds, weight in sorted(found):
        if passed == half and passed:
            return max(0.0, (least + seconds) / 2.0)
        passed, least = passed + weight, seconds
        if passed > half:
            break
    return max(0.0, least)


def by_pairs(
    seconds: Mapping[int, float],
    ratio: Callable[[int], float | None],
    least_share: float | None = None,
) -> list[tuple[float, int]]:
    """The same from each pair of neighbouring lengths, and by how many drafts the two differ.

    That is the weight of a pair: an error of either step's time counts the less the more it is.
    Lengths further apart have more jumps of verification between them.

    Args:
        least_share: of the time that a longer draft adds, what making it must take; None: any.
    """
    found = []
    known = {length: ratio(length + 1) for length in sorted(seconds) if length > 0}
    for (short, one), (long, other) in itertools.pairwise(known.items()):
        if one is None or other is None:
            continue
        grows = other / one
        drafts, made = long - short * grows, seconds[long] - seconds[short] * grows
        if drafts < LEAST_DRAFTS * (long - short):
            continue
        if least_share is None or made > least_share * (seconds[long] - seconds[short]):
            found.append((made / drafts, long - short))
    return found
