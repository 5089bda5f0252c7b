"""The exact posterior of the parts' errors, given the observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.algebra import Root, inverse_root, solve
from vllm_nfp.surface.book import Book, Entry, row_name
from vllm_nfp.surface.functionals import Functionals, covariance, placed, variances
from vllm_nfp.surface.noise import MANY
from vllm_nfp.surface.observations import Observations, Ratio
from vllm_nfp.surface.parts import FloatArray, IntArray, Part
from vllm_nfp.surface.rows import Key, rows_at
from vllm_nfp.types import Module, Shape

CERTAIN = 3
"""A shape with so many pairs is never doubted."""
AGREE = 3.0
"""Two observations of the same tokens become one within so many standard deviations."""
STEP_OFFSET = 5.0
"""Standard deviation of the log factor between real steps and the prior's unit. A generic prior is
not in seconds, and real steps include the host and sampling: only their ratios count."""
AT_A_TIME = 64
"""Observations that are looked at before a pause."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and covariance of any row of the parts' errors.

    Attributes:
        book: rows and covariances.
        slots: of the observations in it, shape [n].
        root: of the inverse of the observations' covariance, noise included.
        solved: that inverse @ (observed - expected).
        measured: keys of the shapes that enough pairs were run of.
        doubted: shapes whose one or two pairs contradict all others, and those whose pairs do not
            agree. Measure them again.
    """

    book: Book
    slots: IntArray
    root: Root
    solved: FloatArray
    measured: frozenset[Key]
    doubted: tuple[Shape, ...] = ()

    def mean(self, asked: Functionals) -> tuple[FloatArray, FloatArray]:
        """Means of the asked rows, and root @ their covariance with the observations."""
        book = self.book
        known = book.placed(self.slots)
        give_way()
        at = placed(asked)
        give_way()
        cross = covariance(known, at, book.hyper, book.factors)
        give_way()
        told = self.root.times(cross)
        give_way()
        return cross.T @ self.solved, told

    def log_ratio(self, shape: Shape, content: bool = True) -> tuple[float, float]:
        """Mean and variance of the whole step's log t(N) / t(1) at a shape.

        Args:
            content: of the KV blocks that it reads.
        """
        rows, expected = rows_at(self.book.prior, [Module.MODEL], [shape], True, [content])
        mean, told = self.mean(rows)
        before = variances(rows, self.book.hyper, self.book.factors)
        return float(expected[0] + mean[0]), float(before[0] - (told**2).sum())


def common_error(posterior: Posterior, part: Part) -> tuple[float, float]:
    """What measurements say of the error that a part has at every shape: mean and deviation.

    The whole step depends on launches and on the independence of positions in no straight line. So
    a prior that is far off should be moved (:func:`vllm_nfp.surface.prior.bent`) before the
    posterior is taken again.

    Args:
        part: LAUNCH, of log launch time, or CONTEXT, of the share s.
    """
    book = posterior.book
    scale = book.hyper.launch if part is Part.LAUNCH else book.hyper.context.scale
    size = scale * book.factors[part]
    cross = size**2 * book.weights(posterior.slots, part)[:, None]
    give_way()
    told = posterior.root.times(cross)
    return float(posterior.solved @ cross[:, 0]), max(size**2 - float((told**2).sum()), 0.0) ** 0.5


@dataclass(slots=True)
class Merged:
    """Observations of one kind, and by how much they lie over what the prior says."""

    entry: Entry
    ratio: Ratio
    residual: float
    variance: float
    samples: int


def condition(book: Book, seen: Observations, min_samples: int = 1) -> Posterior:
    """The posterior given the observations; without any it is the prior.

    Args:
        min_samples: pairs of a shape from which on it is called measured.
    """
    names = [row_name(r.module, r.shape, True, r.content) for r in seen.ratios]
    names += [row_name(Module.MODEL, s.shape, False) for s in seen.steps]
    entries = book.entries(names)
    of_steps = entries[len(seen.ratios) :]
    ratios = merged(seen.ratios, entries[: len(seen.ratios)])
    slots = np.array([one.entry.slot for one in ratios] + [e.slot for e in of_steps], np.int64)
    residual = np.array(
        [one.residual for one in ratios]
        + [s.log_seconds - e.expected for s, e in zip(seen.steps, of_steps, strict=True)]
    )
    noise = np.array([one.variance for one in ratios] + [s.variance for s in seen.steps])
    full = book.among(slots)
    full[np.diag_indices(len(slots))] += noise
    if seen.steps:
        full[-len(seen.steps) :, -len(seen.steps) :] += STEP_OFFSET**2
    give_way()
    uncertain = np.array([one.samples < CERTAIN for one in ratios], dtype=bool)
    found = solve(inverse_root(full), residual, np.flatnonzero(uncertain))
    doubted = dict.fromkeys(ratios[i].ratio.shape for i in found.raised)
    # A shape whose time has two values is not run for ever.
    doubted |= dict.fromkeys(r.shape for r in seen.ratios if r.torn and r.samples < MANY)
    measured = frozenset(one.entry.key for one in ratios if one.samples >= min_samples)
    return Posterior(book, slots, found.root, found.solution, measured, tuple(doubted))


def merged(ratios: Sequence[Ratio], entries: Sequence[Entry]) -> list[Merged]:
    """One observation for each key, as far as its observations agree."""
    found: dict[Key, Merged] = {}
    apart: list[Merged] = []
    for ratio, entry in in_pieces(zip(ratios, entries, strict=True), AT_A_TIME):
        residual = ratio.log_ratio - entry.expected
        one = Merged(entry, ratio, residual, ratio.variance, ratio.samples)
        known = found.setdefault(entry.key, one)
        if known is one:
            continue
        if abs(one.residual - known.residual) > AGREE * (one.variance + known.variance) ** 0.5:
            apart.append(one)
            continue
        weight = known.variance / (known.variance + one.variance)
        known.residual += weight * (one.residual - known.residual)
        known.variance *= 1.0 - weight
        known.samples += one.samples
    return [*found.values(), *apart]
