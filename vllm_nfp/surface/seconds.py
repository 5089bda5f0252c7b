"""t(1) in seconds, with its interval: what the prior expects, moved by the baselines of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.answers import NORMAL_TAIL, WIDER
from vllm_nfp.surface.book import Book
from vllm_nfp.surface.functionals import covariance, placed, variances
from vllm_nfp.surface.observations import Baseline
from vllm_nfp.surface.rows import rows_at
from vllm_nfp.types import Module, Shape

Seconds: TypeAlias = "tuple[float, float, float]"
"""Median, and both ends of the 95 % interval."""
LEVEL = 0.25
"""Standard deviation of log t(1) at all shapes alike, of a prior in seconds: this GPU's clocks and
the host."""
UNKNOWN_LEVEL = 5.0
"""The same of a prior that is not in seconds."""


def seconds_at_one(
    book: Book,
    baselines: Sequence[Baseline],
    module: Module,
    cells: Sequence[tuple[int, int]],
) -> list[Seconds | None]:
    """t(1) of one module in each cell, in seconds.

    The error of log t(1) is a level, the same at all shapes, and the errors of the parts as in the
    ratios. The level is not known where the prior is not in seconds; then nothing can be said
    before a pair was run: None.

    Args:
        cells: (batch size, context).
    """
    known = [one for one in baselines if one.module is module]
    layers = book.prior(*cells[0]).layers
    if layers is None and not known:
        return [None] * len(cells)
    level = LEVEL if layers is not None else UNKNOWN_LEVEL
    scale = float(np.log((layers or {}).get(module, 1)))
    shapes = [Shape(one.batch_size, one.context, 1) for one in known]
    shapes += [Shape(*cell, 1) for cell in cells]
    rows, expected = rows_at(book.prior, [module] * len(shapes), shapes, over_one=False)
    expected = expected - scale
    here, there = placed(rows[: len(known)]), placed(rows[len(known) :])
    hyper, factors = book.hyper, book.factors
    measured = np.array([one.log_seconds for one in known])
    noise = np.array([one.variance for one in known])
    inverse = np.linalg.inv(covariance(here, here, hyper, factors) + level**2 + np.diag(noise))
    give_way()
    cross = covariance(here, there, hyper, factors) + level**2
    weights = inverse @ cross
    mean = expected[len(known) :] + (measured - expected[: len(known)]) @ weights
    give_way()
    own = variances(rows[len(known) :], hyper, factors)
    spread = np.maximum(own + level**2 - (cross * weights).sum(axis=0), 0.0)
    reach = WIDER * NORMAL_TAIL * np.sqrt(spread)
    ends = np.exp([mean, mean - reach, mean + reach])
    return [(float(m), float(low), float(high)) for m, low, high in ends.T]
