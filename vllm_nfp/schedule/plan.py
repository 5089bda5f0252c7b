"""Which shape to probe next.

Each cell (batch size, context) is scanned over its grid of positions until every point has its
samples. Then points that can keep more pairs are sampled again, and old ones refreshed. The cell
that live traffic is in comes first half of the time.

How many pairs a point gets depends on no time that was measured at this point. Otherwise its
intervals would miss more often than they say: see docs/estimation.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LIVE_SHARE = 0.5
"""Share of probes that go to the cell that live traffic is in."""
STAY_PAIRS = 18
"""Pairs that are taken of shapes that are ready before others are made ready in their place."""
REFRESH_SHARE = 0.3
"""Share of probes, once all points have samples, that refresh the oldest point."""

CellKey = tuple[int, int]
"""(batch size, context)"""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A pair to run: ``positions`` against 1, in a cell."""

    batch_size: int
    context: int
    positions: int

    @property
    def cell(self) -> CellKey:
        """(batch size, context)."""
        return self.batch_size, self.context


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the estimates so far mean for the plan."""

    uncertain: frozenset[Target] = frozenset()
    """Points whose interval further pairs would narrow: fewer are kept than can be."""
    far_over: Mapping[CellKey, int] = field(default_factory=dict)
    """Smallest position count that is far over every line; beyond it nothing is urgent."""


class Planner:
    """Chooses targets; pure bookkeeping with a seeded generator.

    Args:
        grids: for each cell the position counts beyond 1, ascending.
        min_samples: pairs that a point needs.
        seed: of the random order.
    """

    def __init__(
        self, grids: Mapping[CellKey, Sequence[int]], min_samples: int, seed: int = 0
    ) -> None:
        self._targets: dict[CellKey, list[Target]] = {
            cell: [Target(*cell, n) for n in grid] for cell, grid in grids.items() if grid
        }
        self._put_off: set[Target] = set()
        self._counts: dict[Target, int] = {t: 0 for ts in self._targets.values() for t in ts}
        self._last: dict[Target, int] = dict.fromkeys(self._counts, 0)
        self._turn = 0
        self._since_change = 0
        self._min_samples = min_samples
        self._rng = random.Random(seed)
        self.feedback = Feedback()
        """Set from outside, as the estimates change."""

    @property
    def cells(self) -> tuple[CellKey, ...]:
        """Cells that still have targets."""
        return tuple(self._targets)

    def next(
        self, live: CellKey | None = None, ready: Callable[[Target], bool] = lambda _: True
    ) -> Target | None:
        """The next pair to run; None if nothing can be probed.

        Args:
            live: the cell that live traffic is in, if it is one of ours.
            ready: whether a target can run at once. Making another one ready costs more than a
                pair, so that those that are ready are kept to for :data:`STAY_PAIRS`.
        """
        if not self._targets:
            return None
        target = self._choose(live)
        if ready(target):
            return target
        if self._since_change < STAY_PAIRS:
            held = [t for t in self._wanting() if ready(t)]
            if held:
                fewest = min(self._counts[t] for t in held)
                return self._rng.choice([t for t in held if self._counts[t] == fewest])
        return target

    def changed(self) -> None:
        """Other targets than before have been made ready."""
        self._since_change = 0

    def _wanting(self) -> list[Target]:
        """Targets that lack samples; all once none does."""
        missing = [t for cell in self._targets for t in self._missing(cell)]
        return missing or [t for ts in self._targets.values() for t in ts]

    def _choose(self, live: CellKey | None) -> Target:
        cell = self._choose_cell(live)
        missing = self._missing(cell)
        if missing:
            fewest = min(self._counts[t] for t in missing)
            return self._rng.choice([t for t in missing if self._counts[t] == fewest])
        uncertain = [t for t in self._targets[cell] if t in self.feedback.uncertain]
        if uncertain and self._rng.random() >= REFRESH_SHARE:
            return min(uncertain, key=lambda t: (self._counts[t], self._last[t]))
        return min(self._targets[cell], key=lambda t: self._last[t])

    def record(self, target: Target) -> None:
        """The pair has been measured."""
        self._turn += 1
        self._since_change += 1
        if target in self._counts:
            self._counts[target] += 1
            self._last[target] = self._turn

    def drop(self, target: Target) -> None:
        """The target cannot be run here: leave it out for good."""
        remaining = [t for t in self._targets.get(target.cell, []) if t != target]
        if remaining:
            self._targets[target.cell] = remaining
        else:
            self._targets.pop(target.cell, None)
        self._counts.pop(target, None)
        self._last.pop(target, None)
        self._put_off.discard(target)

    def put_off(self, target: Target) -> None:
        """The target cannot be run at the moment: leave it out until it is taken back."""
        if target not in self._counts or target in self._put_off:
            return
        count, last = self._counts[target], self._last[target]
        self.drop(target)
        self._counts[target], self._last[target] = count, last
        self._put_off.add(target)

    def take_back(self, target: Target) -> None:
        """A target that was put off may be chosen again; its samples still count."""
        if target in self._put_off:
            self._put_off.discard(target)
            targets = self._targets.get(target.cell, [])
            self._targets[target.cell] = sorted([*targets, target])

    @property
    def complete(self) -> bool:
        """Every point that matters, and is not put off, has its samples."""
        return not any(self._missing(cell) for cell in self._targets)

    @property
    def missing_pairs(self) -> int:
        """Pairs that the points which matter, and are not put off, still lack.

        Any thread may ask, while another one drops targets, puts them off or takes them back.
        """
        return sum(
            self._min_samples - self._counts.get(t, self._min_samples)
            for cell in list(self._targets)
            for t in self._missing(cell)
        )

    def _missing(self, cell: CellKey) -> list[Target]:
        """Points of the cell without enough samples, those far over every line left out."""
        limit = self.feedback.far_over.get(cell)
        return [
            t
            for t in self._targets.get(cell, ())
            if self._counts.get(t, self._min_samples) < self._min_samples
            and (limit is None or t.positions <= limit)
        ]

    def _choose_cell(self, live: CellKey | None) -> CellKey:
        if live in self._targets and self._rng.random() < LIVE_SHARE:
            return live
        unfinished = [cell for cell in self._targets if self._missing(cell)]
        candidates = unfinished or list(self._targets)
        fewest = min(map(self._progress, candidates))
        return self._rng.choice([c for c in candidates if self._progress(c) == fewest])

    def _progress(self, cell: CellKey) -> int:
        return min(self._counts[t] for t in (self._missing(cell) or self._targets[cell]))


def bucket(value: int, bounds: Iterable[int]) -> int | None:
    """The smallest bound that is at least ``value``; None above the largest."""
    return min((bound for bound in bounds if bound >= value), default=None)
