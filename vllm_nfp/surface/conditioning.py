"""Posterior after posterior of one server: what has not changed is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.algebra import inverse_root, solve
from vllm_nfp.surface.book import Book, Entry, row_name
from vllm_nfp.surface.functionals import covariance, placed
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.observations import Observations, Ratio
from vllm_nfp.surface.parts import PART_OF, FloatArray, Part
from vllm_nfp.surface.posterior import CERTAIN, Posterior, common_error, condition, merged
from vllm_nfp.surface.prior import Prior, bent
from vllm_nfp.surface.rows import keys_of
from vllm_nfp.surface.scale import UNKNOWN, log_evidence
from vllm_nfp.surface.whole_step import Bend
from vllm_nfp.types import Module

LAUNCH_KNOWN, INDEPENDENCE_KNOWN = 0.5, 0.7
"""Parts of the prior's deviation below which the prior's launch time, and s, are replaced."""
LAUNCH_MOVED = 0.5
"""Standard deviations by which the launch time must move to be replaced again."""
INDEPENDENCE_MOVED = 0.04
"""By which s must move to be replaced again."""
LEAST_INDEPENDENCE, MOST_INDEPENDENCE = 0.02, 1.3
"""Of s: at none at all a step would not depend on the experts that positions add."""
MOST_MOVES = 3
"""Steps towards what was measured in one posterior: the whole step bends with it."""
MOST_FOR_SCALE = 32
"""Largest number of a module's observations from which the size of its errors is fitted."""
USUAL_WEIGHT = 8
"""Observations that the usual size counts as: the first few lie in a corner of the surface."""
MORE_PAIRS = 1.15
"""The size of a module's errors is fitted anew when its pairs have grown by this factor."""
OTHER_SIZE = 0.1
"""A new size is taken if its logarithm differs by so much: all covariances change with it."""


class Conditioning:
    """Takes posteriors of one server, with launches and sizes of errors as it shows them.

    Args:
        prior: of the server's model and device.
        hyper: how far the prior errs.
        min_samples: pairs of a shape from which on it is called measured.
    """

    def __init__(self, prior: Prior, hyper: Hyperparameters, min_samples: int = 1) -> None:
        self._expected, self._hyper, self._min_samples = prior, hyper, min_samples
        factors = np.ones(len(Part))
        factors[[*PART_OF.values(), Part.OTHER]] = UNKNOWN
        self._book = Book(prior, hyper, factors)
        self._fitted_with: dict[Module, int] = {}
        self._launch = 0.0
        self._bend = Bend(launch_deviation=hyper.launch)

    def posterior(self, seen: Observations) -> Posterior:
        """The posterior of these observations; gives way."""
        self._fit_sizes(seen.ratios)
        found = condition(self._book, seen, self._min_samples)
        for _ in range(MOST_MOVES):
            moves = self._move_launch(found), self._move_independence(found)
            if not any(moves):
                break
            prior = bent(self._expected, self._launch, self._bend)
            self._book = Book(prior, self._hyper, self._book.factors)
            found = condition(self._book, seen, self._min_samples)
        return found

    def _move_launch(self, found: Posterior) -> bool:
        """Whether the prior's launch time should be another."""
        moved, deviation = common_error(found, Part.LAUNCH)
        known = deviation <= LAUNCH_KNOWN * self._hyper.launch
        if not known or abs(moved) < LAUNCH_MOVED * min(deviation, self._bend.launch_deviation):
            return False
        self._launch += moved
        self._bend = replace(self._bend, launch_deviation=deviation)
        return True

    def _move_independence(self, found: Posterior) -> bool:
        """Whether the prior's s should be another."""
        moved, deviation = common_error(found, Part.CONTEXT)
        wanted = self._bend.independence + moved
        wanted = min(max(wanted, LEAST_INDEPENDENCE), MOST_INDEPENDENCE)
        known = deviation <= INDEPENDENCE_KNOWN * self._hyper.context.scale
        if not known or abs(wanted - self._bend.independence) < INDEPENDENCE_MOVED:
            return False
        self._bend = replace(self._bend, independence=wanted)
        return True

    def fit_anew(self) -> None:
        """The sizes of errors are fitted again with the next posterior: the machine has changed."""
        self._fitted_with.clear()

    def _fit_sizes(self, ratios: tuple[Ratio, ...]) -> None:
        factors = self._book.factors.copy()
        for module, part in PART_OF.items():
            mine = [r for r in ratios if r.module is module]
            pairs = sum(max(1, r.samples) for r in mine)
            before = self._fitted_with.get(module, 0)
            if not mine or before / MORE_PAIRS < pairs < MORE_PAIRS * before:
                continue
            self._fitted_with[module] = pairs
            factor = error_size(self._book, mine)
            if abs(np.log(factor / factors[part])) > OTHER_SIZE:
                factors[part] = factor
            give_way()
        if (factors != self._book.factors).any():
            self._book = Book(self._book.prior, self._hyper, factors)


def error_size(book: Book, ratios: list[Ratio]) -> float:
    """The size of this model's errors relative to other models', from ratios of one module."""
    ratios = ratios[:: 1 + (len(ratios) - 1) // MOST_FOR_SCALE]
    names = [row_name(r.module, r.shape, True, r.content) for r in ratios]
    rows, expected = book.rows_of(names)
    keys = keys_of([r.module for r in ratios], rows)
    entries = [Entry(i, k, e) for i, (k, e) in enumerate(zip(keys, expected.tolist(), strict=True))]
    give_way()
    found = merged(ratios, entries)
    at = placed(rows[np.array([one.entry.slot for one in found], dtype=np.int64)])
    kernel = covariance(at, at, book.hyper)
    give_way()
    errors: FloatArray = np.array([one.residual for one in found])
    variances = np.array([one.variance for one in found])
    alone = np.flatnonzero([one.samples < CERTAIN for one in found])
    root = inverse_root(UNKNOWN**2 * kernel + np.diag(variances))
    doubted = list(solve(root, errors, alone).raised)
    kept = np.setdiff1d(np.arange(len(found)), doubted)
    give_way()
    kernel, errors, variances = kernel[np.ix_(kept, kept)], errors[kept], variances[kept]
    size, _ = log_evidence(kernel, np.diag(variances), errors)
    weight = len(kept) / (len(kept) + USUAL_WEIGHT)
    return float((weight * size**2 + (1.0 - weight) * UNKNOWN**2) ** 0.5)
