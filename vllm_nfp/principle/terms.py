"""What a prediction's seconds are made of: terms by limit, which add up to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Limit = Literal[
    "memory",
    "tile",
    "wave",
    "experts",
    "query_block",
    "graph_padding",
    "compute",
    "lm_head",
    "communication",
]
LIMITS: tuple[Limit, ...] = get_args(Limit)
FloatArray = npt.NDArray[np.float64]
Terms = dict[Limit, FloatArray]
"""Seconds by what they are spent on, one value for each number of positions."""

ACTIVATION_BYTES = 2


def check_bounds(constants: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse constants that no device can have.

    Args:
        constants: has an attribute for each name in ``bounds``.
        bounds: least and most of each.

    Raises:
        ValueError: naming the constant.
    """
    for name, (least, most) in bounds.items():
        value = getattr(constants, name)
        if not least <= value <= most:
            raise ValueError(f"{name} must lie from {least:g} to {most:g}, not {value!r}")


def soft_maximum(traffic: FloatArray, arithmetic: FloatArray, exponent: float) -> FloatArray:
    """(a^p + b^p)^(1/p): loads and arithmetic hide each other but where they are near.

    Computed so that no power overflows; at least the larger of the two, which must be above 0.
    """
    larger = np.maximum(traffic, arithmetic)
    ratio = np.minimum(traffic, arithmetic) / larger
    result: FloatArray = larger * (1.0 + ratio**exponent) ** (1.0 / exponent)
    return result


def sum_terms(terms: Mapping[Limit, FloatArray]) -> FloatArray:
    """All terms together."""
    total: FloatArray = np.sum(list(terms.values()), axis=0, dtype=np.float64)
    return total


def add_terms(*all_terms: Mapping[Limit, FloatArray]) -> Terms:
    """Sum of terms, name by name."""
    total: Terms = {}
    for terms in all_terms:
        for limit, seconds in terms.items():
            total[limit] = total[limit] + seconds if limit in total else seconds
    return total
