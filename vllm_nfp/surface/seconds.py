"""t(1) in seconds, with its interval: what the prior expects, moved by the baselines of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vllm_nfp.give_way import give_way
from vllm_nfp.surface.answers import NORMAL_TAIL, WIDER
from vllm_nfp.surface.book import Book, row_name
from vllm_nfp.surface.functionals import Placed, placed, variances
from vllm_nfp.surface.latest import Latest
from vllm_nfp.surface.observations import Baseline
from vllm_nfp.surface.parts import FloatArray
from vllm_nfp.surface.rows import rows_at
from vllm_nfp.types import Module, Shape

Seconds: TypeAlias = "tuple[float, float, float]"
"""Median, and both ends of the 95 % interval."""
Cells: TypeAlias = "tuple[tuple[int, int], ...]"
LEVEL = 0.25
"""Standard deviation of log t(1) at all shapes alike, of a prior in seconds: this GPU's clocks and
the host."""
CELLS_KEPT = 12
"""Sets of cells of which the prior's part is kept, the latest."""
UNKNOWN_LEVEL = 5.0
"""The same of a prior that is not in seconds."""


class SecondsAtOne:
    """t(1) of one module, in seconds.

    The error of log t(1) is a level, the same at all shapes, and the errors of the parts as in the
    ratios. The level is not known where the prior is not in seconds; then nothing can be said
    before a pair was run.

    Args:
        book: of the posterior of the ratios.
    """

    def __init__(self, book: Book, module: Module) -> None:
        self._module = module
        self._book = Book(book.prior, book.hyper, book.factors)
        layers = book.prior(1, 1).layers
        self._level = UNKNOWN_LEVEL if layers is None else LEVEL
        self._scale = float(np.log((layers or {}).get(module, 1)))
        self._anything = layers is not None
        self._asked: Latest[Cells, _Asked] = Latest(
            CELLS_KEPT, lambda cells, _: self._book.forget(cells)
        )

    def seconds(self, baselines: Sequence[Baseline], cells: Cells) -> list[Seconds | None]:
        """In each cell (batch size, context); None where nothing is known in seconds."""
        known = [one for one in baselines if one.module is self._module]
        if not (self._anything or known):
            return [None] * len(cells)
        names = [
            row_name(self._module, Shape(one.batch_size, one.context, 1), False, one.content)
            for one in known
        ]
        entries = self._book.entries(names)
        slots = np.array([entry.slot for entry in entries], dtype=np.int64)
        measured = np.array(
            [
                one.log_seconds + self._scale - e.expected
                for one, e in zip(known, entries, strict=True)
            ]
        )
        full = self._book.among(slots) + self._level**2
        full[np.diag_indices(len(slots))] += [one.variance for one in known]
        inverse = np.linalg.inv(full)
        give_way()
        asked = self._asked.get(cells, lambda: self._ask(cells))
        cross = self._book.towards(slots, cells, asked.rows) + self._level**2
        weights = inverse @ cross
        mean = asked.expected - self._scale + measured @ weights
        spread = np.maximum(asked.own + self._level**2 - (cross * weights).sum(axis=0), 0.0)
        reach = WIDER * NORMAL_TAIL * np.sqrt(spread)
        give_way()
        return [tuple(ends) for ends in np.exp([mean, mean - reach, mean + reach]).T.tolist()]

    def _ask(self, cells: Cells) -> _Asked:
        book, shapes = self._book, [Shape(*cell, 1) for cell in cells]
        rows, expected = rows_at(book.prior, [self._module] * len(cells), shapes, False)
        return _Asked(placed(rows), expected, variances(rows, book.hyper, book.factors))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Rows of log t(1) in the cells, what the prior says, and its variance."""

    rows: Placed
    expected: FloatArray
    own: FloatArray
