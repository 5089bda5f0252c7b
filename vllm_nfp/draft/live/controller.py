"""Chooses the draft length of each batch size and context while the server serves.

The goodput of K drafts at batch size B and context L is B E(K) / t(K; B, L) tokens per second
(docs/theory.md, "Draft length"). t comes from real steps, drafting and host included, and where a K
has not been tried, from a forecast (:mod:`vllm_nfp.draft.live.forecast`); E comes from what real
steps accepted. A length that looks worth it is tried before it is taken, in turns of a few steps
with the one in force: a host and its load slow all steps down for a while, and only steps side by
side tell two lengths apart. What trials may lose is bounded. Whatever is in doubt is left to the
static schedule.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.curve_set import CurveSet
from vllm_nfp.draft.live.counted import CountedAcceptance
from vllm_nfp.draft.live.credit import FIRST_CREDIT, Credit
from vllm_nfp.draft.live.forecast import EVIDENCE_OCTAVES, Compared, Record, StepModel
from vllm_nfp.draft.live.steps import (
    MOST_CELLS,
    CellKey,
    CellTimes,
    StepObservation,
    batch_cell,
    cell_of,
    context_cell,
    distance,
)
from vllm_nfp.draft.live.trial import CLEAR_STEPS, TRIAL_STEPS, Basis, Trial, TrialResult

SETTLED_STEPS = 3
"""Timed steps of the length in force after which another may be tried."""
GUESSED_LOSS = 1.0
"""Loss of a trial step, in steps, where no curve tells it."""
WORTH_A_LOOK = 0.95
"""A measured length is measured again, once stale, if it had this share of the best,"""
CONTRADICTED = 1.15
"""or if a forecast promises so many times as much as was measured: one of them is wrong."""
STALE_SECONDS = 60.0
"""Age at which the time of a plausible length is taken anew."""
BLIND_SECONDS, BLIND_AT_MOST, BLIND_BEYOND = 0.5, 4.0, 16.0
"""Nothing tells of the acceptance of drafts that are longer than those in force. Seconds after
which a trial looks for it, with credit to spare: without drafts the first, doubled with each trial
up to the second; with some the third."""
NEIGHBOUR_OCTAVES = 1.0
"""A cell without a choice of its own follows the nearest one that is no farther than this."""
MOST_RESULTS = 256
ANEW_AFTER, ANEW_AT_MOST = 1024, 8192
"""Steps in a cell until it is compared anew, doubled each time. A length whose trial fell into a
slow spell of the host may look so much better, or worse, than it is that no other is worth a look:
such a verdict is not to last."""
LOOK_EVERY = 32
"""Steps until lengths that were not worth a trial are looked at again."""
DECIDE_EVERY = 4
"""Steps of a cell between two decisions there. Of its own steps: a load that goes back and forth
between cells must not leave a trial in one of them to last."""


class Reason(StrEnum):
    """Why a draft length is in force."""

    STATIC = "static"
    """The configured schedule: nothing better is known."""
    LEARNING = "learning"
    """The configured schedule, or the last choice, while acceptance or times are too few."""
    TRIAL = "trial"
    """A length that looks worth it, for a few steps."""
    NEIGHBOUR = "neighbour"
    """The choice of the nearest batch size and context."""
    FASTER = "faster"
    """Measured to be faster than the one before."""
    KEPT = "kept"
    """Measured, and no other length is faster by enough."""
    CHANGED = "acceptance_changed"
    """Acceptance has changed: the configured schedule until the new one is known."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of the controller."""

    lengths: tuple[int, ...]
    """Draft lengths that may be chosen, ascending: 0 and those that have CUDA graphs."""
    min_gain: float = 0.01
    """Goodput over the length in force, as a share, from which another one takes its place."""
    trial_loss: float = 0.005
    """Largest share of the goodput that trials may give up, beyond that of the first seconds."""
    widest_graph: int | None = None
    """Tokens of the widest step with a CUDA graph; None: no graphs, or not known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The draft length of one cell, and why."""

    batch_size: int
    context: int
    draft_length: int
    static_length: int
    reason: Reason
    gain: float | None
    """Goodput over that of the configured length; None: not known."""


