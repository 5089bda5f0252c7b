"""Chooses the draft length of each batch size and context while the server serves.

The goodput of K drafts at batch size B and context L is B E(K) / t(K; B, L) tokens per second
(docs/theory.md, "Draft length"). t comes from real steps, drafting and host included, and for a K
that has not been tried from a forecast (:mod:`vllm_nfp.draft.live.forecast`); E comes from what
real steps accepted. A promising length is tried before it is used, in turns of a few steps with the
one in force: a host and its load slow all steps down for a while, and only steps side by side tell
two lengths apart. What trials may lose is bounded. Whatever is in doubt is left to the configured
table.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.curve_set import CurveSet
from vllm_nfp.draft.live.cells import BLIND_SECONDS, Cell, LengthTable
from vllm_nfp.draft.live.credit import Credit
from vllm_nfp.draft.live.decision import Decision, Reason, Settings
from vllm_nfp.draft.live.knowledge import Knowledge
from vllm_nfp.draft.live.proposals import Proposals
from vllm_nfp.draft.live.steps import MOST_CELLS, CellKey, StepObservation, cell_of
from vllm_nfp.draft.live.trial import TrialResult
from vllm_nfp.draft.live.trials import Trials

DECIDE_EVERY = 4
"""Steps of a cell between two decisions there. Its own steps count: a load that alternates between
cells must not keep a trial in one of them alive."""


class Controller:
    """Live draft lengths; used by one thread.

    Args:
        static: the configured draft length by batch size; index 0 is not used.
        settings: what may be chosen.

    Raises:
        ValueError: if there are fewer than two lengths, or they do not ascend from 0 on.
    """

    def __init__(self, static: Sequence[int], settings: Settings) -> None:
        lengths = settings.lengths
        if len(lengths) < 2 or lengths[0] != 0 or list(lengths) != sorted(set(lengths)):
            raise ValueError(f"draft lengths must ascend from 0 on, two at least, not {lengths}")
        self._settings = settings
        self._cells: OrderedDict[CellKey, Cell] = OrderedDict()
        self._known = Knowledge(lengths, max(lengths[-1], *static[1:]), settings.widest_graph)
        self._credit = Credit(settings.trial_loss)
        self._trials = Trials(self._known, self._credit)
        self._proposals = Proposals(lengths, settings.min_gain, self._known, self._credit)
        self._table = LengthTable(static, self._cells)
        self.version = 0
        """Rises when a table made earlier no longer shows what is chosen."""
        self.decisions: Counter[Reason] = Counter()
        """Changes of the length in force, by reason."""
        self.trial_steps = 0
        self.steps = 0
        """Pure decode steps seen."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Draft lengths that may be chosen."""
        return self._settings.lengths

    @property
    def draft_seconds(self) -> dict[int, float]:
        """Time of one more drafted token beside its verification, by batch size, where known."""
        return self._known.model.draft_seconds

    @property
    def acceptance(self) -> Acceptance | None:
        """As counted; None: not known yet."""
        return self._known.acceptance

    @property
    def results(self) -> deque[TrialResult]:
        """Of the last trials."""
        return self._trials.results

    def set_curves(self, curves: CurveSet | Iterable[StepCurve]) -> None:
        """Use the probe's latest curves of the whole step; cheap for a :class:`CurveSet`."""
        self._known.model.set_curves(curves)

    def observe(self, step: StepObservation, now: float) -> bool:
        """Take in a step; true if it is time to decide.

        Args:
            now: seconds of a monotonic clock.
        """
        self.steps += 1
        self._credit.earn()
        key = cell_of(step.batch_size, step.context)
        self._known.add(key, step)
        cell = self._cell(key)
        cell.steps += 1
        cell.place = (step.batch_size, step.context)
        if cell.trial is not None:
            self.trial_steps += step.draft_length == cell.trial.length
            cell.trial.saw(step.draft_length, step.seconds)
        cell.undecided += 1
        return cell.undecided >= DECIDE_EVERY

    def passed(self, batch_size: int, context: int, draft_length: int) -> None:
        """Take in a step that says nothing about its length, such as one with prompt tokens.

        Such steps in a row must not keep a trial in force.

        Args:
            context: of the table in force.
        """
        cell = self._cells.get(cell_of(batch_size, context))
        trial = None if cell is None else cell.trial
        if trial is None or draft_length != trial.length:
            return
        self.trial_steps += 1
        if trial.passed(DECIDE_EVERY):
            self.version += 1

    def decide(self, batch_size: int, context: int, now: float) -> Decision:
        """Choose the length of the cell that steps are in now."""
        key = cell_of(batch_size, context)
        cell = self._cell(key)
        cell.undecided = 0
        before = self._table.in_force(key, batch_size)
        if self._known.counted.changed:
            self._back_to_the_table()
            cell.reason = Reason.CHANGED
        elif self._trials.next_turn(key, cell, now):
            self.version += 1
        else:
            self._choose(key, cell, batch_size, now)
        after = self._table.in_force(key, batch_size)
        if after != before:
            self.decisions[cell.reason] += 1
            self.version += 1
        return Decision(*key, after, self._table.static[batch_size], cell.reason, cell.gain)

    def table(self, context: int) -> list[int]:
        """Draft length by batch size at this context, as vLLM looks it up; index 0 is unused."""
        return self._table.at_context(context)

    def rows(self, most: int) -> list[Decision]:
        """The state of the cells, the ``most`` last used ones, the latest last."""
        found = (self.row(key) for key in self.latest_cells(most))
        return [row for row in found if row is not None]

    def latest_cells(self, most: int) -> list[CellKey]:
        """The ``most`` last used cells, the latest last."""
        return list(self._cells)[-most:]

    def row(self, key: CellKey) -> Decision | None:
        """The state of a cell; None if it was forgotten."""
        cell, largest = self._cells.get(key), self._table.largest(key)
        if cell is None:
            return None
        length, static = self._table.in_force(key, largest), self._table.static[largest]
        return Decision(*key, length, static, cell.reason, cell.gain)

    def learn(self, key: CellKey) -> None:
        """Take what a draft costs from a cell's steps and the latest curves."""
        cell = self._cells.get(key)
        here = None if cell is None else self._known.compared(key, cell)
        if here is not None:
            self._known.model.learn_draft_seconds(here)

    def times(self, key: CellKey) -> list[tuple[int, int, float]]:
        """(draft length, steps, median seconds) of every length with enough steps in a cell."""
        return self._known.medians(key)

    def _cell(self, key: CellKey) -> Cell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = Cell()
            while len(self._cells) > MOST_CELLS:
                _, evicted = self._cells.popitem(last=False)
                if evicted.choice is not None or evicted.trial is not None:
                    self.version += 1
                self._trials.end(evicted)
        else:
            self._cells.move_to_end(key)
        return cell

    def _back_to_the_table(self) -> None:
        """Acceptance is no longer known, so no choice holds; the times of steps still do."""
        for cell in self._cells.values():
            self._trials.end(cell)
            cell.choice = cell.gain = None
            cell.reason, cell.hopeful = Reason.STATIC, False
        self._known.counted.clear()
        self.version += 1

    def _choose(self, key: CellKey, cell: Cell, batch_size: int, now: float) -> None:
        current = self._table.in_force(key, batch_size)
        acceptance = self._known.acceptance
        if acceptance is None:
            cell.reason, cell.gain = Reason.LEARNING, None
            # Without drafts nothing is ever learned of them.
            if current == 0 and self._credit.left > 0.0:
                self._trials.begin(key, cell, self._settings.lengths[1], current)
            return
        if not self._known.timed(key, current):
            if cell.choice is None:
                cell.reason = Reason.LEARNING
            cell.gain = None
            return
        cell.refresh(current)
        best = self._settle(key, cell, acceptance, current, now)
        found = self._proposals.propose(key, cell, acceptance, best, now, self.steps)
        if found is not None:
            assert cell.choice is not None, "a settled cell has a choice"
            self._trials.begin(key, cell, found.length, cell.choice, found.slower, found.basis)

    def _settle(
        self, key: CellKey, cell: Cell, acceptance: Acceptance, current: int, now: float
    ) -> float:
        """Choose the best length that was compared here; its goodput, in the cell's unit."""
        goodput = {k: acceptance.expected_tokens(k) / t for k, t in cell.relative.items()}
        allowed = [k for k in goodput if k in self._settings.lengths or k == current]
        best = max(allowed, key=lambda k: (goodput[k], -k))
        if goodput[best] < goodput[current] * (1.0 + self._settings.min_gain):
            best = current
        cell.reason = Reason.KEPT if best == current else Reason.FASTER
        if cell.choice != best:
            # Even if it is in force here, it may not be at the cell's other batch sizes.
            self.version += 1
            cell.choice, cell.settled_at = best, now
            cell.blind_seconds = BLIND_SECONDS
        static = self._table.static[self._table.largest(key)]
        slower = cell.relative.get(static, cell.before.get(static))
        cell.gain = None
        if slower is not None:
            cell.gain = goodput[best] * slower / acceptance.expected_tokens(static)
        return goodput[best]
