"""The routing that counted choices of experts show: distinct experts by tokens, and a skew.

Choices are counted over the tokens of several real steps. How many distinct experts a step of
fewer tokens wakes then follows without a model of the routing: it is the mean over all ways to draw
so many of the counted tokens (rarefaction: Hurlbert, Ecology 52, 1971).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from vllm_nfp.give_way import give_way
from vllm_nfp.principle.routing import Routing, closest_skew, skewed_shares
from vllm_nfp.principle.terms import FloatArray


def active_of(counts: npt.NDArray[np.int64], rows: int, tokens: int) -> float:
    """Distinct experts that ``tokens`` of the counted tokens choose, the mean over layers.

    Args:
        counts: tokens that chose each expert, [layers, experts]; a token chooses one once at most.
        rows: tokens that were counted.
        tokens: of the step, up to ``rows``.

    Raises:
        ValueError: for more tokens than were counted, or none.
    """
    if not 1 <= tokens <= rows:
        raise ValueError(f"tokens must lie from 1 to the counted {rows}, not {tokens}")
    # The chance that none of the tokens drawn chose the expert: C(rows - count, tokens) over
    # C(rows, tokens), in logarithms.
    log_factorial = _log_factorials(rows)
    others = rows - counts
    left = np.maximum(others - tokens, 0)
    log_chance = (
        log_factorial[others] + log_factorial[rows - tokens]
        - log_factorial[left] - log_factorial[rows]
    )  # fmt: skip
    asleep = np.where(others >= tokens, np.exp(log_chance), 0.0)
    return float((1.0 - asleep).sum(axis=1).mean())


@cache
def _log_factorials_up_to(most: int) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, most + 1.0)))])


def _log_factorials(most: int) -> FloatArray:
    """ln n! of 0 to ``most`` at least; made for powers of two, so that few are kept."""
    return _log_factorials_up_to(1 << math.ceil(math.log2(most + 1)))


def uniform_active(num_experts: int, experts_per_token: float, tokens: int) -> float:
    """Distinct experts that as many tokens wake if all experts are equally likely."""
    routing = Routing(num_experts, experts_per_token)
    return float(routing.awake(np.array([float(tokens)]))[0])


def counted_skew(num_experts: int, experts_per_token: float, active: Mapping[int, float]) -> float:
    """Exponent of the experts' shares by rank with which distinct experts come closest; gives way.

    Args:
        active: tokens -> distinct experts that they reach.
    """
    tokens = np.array(sorted(active), dtype=np.float64)
    counted = np.log([active[int(count)] for count in tokens])

    def error(skew: float) -> float:
        give_way()
        shares = skewed_shares(num_experts, experts_per_token, skew)
        found = Routing(num_experts, experts_per_token, shares).awake(tokens)
        return float(np.abs(np.log(found) - counted).mean())

    return closest_skew(error)
