"""Where a predicted curve leaves its tolerance, and which term takes it there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vllm_nfp.crossing import count_free
from vllm_nfp.principle.cost import Cost
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.terms import Limit


@dataclass(frozen=True, slots=True)
class Boundary:
    """NFP at one tolerance, and what sets it.

    Attributes:
        epsilon: tolerance, as a share of t(1).
        nfp: largest N with t(n) <= (1 + epsilon) t(1) for every n up to it.
        at_limit: no N of the scan is over the line: NFP is this or more.
        largest_free: largest N anywhere under the line; the curve is not monotone.
        limited_by: the term that grew most up to the first N over the line, or to the last N.
    """

    epsilon: float
    nfp: int
    at_limit: bool
    largest_free: int
    limited_by: Limit


def boundary(cost: Cost, epsilon: float) -> Boundary:
    """NFP, and the term that grew most up to the first N over the line.

    Raises:
        PredictionError: if epsilon is no share of 0 or more.
    """
    if not math.isfinite(epsilon) or epsilon < 0:
        raise PredictionError(f"epsilon must be a share of 0 or more, not {epsilon!r}")
    seconds = cost.seconds()
    under = seconds <= (1 + epsilon) * seconds[0]
    nfp = count_free(seconds.tolist(), epsilon)
    last = min(nfp, len(seconds) - 1)
    growth = {limit: float(term[last] - term[0]) for limit, term in cost.terms.items()}
    grown = max(growth, key=lambda limit: growth[limit])
    return Boundary(
        epsilon,
        nfp,
        nfp == len(seconds),
        int(np.flatnonzero(under)[-1]) + 1,
        grown if growth[grown] > 0 else "memory",
    )
