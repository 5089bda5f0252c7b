"""Chooses the draft length of each batch size and context while the server serves.

The goodput of K drafts at batch size B and context L is B E(K) / t(K; B, L) tokens per second
(THEORY.md, "Draft length"). t comes from real steps, drafting and host included, and where a K has
not been tried there, from a step that has, scaled by the probe's curve t(N) / t(1); E comes from
what real steps accepted. A length that looks worth it is tried before it is taken, in turns of a
few steps with the one in force: a host and its load slow all steps down for a while, and only
steps side by side tell two lengths apart. What trials may lose is bounded. Whatever is in doubt is
left to the static schedule.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.curve import StepCurve, interpolated
from vllm_nfp.draft.live.counted import CountedAcceptance
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

TRIAL_STEPS = 8
"""Timed steps of a length, and of the one in force beside it, before its time counts."""
HOPELESS_STEPS = 3
"""Timed steps of each after which a trial ends if even its fastest would have to be far faster."""
HOPELESS = 1.25
"""How much faster: by how much its fastest step, too, misses what the length in force reaches."""
TRIAL_PATIENCE = 4
"""A trial ends after this many times as many steps, if too few of them could be timed."""
FIRST_CREDIT = 24.0
"""Steps' worth of tokens that trials may lose before any step has earned it."""
MOST_CREDIT = 48.0
GUESSED_LOSS = 1.0
"""Loss of a trial step, in steps, where no curve tells it."""
PLAUSIBLE = 0.6
"""A length is tried if its modelled goodput is at least this share of the best known. So low
because a batch beside the edge of a stair takes half as long again as its measured neighbour."""
WORTH_A_LOOK = 0.95
"""A measured length is measured again, once stale, if it had this share of the best."""
CURVE_OCTAVES = 0.6
"""The probe's curve holds up to so far outside the batch sizes that it measured."""
TELLING = 0.5
"""Share of its drafts that a longer draft must have beyond its verification to tell their cost."""
STALE_SECONDS = 60.0
"""Age at which the time of a plausible length is taken anew."""
NEIGHBOUR_OCTAVES = 1.0
"""A cell without a choice of its own follows the nearest one that is no farther than this."""
DECIDE_EVERY = 4
"""Observed steps between two decisions."""


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
    tried: dict[int, float] = field(default_factory=dict)
    """When each was last compared, in seconds of the caller's clock."""
    trial: _Trial | None = None


