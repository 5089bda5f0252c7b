"""Rows of observations and their covariances, kept between posteriors.

A pair of a known shape changes a number and its variance, and no covariance. One of a new shape
adds a few rows. So both the covariance among observations and that with what is asked again and
again are kept, for one prior and one size of its errors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.surface.functionals import Functionals, Placed, covariance, placed
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.parts import FloatArray, IntArray, Part
from vllm_nfp.surface.prior import Prior
from vllm_nfp.surface.rows import Key, keys_of, rows_at
from vllm_nfp.types import Module, Shape

FIRST_CAPACITY = 64
AT_A_TIME = 6
"""New rows whose covariances are made before a pause."""
RowName: TypeAlias = "tuple[Module, int, int, int, bool, bool]"
"""A row: module, batch size, context, positions, whether it is log t(N) / t(1) or log t(N), and
whether the KV blocks that it reads have content."""


def row_name(module: Module, shape: Shape, over_one: bool, content: bool = True) -> RowName:
    """The name of a row, quick to hash."""
    return module, shape.batch_size, shape.context, shape.positions, over_one, content


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a book.

    Attributes:
        key: what it has in common with others of which a pair is a pair of it.
        expected: what the prior says of it.
    """

    slot: int
    key: Key
    expected: float


class Book:
    """Rows of observations, each in a slot.

    Args:
        factors: size of this model's errors relative to other models', by part, shape [parts].
    """

    def __init__(self, prior: Prior, hyper: Hyperparameters, factors: FloatArray) -> None:
        self.prior, self.hyper, self.factors = prior, hyper, factors
        self._entries: dict[RowName, Entry] = {}
        self._free: list[int] = []
        self._rows = _nothing(0)
        self._serial = np.zeros(0, dtype=np.int64)
        self._written = 0
        self._among = np.zeros((0, 0))
        self._columns: dict[Hashable, _Columns] = {}
        self._placed: tuple[int, IntArray, Placed] | None = None

    def entries(self, names: Sequence[RowName]) -> list[Entry]:
        """The entries of these rows; rows that are named no more leave."""
        new = [name for name in dict.fromkeys(names) if name not in self._entries]
        if len(self._entries) + len(new) > len(names):
            for gone in set(self._entries) - set(names):
                self._free.append(self._entries.pop(gone).slot)
        give_way()
        for at in in_pieces(range(0, len(new), AT_A_TIME), 1):
            self._write(new[at : at + AT_A_TIME])
        return [self._entries[name] for name in names]

    def _write(self, names: Sequence[RowName]) -> None:
        rows, expected = self.rows_of(names)
        if len(self._free) < len(names):
            self._grow()
        slots = [self._free.pop() for _ in names]
        at = np.array(slots, dtype=np.int64)
        _copy(rows, self._rows, at)
        self._written += 1
        self._serial[at] = self._written
        keys = keys_of([name[0] for name in names], rows, [name[5] for name in names])
        for name, slot, key, value in zip(names, slots, keys, expected.tolist(), strict=True):
            self._entries[name] = Entry(slot, key, value)
        used = np.array(sorted(e.slot for e in self._entries.values()), dtype=np.int64)
        found = covariance(placed(rows), placed(self._rows[used]), self.hyper, self.factors)
        self._among[np.ix_(at, used)] = found
        self._among[np.ix_(used, at)] = found.T

    def rows_of(self, names: Sequence[RowName]) -> tuple[Functionals, FloatArray]:
        """Rows that are not kept, and what the prior says of them."""
        found, expected = _nothing(len(names)), np.zeros(len(names))
        for over_one in (True, False):
            mine = np.array([i for i, name in enumerate(names) if name[4] is over_one], np.int64)
            some = [names[i] for i in mine.tolist()]
            rows, expected[mine] = rows_at(
                self.prior,
                [name[0] for name in some],
                [Shape(*name[1:4]) for name in some],
                over_one,
                [name[5] for name in some],
            )
            _copy(rows, found, mine)
        return found, expected

    def _grow(self) -> None:
        before = len(self._serial)
        after = max(FIRST_CAPACITY, 2 * before)
        self._free += range(before, after)
        rows = _nothing(after)
        _copy(self._rows, rows, np.arange(before))
        self._rows = rows
        self._serial = np.concatenate([self._serial, np.zeros(after - before, dtype=np.int64)])
        among = np.zeros((after, after))
        among[:before, :before] = self._among
        self._among = among

    def among(self, slots: IntArray) -> FloatArray:
        """Covariance among rows; shape [n, n]."""
        return np.asarray(self._among[np.ix_(slots, slots)])

    def weights(self, slots: IntArray, part: Part) -> FloatArray:
        """What the rows weigh a part with, in all; shape [n]."""
        return np.asarray(self._rows.weights[slots, :, part].sum(axis=1))

    def placed(self, slots: IntArray) -> Placed:
        """The rows in these slots; kept for as long as the same rows are asked for."""
        kept = self._placed
        if kept is None or kept[0] != self._written or not np.array_equal(kept[1], slots):
            kept = self._placed = self._written, slots, placed(self._rows[slots])
        return kept[2]

    def towards(self, slots: IntArray, name: Hashable, asked: Placed) -> FloatArray:
        """Covariance of rows with what is asked under this name; shape [n, asked]."""
        serial = self._serial[slots]
        kept = self._columns.get(name)
        if kept is None:
            kept = _Columns(slots[:0], serial[:0], np.zeros((0, asked.count)))
        elif np.array_equal(kept.slots, slots) and np.array_equal(kept.serial, serial):
            return kept.values
        place = np.full(len(self._serial), -1)
        place[kept.slots] = np.where(
            self._serial[kept.slots] == kept.serial, np.arange(len(kept.slots)), -1
        )
        before = place[slots]
        values = np.empty((len(slots), asked.count))
        values[before >= 0] = kept.values[before[before >= 0]]
        give_way()
        stale = np.flatnonzero(before < 0)
        for at in in_pieces(range(0, len(stale), AT_A_TIME), 1):
            some = stale[at : at + AT_A_TIME]
            rows = placed(self._rows[slots[some]])
            values[some] = covariance(rows, asked, self.hyper, self.factors)
        self._columns[name] = _Columns(slots, serial, values)
        return values

    def forget(self, name: Hashable) -> None:
        """What was kept under a name is asked no more."""
        self._columns.pop(name, None)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Covariances of rows with what is asked.

    Attributes:
        slots: of the rows, shape [n].
        serial: of which writing of its slot each is, shape [n].
        values: shape [n, asked].
    """

    slots: IntArray
    serial: IntArray
    values: FloatArray


def _copy(rows: Functionals, into: Functionals, at: IntArray) -> None:
    into.shapes[at], into.tokens[at] = rows.shapes, rows.tokens
    into.padded[at], into.weights[at] = rows.padded, rows.weights


def _nothing(count: int) -> Functionals:
    ones = np.ones((count, 2), dtype=np.int64)
    weights = np.zeros((count, 2, len(Part)))
    return Functionals(np.ones((count, 2, 3), dtype=np.int64), ones, ones.copy(), weights)