@dataclass(slots=True)
class _Cell:
    """State of one batch size and context."""

    choice: int | None = None
    reason: Reason = Reason.STATIC
    gain: float | None = None
    relative: dict[int, float] = field(default_factory=dict)
    """Time of a step by draft length, over that of the first length in force here."""
    before: dict[int, float] = field(default_factory=dict)
    """The same as it was known before it was compared anew; no choice rests on it."""
    tried: dict[int, float] = field(default_factory=dict)
    """When each was last compared, in seconds of the caller's clock."""
    trial: Trial | None = None
    steps: int = 0
    """Since what is known here was compared anew."""
    undecided: int = 0
    """Steps since the last decision."""
    anew_after: int = ANEW_AFTER
    settled_at: float = -math.inf
    """When the choice was made, in seconds of the caller's clock."""
    blind_seconds: float = BLIND_SECONDS
    """Until drafts are looked at again where there are none."""
    hopeful: bool = False
    """The last look has found better acceptance, on too few drafts to count."""
    next_look: int = 0
    """Step from which lengths that were not worth a trial are looked at again."""

    def begin_anew(self, length: int) -> None:
        """Nothing counts any more but that this length is in force."""
        known = {**self.before, **self.relative}
        unit = known.get(length)
        self.before = {} if unit is None else {k: t / unit for k, t in known.items()}
        self.relative, self.tried, self.steps = {length: 1.0}, {}, 0