@dataclass(slots=True)
class _Trial:
    """A length on trial, in turns with the one in force."""

    length: int
    reference: int
    tokens: float
    """What a step of the length makes over what one of the other makes."""
    its_turn: bool = True
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    reference_seconds: list[float] = field(default_factory=list)

    def add(self, length: int, seconds: float) -> None:
        """Take in a timed step."""
        if length == self.length:
            self.seconds.append(seconds)
        elif length == self.reference:
            self.reference_seconds.append(seconds)

    @property
    def complete(self) -> bool:
        """Whether both lengths have their steps, or few of them have told all."""
        steps = min(len(self.seconds), len(self.reference_seconds))
        return steps >= TRIAL_STEPS or (steps >= HOPELESS_STEPS and self._is_hopeless)

    @property
    def _is_hopeless(self) -> bool:
        usual = statistics.median(self.reference_seconds)
        return min(self.seconds) > HOPELESS * self.tokens * usual

    @property
    def ratio(self) -> float:
        """Time of a step of the length on trial over that of the other; robust to outliers."""
        return statistics.median(self.seconds) / statistics.median(self.reference_seconds)


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
        self._curves: tuple[StepCurve, ...] = ()
        self._ranges = _ranges(len(static) - 1)
        self._credit = FIRST_CREDIT
        self._since_decision = 0
        self.version = 0
        """Rises when a table made earlier no longer says what is chosen."""
        self.decisions: Counter[Reason] = Counter()
        """Changes of the length in force, by reason."""
        self.trial_steps = 0
        self.steps = 0
        """Pure decode steps seen."""
        self._without_graph: deque[float] = deque(maxlen=TRIAL_STEPS)
        """Seconds of the last steps without a CUDA graph: the host's, whatever the batch."""
        self.draft_seconds: dict[int, float] = {}
        """Time of one more drafted token beside its verification, by batch size, where told."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """What is chosen from."""
        return self._settings.lengths

    @property
    def acceptance(self) -> Acceptance | None:
        """As counted; None: not known yet."""
        return self._counted.acceptance

    def set_curves(self, curves: Iterable[StepCurve]) -> None:
        """Take over the probe's latest curves of the whole step."""
        self._curves = tuple(curves)

    def observe(self, step: StepObservation, now: float) -> bool:
        """Take in a step; true if it is time to decide.

        Args:
            now: seconds of a monotonic clock.
        """
        self.steps += 1
        self._credit = min(MOST_CREDIT, self._credit + self._settings.trial_loss)
        key = cell_of(step.batch_size, step.context)
        if step.draft_length:
            self._counted.add(step.batch_size, step.accepted)
        if step.seconds is not None:
            self._times.add(key, step.draft_length, step.seconds)
            if not self._has_graph(step.batch_size, step.draft_length):
                self._without_graph.append(step.seconds)
        trial = self._cell(key).trial
        if trial is not None:
            trial.steps += 1
            self.trial_steps += step.draft_length == trial.length
            if step.seconds is not None:
                trial.add(step.draft_length, step.seconds)
        self._since_decision += 1
        return self._since_decision >= DECIDE_EVERY

    def decide(self, batch_size: int, context: int, now: float) -> Decision:
        """Choose the length of the cell that steps are in now."""
        self._since_decision = 0
        key = cell_of(batch_size, context)
        cell = self._cell(key)
        before = self._in_force(key, batch_size)
        if self._counted.changed:
            self._forget()
            cell = self._cell(key)
            cell.reason = Reason.CHANGED
        elif not self._trial_goes_on(cell, now):
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
        for cell, first, last in self._ranges:
            chosen = self._chosen((cell, at))
            lengths.extend(
                self._static[first : last + 1] if chosen is None else [chosen] * (last + 1 - first)
            )
        return lengths

    def rows(self, most: int) -> list[Decision]:
        """The state of the cells, the ``most`` last used ones, the latest last."""
        rows = []
        for key in list(self._cells)[-most:]:
            cell, largest = self._cells[key], min(key[0], len(self._static) - 1)
            rows.append(
                Decision(
                    *key,
                    self._in_force(key, largest),
                    self._static[largest],
                    cell.reason,
                    cell.gain,
                )
            )
        return rows

    def times(self, key: CellKey) -> list[tuple[int, int, float]]:
        """(draft length, steps, median seconds) of every length with enough steps in a cell."""
        return [
            (length, len(times), times.median)
            for length, times in sorted(self._times.peek(key).items())
            if len(times) >= TRIAL_STEPS
        ]

    def _cell(self, key: CellKey) -> _Cell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
            while len(self._cells) > MOST_CELLS:
                self._cells.popitem(last=False)
        else:
            self._cells.move_to_end(key)
        return cell

    def _forget(self) -> None:
        """Back to the configured schedule: what was learned no longer holds."""
        self._counted.clear()
        self._cells.clear()
        self.version += 1
        self._credit = max(self._credit, FIRST_CREDIT)

    def _chosen(self, key: CellKey) -> int | None:
        """The length that the cell, or its nearest neighbour, has settled on or is trying."""
        cell = self._cells.get(key)
        if cell is not None and cell.trial is not None and cell.trial.its_turn:
            return cell.trial.length
        if cell is not None and cell.choice is not None:
            return cell.choice
        settled = [
            other
            for other, of in self._cells.items()
            if of.choice is not None and 0.5 <= other[1] / key[1] <= 2.0
        ]
        nearest = min(settled, key=lambda other: distance(key, other), default=None)
        if nearest is None or distance(key, nearest) > NEIGHBOUR_OCTAVES:
            return None
        choice = self._cells[nearest].choice
        assert choice is not None, "only settled cells are followed"
        return choice if self._has_graph(key[0], choice) else self._longest_with_graph(key[0])

    def _has_graph(self, batch_size: int, length: int) -> bool:
        widest = self._settings.widest_graph
        return widest is None or batch_size * (length + 1) <= widest

    def _longest_with_graph(self, batch_size: int) -> int:
        """A neighbour's length would drop the step out of CUDA graphs: the longest that does not.

        A longer one may still be better where steps are long; a trial may tell.
        """
        return max(k for k in self._settings.lengths if k == 0 or self._has_graph(batch_size, k))

    def _in_force(self, key: CellKey, batch_size: int) -> int:
        chosen = self._chosen(key)
        return self._static[batch_size] if chosen is None else chosen

    def _trial_goes_on(self, cell: _Cell, now: float) -> bool:
        trial = cell.trial
        if trial is None:
            return False
        if not trial.complete and trial.steps < 2 * TRIAL_STEPS * TRIAL_PATIENCE:
            trial.its_turn = not trial.its_turn
            self.version += 1
            return True
        ratio = trial.ratio if trial.complete else None
        cell.tried[trial.length] = now
        if ratio is not None:
            cell.relative[trial.length] = ratio * cell.relative.setdefault(trial.reference, 1.0)
        self._charge(trial, ratio)
        cell.trial = None
        return False

    def _charge(self, trial: _Trial, ratio: float | None) -> None:
        """Take from the credit what the trial has lost."""
        acceptance = self._counted.acceptance
        loss = GUESSED_LOSS
        if ratio is not None and acceptance is not None:
            loss = _loss(acceptance, ratio, trial.length, trial.reference)
        steps = len(trial.seconds)
        self._credit -= (steps if trial.complete else max(steps, TRIAL_STEPS)) * loss

    def _choose(self, key: CellKey, cell: _Cell, batch_size: int, now: float) -> None:
        current = self._in_force(key, batch_size)
        acceptance = self._counted.acceptance
        if acceptance is None:
            cell.reason, cell.gain = Reason.LEARNING, None
            # Without drafts nothing is ever learned of them.
            if current == 0 and self._credit > 0.0:
                self._try(cell, self._settings.lengths[1], current)
            return
        if len(self._times.peek(key).get(current, ())) < TRIAL_STEPS:
            if cell.choice is None:
                inherited = self._chosen(key) is not None
                cell.reason = Reason.NEIGHBOUR if inherited else Reason.LEARNING
            cell.gain = None
            return
        if current not in cell.relative:
            # What was compared with another length says nothing of this one.
            cell.relative, cell.tried = {current: 1.0}, {}
        goodput = {k: acceptance.expected_tokens(k) / t for k, t in cell.relative.items()}
        allowed = [k for k in goodput if k in self._settings.lengths or k == current]
        best = max(allowed, key=lambda k: (goodput[k], -k))
        if goodput[best] < goodput[current] * (1.0 + self._settings.min_gain):
            best = current
        cell.reason = Reason.KEPT if best == current else Reason.FASTER
        cell.choice = best
        static = goodput.get(self._static[batch_size])
        cell.gain = None if static is None else goodput[best] / static
        self._maybe_try(key, cell, acceptance, goodput[best], now)

    def _maybe_try(
        self, key: CellKey, cell: _Cell, acceptance: Acceptance, best: float, now: float
    ) -> None:
        """Begin the trial that promises most, if any does and the credit covers its loss."""
        assert cell.choice is not None, "only a settled cell tries others"
        measured = cell.relative

        def is_fresh(length: int) -> bool:
            return length in cell.tried and now - cell.tried[length] < STALE_SECONDS

        shortest = self._settings.lengths[1]
        if cell.choice == 0 and not is_fresh(shortest) and self._credit > 0.0:
            # Without drafts a better acceptance would never be noticed.
            self._try(cell, shortest, cell.choice)
            return
        self._learn_draft_seconds(key)
        tokens = {k: acceptance.expected_tokens(k) for k in self._settings.lengths}
        promising: list[tuple[float, int, int]] = []
        for length in self._settings.lengths:
            if length == cell.choice or is_fresh(length):
                continue
            if length in measured and tokens[length] / measured[length] < WORTH_A_LOOK * best:
                continue
            seconds = self._least_seconds(length, measured)
            if seconds and tokens[length] / seconds < best * (1.0 + self._settings.min_gain):
                continue
            modelled = self._modelled(key, length, cell.choice, measured[cell.choice])
            if modelled is None:
                modelled = _on_the_line(measured, length)
            modelled = self._host_bound(key, length, cell.choice, measured[cell.choice], modelled)
            promise = best if modelled is None else tokens[length] / modelled
            if promise < PLAUSIBLE * best:
                continue
            slower = None if modelled is None else modelled / measured[cell.choice]
            if self._affords(acceptance, slower, length, cell.choice):
                promising.append((promise, -abs(length - cell.choice), length))
        if promising:
            self._try(cell, max(promising)[2], cell.choice)

    def _affords(
        self, acceptance: Acceptance, slower: float | None, length: int, choice: int
    ) -> bool:
        """Whether the credit covers a trial whose steps take ``slower`` times as long."""
        loss = GUESSED_LOSS if slower is None else _loss(acceptance, slower, length, choice)
        # A gain is looked for even where the credit is used up: the length in force may be bad.
        return loss == 0.0 or self._credit >= TRIAL_STEPS * loss

    def _least_seconds(self, length: int, measured: dict[int, float]) -> float | None:
        """What a step of this length takes at least; None: nothing shorter was measured.

        More drafts never make a step faster. A length that would not win even at this time need
        not be tried, whatever a model says.
        """
        return max((t for other, t in measured.items() if other <= length), default=None)

    def _modelled(self, key: CellKey, length: int, reference: int, seconds: float) -> float | None:
        """Time of a step with ``length`` drafts, from one with ``reference`` and the curve."""
        one, other = self._ratio(key, reference + 1), self._ratio(key, length + 1)
        if one is None or other is None:
            return None
        each = self._draft_seconds_near(key[0])
        return max(seconds * other / one + (length - reference) * each, 0.1 * seconds)

    def _host_bound(
        self, key: CellKey, length: int, reference: int, seconds: float, modelled: float | None
    ) -> float | None:
        """No less than the host takes for a step without a CUDA graph, where that is known."""
        known = self._times.peek(key).get(reference)
        if self._has_graph(key[0], length) or not self._without_graph or not known:
            return modelled
        host = statistics.median(self._without_graph) / known.median * seconds
        return host if modelled is None else max(modelled, host)

    def _ratio(self, key: CellKey, positions: int) -> float | None:
        """t(N) / t(1) at the cell, read off the straight line between measured points.

        Good enough to tell what to try; only real steps decide. None where no curve is near.
        """
        usable = [curve for curve in self._curves if curve.largest >= positions]
        if not usable:
            return None
        contexts = {curve.context for curve in usable}
        context = min(contexts, key=lambda c: distance((1, c), (1, key[1])))
        at_context = sorted(
            (curve for curve in usable if curve.context == context), key=lambda c: c.batch_size
        )
        sizes = [curve.batch_size for curve in at_context]
        nearest = min(max(key[0], sizes[0]), sizes[-1])
        if distance((nearest, 1), (key[0], 1)) > CURVE_OCTAVES:
            return None
        ratios = [curve.ratio_between(positions) for curve in at_context]
        return interpolated(sizes, ratios, key[0])

    def _learn_draft_seconds(self, key: CellKey) -> None:
        """What steps of different lengths took beyond what the curve says of verification."""
        measured = {length: median for length, _, median in self.times(key)}
        found = draft_token_seconds(measured, lambda positions: self._ratio(key, positions))
        if found is not None:
            self.draft_seconds[key[0]] = found

    def _draft_seconds_near(self, batch_size: int) -> float:
        if not self.draft_seconds:
            return 0.0
        nearest = min(self.draft_seconds, key=lambda b: distance((b, 1), (batch_size, 1)))
        return self.draft_seconds[nearest]

    def _try(self, cell: _Cell, length: int, reference: int) -> None:
        acceptance = self._counted.acceptance
        tokens = math.inf  # as long as acceptance is not known, nothing is hopeless
        if acceptance is not None:
            tokens = acceptance.expected_tokens(length) / acceptance.expected_tokens(reference)
        cell.trial = _Trial(length, reference, tokens)
        cell.reason = Reason.TRIAL


