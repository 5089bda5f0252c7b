"""Which shape to probe next.

A target is a shape with more than one position. Its pair runs it against one position.

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

from vllm_nfp.types import EngineStep, Shape

LIVE_SHARE = 0.5
"""Share of probes that go to the cell that live traffic is in."""
STAY_PAIRS = 18
"""Pairs that are taken of shapes that are ready before others are made ready in their place."""
REFRESH_SHARE = 0.3
"""Share of probes, once all points have samples, that refresh the oldest point."""

CellKey = tuple[int, int]
"""(batch size, context)"""


def cell_of(target: Shape) -> CellKey:
    """The cell that a shape belongs to."""
    return target.batch_size, target.context


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the estimates so far mean for the plan."""

    uncertain: frozenset[Shape] = frozenset()
    """Points whose interval further pairs would narrow: fewer are kept than can be."""
    far_over: Mapping[CellKey, int] = field(default_factory=dict)
    """Smallest position count that is far over every line; beyond it nothing is urgent."""


NOTHING_KNOWN = Feedback()
"""Before the first estimate."""


class Planner:
    """Chooses targets; pure bookkeeping with a seeded generator.

    Args:
        grids: the position counts beyond 1 of each cell, ascending.
        min_samples: pairs that a point needs.
        seed: of the random order.
    """

    def __init__(
        self, grids: Mapping[CellKey, Sequence[int]], min_samples: int, seed: int = 0
    ) -> None:
        self._targets: dict[CellKey, list[Shape]] = {
            cell: [Shape(*cell, n) for n in grid] for cell, grid in grids.items() if grid
        }
        self._put_off: set[Shape] = set()
        self._counts: dict[Shape, int] = {t: 0 for ts in self._targets.values() for t in ts}
        self._last: dict[Shape, int] = dict.fromkeys(self._counts, 0)
        self._turn = 0
        self._since_change = 0
        self._min_samples = min_samples
        self._rng = random.Random(seed)
        self._missing_pairs: tuple[Feedback, int] | None = None
        """The last answer, and the feedback that it was given for; None after a change."""

    @property
    def cells(self) -> tuple[CellKey, ...]:
        """Cells that still have targets."""
        return tuple(self._targets)

    def next(
        self,
        live: CellKey | None = None,
        ready: Callable[[Shape], bool] = lambda _: True,
        feedback: Feedback = NOTHING_KNOWN,
    ) -> Shape | None:
        """The next target to run; None if nothing can be probed.

        Args:
            live: the cell that live traffic is in, if it is one of ours.
            ready: whether a target can run at once. Making another one ready costs more than a
                pair. So targets that are ready are preferred for :data:`STAY_PAIRS` pairs.
            feedback: what the latest estimates mean for the plan.
        """
        if not self._targets:
            return None
        target = self._choose(live, feedback)
        if ready(target):
            return target
        if self._since_change < STAY_PAIRS:
            held = [t for t in self._wanting(feedback) if ready(t)]
            if held:
                fewest = min(self._counts[t] for t in held)
                return self._rng.choice([t for t in held if self._counts[t] == fewest])
        return target

    def changed(self) -> None:
        """Other targets than before have been made ready."""
        self._since_change = 0

    def _wanting(self, feedback: Feedback) -> list[Shape]:
        """Targets that lack samples; all of them once none does."""
        missing = [t for cell in self._targets for t in self._missing(cell, feedback)]
        return missing or [t for ts in self._targets.values() for t in ts]

    def _choose(self, live: CellKey | None, feedback: Feedback) -> Shape:
        cell = self._choose_cell(live, feedback)
        missing = self._missing(cell, feedback)
        if missing:
            fewest = min(self._counts[t] for t in missing)
            return self._rng.choice([t for t in missing if self._counts[t] == fewest])
        uncertain = [t for t in self._targets[cell] if t in feedback.uncertain]
        if uncertain and self._rng.random() >= REFRESH_SHARE:
            return min(uncertain, key=lambda t: (self._counts[t], self._last[t]))
        return min(self._targets[cell], key=lambda t: self._last[t])

    def record(self, target: Shape) -> None:
        """The target's pair has been measured."""
        self._missing_pairs = None
        self._turn += 1
        self._since_change += 1
        if target in self._counts:
            self._counts[target] += 1
            self._last[target] = self._turn

    def drop(self, target: Shape) -> None:
        """The target cannot be run here: leave it out permanently."""
        self._missing_pairs = None
        cell = cell_of(target)
        remaining = [t for t in self._targets.get(cell, []) if t != target]
        if remaining:
            self._targets[cell] = remaining
        else:
            self._targets.pop(cell, None)
        self._counts.pop(target, None)
        self._last.pop(target, None)
        self._put_off.discard(target)

    def put_off(self, target: Shape) -> None:
        """The target cannot be run at the moment: leave it out until it is taken back."""
        if target not in self._counts or target in self._put_off:
            return
        count, last = self._counts[target], self._last[target]
        self.drop(target)
        self._counts[target], self._last[target] = count, last
        self._put_off.add(target)

    def take_back(self, target: Shape) -> None:
        """A target that was put off may be chosen again; its samples still count."""
        if target in self._put_off:
            self._missing_pairs = None
            self._put_off.discard(target)
            cell = cell_of(target)
            self._targets[cell] = sorted([*self._targets.get(cell, []), target])

    def complete(self, feedback: Feedback = NOTHING_KNOWN) -> bool:
        """Whether every point that matters, and is not put off, has its samples."""
        return self.missing_pairs(feedback) == 0

    def missing_pairs(self, feedback: Feedback = NOTHING_KNOWN) -> int:
        """Pairs that the points which matter, and are not put off, still lack.

        Asked at every step that is looked at. So the answer is kept until something changes.
        """
        if self._missing_pairs is None or self._missing_pairs[0] is not feedback:
            missing = sum(
                self._min_samples - self._counts[t]
                for cell in self._targets
                for t in self._missing(cell, feedback)
            )
            self._missing_pairs = feedback, missing
        return self._missing_pairs[1]

    def _missing(self, cell: CellKey, feedback: Feedback) -> list[Shape]:
        """Points of the cell without enough samples, those far over every line left out."""
        limit = feedback.far_over.get(cell)
        return [
            t
            for t in self._targets[cell]
            if self._counts[t] < self._min_samples and (limit is None or t.positions <= limit)
        ]

    def _choose_cell(self, live: CellKey | None, feedback: Feedback) -> CellKey:
        if live in self._targets and self._rng.random() < LIVE_SHARE:
            return live
        missing = {cell: self._missing(cell, feedback) for cell in self._targets}
        candidates = [cell for cell in missing if missing[cell]] or list(missing)
        progress = {
            cell: min(self._counts[t] for t in missing[cell] or self._targets[cell])
            for cell in candidates
        }
        fewest = min(progress.values())
        return self._rng.choice([cell for cell in candidates if progress[cell] == fewest])


def live_cell(
    step: EngineStep, batch_sizes: Iterable[int], contexts: Iterable[int]
) -> CellKey | None:
    """The cell that a real step belongs to; None if it is larger than all of them."""
    batch_size, context = bucket(step.batch_size, batch_sizes), bucket(step.context, contexts)
    return None if batch_size is None or context is None else (batch_size, context)


def bucket(value: int, bounds: Iterable[int]) -> int | None:
    """The smallest bound that is at least ``value``; None above the largest."""
    return min((bound for bound in bounds if bound >= value), default=None)
