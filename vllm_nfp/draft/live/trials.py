"""Begins and ends trials, and books what they cost."""

from __future__ import annotations

import math
from collections import deque

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.live.cells import Cell
from vllm_nfp.draft.live.credit import FIRST_CREDIT, Credit
from vllm_nfp.draft.live.decision import Reason
from vllm_nfp.draft.live.knowledge import Knowledge
from vllm_nfp.draft.live.steps import CellKey
from vllm_nfp.draft.live.trial import CLEAR_STEPS, Basis, Trial, TrialResult

GUESSED_LOSS = 1.0
"""Loss of a trial step, in steps, where no curve gives it."""
BLIND_AT_MOST = 4.0
"""Longest time in seconds until drafts are tried again where there are none."""
MOST_RESULTS = 256


class Trials:
    """The trials of all cells.

    Args:
        known: what steps have shown.
        credit: what trials may lose.
    """

    def __init__(self, known: Knowledge, credit: Credit) -> None:
        self._known = known
        self._credit = credit
        self.results: deque[TrialResult] = deque(maxlen=MOST_RESULTS)
        """Of the last trials."""

    def begin(
        self,
        key: CellKey,
        cell: Cell,
        length: int,
        reference: int,
        forecast: float | None = None,
        basis: Basis = Basis.FAR,
    ) -> None:
        """Try a length in turns with the one in force.

        Args:
            forecast: its time over the reference's; None: not known.
        """
        acceptance = self._known.acceptance
        tokens = math.nan  # as long as acceptance is not known, nothing is clear
        if acceptance is not None:
            tokens = _worth(acceptance, length, reference)
        loss = expected_loss(acceptance, cell, length, reference, forecast)
        before = self._known.last_seconds(key, reference, CLEAR_STEPS)
        cell.trial = Trial(length, reference, tokens, forecast, basis, before, loss)
        cell.reason = Reason.TRIAL
        self._credit.begin(cell.trial)

    def next_turn(self, key: CellKey, cell: Cell, now: float) -> bool:
        """Change turns; false if there is no trial, or it has ended here with its result kept."""
        trial = cell.trial
        if trial is None:
            return False
        complete = trial.complete
        if not complete and trial.patient and trial.ran * self._lost(trial) < FIRST_CREDIT:
            trial.its_turn = not trial.its_turn
            return True
        ratio = trial.ratio if complete else None
        self.results.append(trial.result(key, ratio))
        self.end(cell)
        if trial.reference not in cell.relative:
            # Nothing was known of it, or only in the unit of another length.
            cell.begin_anew(trial.reference)
        cell.tried[trial.length] = now
        if ratio is not None:
            cell.relative[trial.length] = ratio * cell.relative[trial.reference]
        if trial.length > trial.reference:
            cell.hopeful = self._known.counted.is_better_beyond(trial.reference, trial.length)
            cell.blind_seconds = min(BLIND_AT_MOST, 2.0 * cell.blind_seconds)
        return False

    def end(self, cell: Cell) -> None:
        """End the trial of a cell, if there is one, and settle what it has lost."""
        if cell.trial is not None:
            self._credit.settle(cell.trial, self._lost(cell.trial))
            cell.trial = None

    def _lost(self, trial: Trial) -> float:
        """What each step of a trial has lost so far, in steps of the reference."""
        ratio, acceptance = trial.hint, self._known.acceptance
        if ratio is None:
            return trial.loss
        if acceptance is not None:
            return _loss(acceptance, ratio, trial.length, trial.reference)
        # More drafts never make fewer tokens.
        return max(0.0, ratio - 1.0) if trial.length > trial.reference else trial.loss


def expected_loss(
    acceptance: Acceptance | None, cell: Cell, length: int, reference: int, slower: float | None
) -> float:
    """What a step of a trial is expected to lose, in steps of the reference.

    Args:
        slower: its time over the reference's, as forecast; None: as measured here, if it was.
    """
    if slower is None and length in cell.relative and reference in cell.relative:
        slower = cell.relative[length] / cell.relative[reference]
    if slower is None or acceptance is None:
        return GUESSED_LOSS
    return _loss(acceptance, slower, length, reference)


def _loss(acceptance: Acceptance, slower: float, length: int, choice: int) -> float:
    """What a step loses, in steps of the choice: its time less the time its tokens are worth."""
    return max(0.0, slower - _worth(acceptance, length, choice))


def _worth(acceptance: Acceptance, length: int, reference: int) -> float:
    """Tokens of a step of a length over those of another: how much longer it may take."""
    return acceptance.expected_tokens(length) / acceptance.expected_tokens(reference)