def draft_token_seconds(
    seconds: Mapping[int, float], ratio: Callable[[int], float | None]
) -> float | None:
    """Time of one more drafted token beside its verification; None where nothing tells it.

    K drafts take t(K) = v r(K + 1) + K d, with v a step without drafts, r the probe's curve and d
    what is looked for: two lengths tell both. Pairs whose verification grows nearly as fast as the
    number of drafts are left out, since there d is a small difference of large numbers. So is
    K = 0, at which an EAGLE or draft model runs all the same.

    Args:
        seconds: of a step, by draft length.
        ratio: t(N) / t(1) of verification by the number N of positions; None: not known.
    """
    found = []
    for short, long in itertools.pairwise(sorted(length for length in seconds if length > 0)):
        one, other = ratio(short + 1), ratio(long + 1)
        if one is None or other is None:
            continue
        grows = other / one
        drafts = long - short * grows
        if drafts >= TELLING * (long - short):
            found.append((seconds[long] - seconds[short] * grows) / drafts)
    return max(0.0, statistics.median(found)) if found else None


def _ranges(largest: int) -> list[tuple[int, int, int]]:
    """(cell, first, last) of the batch sizes from 1 to ``largest``, cell by cell."""
    ranges = []
    first = 1
    while first <= largest:
        cell = batch_cell(first)
        ranges.append((cell, first, min(cell, largest)))
        first = cell + 1
    return ranges


def _on_the_line(measured: dict[int, float], length: int) -> float | None:
    """Time of a length from the two nearest measured ones; None with fewer, or below 0."""
    nearest = sorted(measured, key=lambda other: (abs(other - length), other))[:2]
    if len(nearest) < 2:
        return None
    one, other = nearest
    slope = (measured[other] - measured[one]) / (other - one)
    seconds = measured[one] + slope * (length - one)
    return seconds if seconds > 0.0 else None


def _loss(acceptance: Acceptance, slower: float, length: int, choice: int) -> float:
    """What a step of a trial loses, in steps of the choice: its time less that of its tokens."""
    tokens = acceptance.expected_tokens(length) / acceptance.expected_tokens(choice)
    return max(0.0, slower - tokens)