@dataclass(frozen=True, slots=True)
class _Promise:
    """A length that may be worth a trial."""

    goodput: float
    length: int
    slower: float | None
    """Its time over that of the length in force, as forecast; None: nothing tells it."""
    basis: Basis


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
        self._static = list(static)
        self._settings = settings
        self._times = CellTimes()
        self._counted = CountedAcceptance(max(lengths[-1], *static[1:]))
        self._cells: OrderedDict[CellKey, _Cell] = OrderedDict()
        self._model = StepModel(lengths, settings.widest_graph)
        self._record = Record()
        self._ranges = _ranges(len(static) - 1)
        self._credit = Credit(settings.trial_loss)
        self.version = 0
        """Rises when a table made earlier no longer says what is chosen."""
        self.decisions: Counter[Reason] = Counter()
        """Changes of the length in force, by reason."""
        self.results: deque[TrialResult] = deque(maxlen=MOST_RESULTS)
        """Of the last trials."""
        self.trial_steps = 0
        self.steps = 0
        """Pure decode steps seen."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """What is chosen from."""
        return self._settings.lengths

    @property
    def draft_seconds(self) -> dict[int, float]:
        """Time of one more drafted token beside its verification, by batch size, where told."""
        return self._model.draft_seconds

    @property
    def acceptance(self) -> Acceptance | None:
        """As counted; None: not known yet."""
        return self._counted.acceptance

    def set_curves(self, curves: CurveSet | Iterable[StepCurve]) -> None:
        """Take over the probe's latest curves of the whole step; cheap for a :class:`CurveSet`."""
        self._model.set_curves(curves)

    def observe(self, step: StepObservation, now: float) -> bool:
        """Take in a step; true if it is time to decide.

        Args:
            now: seconds of a monotonic clock.
        """
        self.steps += 1
        self._credit.earn()
        key = cell_of(step.batch_size, step.context)
        if step.draft_length:
            self._counted.add(step.batch_size, step.accepted)
        if step.seconds is not None:
            self._times.add(key, step.draft_length, step.seconds)
            self._model.saw(step.batch_size, step.draft_length, step.seconds)
        cell = self._cell(key)
        cell.steps += 1
        if cell.trial is not None:
            self.trial_steps += step.draft_length == cell.trial.length
            cell.trial.saw(step.draft_length, step.seconds)
        cell.undecided += 1
        return cell.undecided >= DECIDE_EVERY

    def passed(self, batch_size: int, context: int, draft_length: int) -> None:
        """Take in a step that tells nothing of its length, as one with a part of a prompt.

        A trial is not to stay in force for as long as such steps follow one another.

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
        before = self._in_force(key, batch_size)
        if self._counted.changed:
            self._back_to_the_schedule()
            cell.reason = Reason.CHANGED
        elif not self._trial_goes_on(key, cell, now):
            self._choose(key, cell, batch_size, now)
        after = self._in_force(key, batch_size)
        if after != before:
            self.decisions[cell.reason] += 1
            self.version += 1
        return Decision(*key, after, self._static[batch_size], cell.reason, cell.gain)

    def table(self, context: int) -> list[int]:
        """Draft length by batch size at this context, as vLLM looks it up; index 0 is unused."""
        at = context_cell(context)
        lengths = [0]
        settled = self._settled_near(at)
        for cell, first, last in self._ranges:
            chosen = self._chosen((cell, at), settled)
            lengths.extend(
                self._static[first : last + 1] if chosen is None else [chosen] * (last + 1 - first)
            )
        return lengths

    def rows(self, most: int) -> list[Decision]:
        """The state of the cells, the ``most`` last used ones, the latest last."""
        found = (self.row(key) for key in self.latest_cells(most))
        return [row for row in found if row is not None]

    def latest_cells(self, most: int) -> list[CellKey]:
        """The ``most`` last used cells, the latest last."""
        return list(self._cells)[-most:]

    def row(self, key: CellKey) -> Decision | None:
        """The state of a cell; None if it was forgotten."""
        cell, largest = self._cells.get(key), self._largest(key)
        if cell is None:
            return None
        return Decision(
            *key, self._in_force(key, largest), self._static[largest], cell.reason, cell.gain
        )

    def times(self, key: CellKey) -> list[tuple[int, int, float]]:
        """(draft length, steps, median seconds) of every length with enough steps in a cell."""
        return [
            (length, len(times), times.median)
            for length, times in sorted(self._times.peek(key).items())
            if len(times) >= TRIAL_STEPS
        ]

    def _largest(self, key: CellKey) -> int:
        """The largest batch size of a cell, which stands for it."""
        return min(key[0], len(self._static) - 1)

    def _cell(self, key: CellKey) -> _Cell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
            while len(self._cells) > MOST_CELLS:
                _, evicted = self._cells.popitem(last=False)
                if evicted.choice is not None or evicted.trial is not None:
                    self.version += 1
                self._end_trial(evicted)
        else:
            self._cells.move_to_end(key)
        return cell

    def _back_to_the_schedule(self) -> None:
        """Acceptance is not known any more, and no choice holds; how long steps take still does."""
        for cell in self._cells.values():
            self._end_trial(cell)
            cell.choice = cell.gain = None
            cell.reason, cell.hopeful = Reason.STATIC, False
        self._counted.clear()
        self.version += 1

    def _settled_near(self, context: int) -> list[CellKey]:
        """Cells with a choice whose contexts are within a factor of two."""
        return [
            key
            for key, cell in self._cells.items()
            if cell.choice is not None and 0.5 <= key[1] / context <= 2.0
        ]

    def _chosen(self, key: CellKey, settled: Sequence[CellKey] | None = None) -> int | None:
        """The length that the cell, or its nearest neighbour, has settled on or is trying.

        Args:
            settled: what :meth:`_settled_near` says of its context, if it is known.
        """
        cell = self._cells.get(key)
        if cell is not None and cell.trial is not None and cell.trial.its_turn:
            return cell.trial.length
        if cell is not None and cell.choice is not None:
            return cell.choice
        near = [
            other
            for other in (self._settled_near(key[1]) if settled is None else settled)
            if 0.5 <= other[0] / key[0] <= 2.0
        ]
        # Of several as near always the same one, whichever was used last.
        nearest = min(near, key=lambda other: (distance(key, other), other), default=None)
        if nearest is None or distance(key, nearest) > NEIGHBOUR_OCTAVES:
            return None
        choice = self._cells[nearest].choice
        assert choice is not None, "only settled cells are followed"
        return choice if self._model.has_graph(key[0], choice) else self._longest_with_graph(key[0])

    def _longest_with_graph(self, batch_size: int) -> int:
        """A neighbour's length would drop the step out of CUDA graphs: the longest that does not.

        A longer one may still be better where steps are long; a trial may tell.
        """
        return max(
            k for k in self._settings.lengths if k == 0 or self._model.has_graph(batch_size, k)
        )

    def _in_force(self, key: CellKey, batch_size: int) -> int:
        chosen = self._chosen(key)
        return self._static[batch_size] if chosen is None else chosen

    def _trial_goes_on(self, key: CellKey, cell: _Cell, now: float) -> bool:
        trial = cell.trial
        if trial is None:
            return False
        complete = trial.complete
        if not complete and trial.patient and trial.ran * self._lost(trial) < FIRST_CREDIT:
            trial.its_turn = not trial.its_turn
            self.version += 1
            return True
        ratio = trial.ratio if complete else None
        self.results.append(trial.result(key, ratio))
        self._end_trial(cell)
        if trial.reference not in cell.relative:
            # Nothing was known of it before, or in the unit of another length.
            cell.begin_anew(trial.reference)
        cell.tried[trial.length] = now
        if ratio is not None:
            if trial.forecast is not None:
                told = (trial.basis, trial.forecast, ratio, trial.error)
                if not trial.is_clear:  # a few steps that leave no doubt may scatter
                    ratio = self._record.weighed(*told)
                self._record.add(*told)
            cell.relative[trial.length] = ratio * cell.relative[trial.reference]
        if trial.length > trial.reference:
            cell.hopeful = self._counted.is_better_beyond(trial.reference, trial.length)
            cell.blind_seconds = min(BLIND_AT_MOST, 2.0 * cell.blind_seconds)
        return False

    def _lost(self, trial: Trial) -> float:
        """What each step of a trial has lost so far, in steps of the reference."""
        ratio, acceptance = trial.hint, self._counted.acceptance
        if ratio is None:
            return trial.loss
        if acceptance is not None:
            return _loss(acceptance, ratio, trial.length, trial.reference)
        # More drafts never make fewer tokens.
        return max(0.0, ratio - 1.0) if trial.length > trial.reference else trial.loss

    def _end_trial(self, cell: _Cell) -> None:
        """Settle what the trial of a cell has lost, if there is one."""
        if cell.trial is not None:
            self._credit.settle(cell.trial, self._lost(cell.trial))
            cell.trial = None

    def _choose(self, key: CellKey, cell: _Cell, batch_size: int, now: float) -> None:
        current = self._in_force(key, batch_size)
        acceptance = self._counted.acceptance
        if acceptance is None:
            cell.reason, cell.gain = Reason.LEARNING, None
            # Without drafts nothing is ever learned of them.
            if current == 0 and self._credit.left > 0.0:
                self._try(key, cell, self._settings.lengths[1], current)
            return
        if len(self._times.peek(key).get(current, ())) < SETTLED_STEPS:
            if cell.choice is None:
                inherited = self._chosen(key) is not None
                cell.reason = Reason.NEIGHBOUR if inherited else Reason.LEARNING
            cell.gain = None
            return
        if current not in cell.relative:
            # What was compared with another length says nothing of this one.
            cell.begin_anew(current)
        elif cell.steps >= cell.anew_after:
            cell.begin_anew(current)
            cell.anew_after = min(ANEW_AT_MOST, 2 * cell.anew_after)
        goodput = {k: acceptance.expected_tokens(k) / t for k, t in cell.relative.items()}
        allowed = [k for k in goodput if k in self._settings.lengths or k == current]
        best = max(allowed, key=lambda k: (goodput[k], -k))
        if goodput[best] < goodput[current] * (1.0 + self._settings.min_gain):
            best = current
        cell.reason = Reason.KEPT if best == current else Reason.FASTER
        if cell.choice != best:
            # Batch sizes without a choice of their own follow this one.
            self.version += 1
            cell.choice, cell.settled_at = best, now
            cell.blind_seconds = BLIND_SECONDS
        static = self._static[self._largest(key)]
        slower = cell.relative.get(static, cell.before.get(static))
        cell.gain = None
        if slower is not None:
            cell.gain = goodput[best] * slower / acceptance.expected_tokens(static)
        self._maybe_try(key, cell, acceptance, goodput[best], now)

    def _maybe_try(
        self, key: CellKey, cell: _Cell, acceptance: Acceptance, best: float, now: float
    ) -> None:
        """Begin the trial that promises most, if any does and the credit covers its loss."""
        assert cell.choice is not None, "only a settled cell tries others"
        measured = cell.relative

        def is_fresh(length: int) -> bool:
            return length in cell.tried and now - cell.tried[length] < STALE_SECONDS

        longer = next((k for k in self._settings.lengths if k > cell.choice), None)
        if longer is not None and self._may_look(key, cell, acceptance, longer, now):
            # Otherwise a better acceptance of longer drafts would never be noticed.
            if not cell.hopeful:
                self._counted.look_beyond(cell.choice)
            self._try(key, cell, longer, cell.choice)
            return
        if self.steps < cell.next_look:
            return
        worth = best * (1.0 + self._settings.min_gain)
        lengths = [
            length
            for length in self._settings.lengths
            if length != cell.choice
            and not is_fresh(length)
            and self._most(length, acceptance, measured) >= worth
        ]
        found = self._promising(key, cell, acceptance, best, lengths) if lengths else None
        if found is None:
            cell.next_look = self.steps + LOOK_EVERY
        else:
            self._try(key, cell, found.length, cell.choice, found.slower, found.basis)

    def _may_look(
        self, key: CellKey, cell: _Cell, acceptance: Acceptance, longer: int, now: float
    ) -> bool:
        """Whether to see how drafts fare that are longer than those in force."""
        assert cell.choice is not None, "only a settled cell looks farther"
        last = cell.tried.get(longer, -math.inf)
        if cell.choice == 0:
            spare = self._credit.is_wide or cell.hopeful
            due = 0.0 if cell.hopeful else cell.blind_seconds if spare else STALE_SECONDS
            return self._credit.left > 0.0 and now - last >= due
        # The first places are watched all the time, and tell of most changes.
        if not self._credit.is_wide or not self._model.has_graph(key[0], longer):
            return False
        if not self._credit.covers(_expected_loss(acceptance, cell, longer, cell.choice, None)):
            return False
        return cell.hopeful or now - max(last, cell.settled_at) >= BLIND_BEYOND

    def _promising(
        self,
        key: CellKey,
        cell: _Cell,
        acceptance: Acceptance,
        best: float,
        lengths: Iterable[int],
    ) -> _Promise | None:
        """The length that promises most; None if none is worth a trial."""
        here = self._compared(key, cell)
        assert here is not None and cell.choice is not None, "it has timed steps and a choice"
        self._model.learn_draft_seconds(here)
        others = list(self._others(key))
        wide = self._credit.is_wide
        found = []
        for length in lengths:
            forecast = self._model.forecast(here, length, cell.choice, others)
            tokens = acceptance.expected_tokens(length)
            goodput, slower = best, None
            if forecast.relative is not None:
                goodput = tokens / forecast.relative
                slower = forecast.relative / cell.relative[cell.choice]
            if length in cell.relative:
                had = tokens / cell.relative[length]
                if had < WORTH_A_LOOK * best and goodput < CONTRADICTED * had:
                    continue
            promises = goodput >= best * self._record.plausible(forecast.basis, wide)
            if promises and self._credit.covers(
                _expected_loss(acceptance, cell, length, cell.choice, slower)
            ):
                found.append(_Promise(goodput, length, slower, forecast.basis))
        choice = cell.choice
        return max(found, key=lambda one: (one.goodput, -abs(one.length - choice)), default=None)

    def _most(self, length: int, acceptance: Acceptance, measured: Mapping[int, float]) -> float:
        """The goodput that a length cannot exceed.

        More drafts never make a step faster. A length that would not win even at the time of the
        shorter ones need not be tried, whatever a model says.
        """
        least = max((t for other, t in measured.items() if other <= length), default=0.0)
        return acceptance.expected_tokens(length) / least if least else math.inf

    def _compared(self, key: CellKey, cell: _Cell) -> Compared | None:
        """What was compared in a cell; None if nothing tells how long its steps are."""
        times = self._times.peek(key)
        for length, relative in cell.relative.items():
            known = times.get(length)
            if known:
                return Compared(key, cell.relative, known.median / relative)
        return None

    def _others(self, key: CellKey) -> Iterator[Compared]:
        """Cells nearby in which lengths were compared."""
        for other, cell in self._cells.items():
            if len(cell.relative) > 1 and distance(key, other) <= EVIDENCE_OCTAVES:
                found = self._compared(other, cell)
                if found is not None:
                    yield found

    def _try(
        self,
        key: CellKey,
        cell: _Cell,
        length: int,
        reference: int,
        forecast: float | None = None,
        basis: Basis = Basis.FAR,
    ) -> None:
        acceptance = self._counted.acceptance
        tokens = math.nan  # as long as acceptance is not known, nothing is clear
        if acceptance is not None:
            tokens = _worth(acceptance, length, reference)
        loss = _expected_loss(acceptance, cell, length, reference, forecast)
        known = self._times.peek(key).get(reference)
        before = () if known is None else known.last(CLEAR_STEPS)
        cell.trial = Trial(length, reference, tokens, forecast, basis, before, loss)
        cell.reason = Reason.TRIAL
        self._credit.begin(cell.trial)


def _ranges(largest: int) -> list[tuple[int, int, int]]:
    """(cell, first, last) of the batch sizes from 1 to ``largest``, cell by cell."""
    ranges = []
    first = 1
    while first <= largest:
        cell = batch_cell(first)
        ranges.append((cell, first, min(cell, largest)))
        first = cell + 1
    return ranges


def _expected_loss(
    acceptance: Acceptance | None, cell: _Cell, length: int, reference: int, slower: float | None
) -> float:
    """What a step of a trial loses, in steps of the reference.

    Args:
        slower: its time over the reference's, as forecast; None: as measured here, if it was.
    """
    if slower is None and length in cell.relative and reference in cell.relative:
        slower = cell.relative[length] / cell.relative[reference]
    if slower is None or acceptance is None:
        return GUESSED_LOSS
    return _loss(acceptance, slower, length, reference)


def _loss(acceptance: Acceptance, slower: float, length: int, choice: int) -> float:
    """What a step of a trial loses, in steps of the choice: its time less that of its tokens."""
    return max(0.0, slower - _worth(acceptance, length, choice))


def _worth(acceptance: Acceptance, length: int, reference: int) -> float:
    """Tokens of a step of a length over those of another: how much longer it may take."""
    return acceptance.expected_tokens(length) / acceptance.expected_tokens(reference)
