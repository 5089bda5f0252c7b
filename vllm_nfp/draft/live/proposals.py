"""Which length is worth a trial: from acceptance, forecasts and what trials may still lose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.live.cells import Cell
from vllm_nfp.draft.live.credit import Credit
from vllm_nfp.draft.live.knowledge import Knowledge
from vllm_nfp.draft.live.promise import least_promise
from vllm_nfp.draft.live.steps import CellKey
from vllm_nfp.draft.live.trial import Basis
from vllm_nfp.draft.live.trials import expected_loss

STALE_SECONDS = 60.0
"""Time until a length whose trial gave no result is tried again, and until drafts are tried again
where there are none and no credit is to spare."""
BLIND_BEYOND = 16.0
"""Seconds after which the next longer length is tried, with credit to spare: acceptance can only be
measured for tokens that were drafted."""
LOOK_EVERY = 32
"""Steps until lengths that were not worth a trial are considered again."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A length to try."""

    length: int
    slower: float | None = None
    """Its time over that of the length in force, as forecast; None: not known."""
    basis: Basis = Basis.FAR
    goodput: float = math.nan
    """As promised; NaN where only its acceptance is looked for."""


class Proposals:
    """Chooses the next trial of a settled cell.

    Args:
        lengths: draft lengths that may be chosen, ascending.
        min_gain: goodput over that of the length in force, as a fraction, that is worth a change.
        known: what steps have shown.
        credit: what trials may still lose.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        min_gain: float,
        known: Knowledge,
        credit: Credit,
    ) -> None:
        self._lengths = tuple(lengths)
        self._min_gain = min_gain
        self._known = known
        self._credit = credit

    def propose(
        self, key: CellKey, cell: Cell, acceptance: Acceptance, best: float, now: float, step: int
    ) -> Proposal | None:
        """The trial that promises most, if any does and the credit covers its loss.

        Args:
            best: goodput of the choice.
            now: seconds of the caller's clock.
            step: number of the step that was last seen.
        """
        assert cell.choice is not None, "only a settled cell tries others"
        longer = next((k for k in self._lengths if k > cell.choice), None)
        if longer is not None and self._may_look(key, cell, acceptance, longer, now):
            # Otherwise a better acceptance of longer drafts would never be noticed.
            if not cell.hopeful:
                self._known.counted.look_beyond(cell.choice)
            return Proposal(longer)
        if step < cell.next_look:
            return None
        worth = best * (1.0 + self._min_gain)
        lengths = [
            length
            for length in self._lengths
            if length not in cell.relative  # those that were compared are chosen from already
            and not _is_fresh(cell, length, now)
            and _most(length, acceptance, cell.relative) >= worth
        ]
        found = self._promising(key, cell, acceptance, best, lengths) if lengths else None
        if found is None:
            cell.next_look = step + LOOK_EVERY
        return found

    def _may_look(
        self, key: CellKey, cell: Cell, acceptance: Acceptance, longer: int, now: float
    ) -> bool:
        """Whether to measure the acceptance of drafts that are longer than those in force."""
        assert cell.choice is not None, "only a settled cell looks farther"
        last = cell.tried.get(longer, -math.inf)
        if cell.choice == 0:
            spare = self._credit.is_wide or cell.hopeful
            due = 0.0 if cell.hopeful else cell.blind_seconds if spare else STALE_SECONDS
            return self._credit.left > 0.0 and now - last >= due
        # The first positions are measured all the time, and show most changes.
        if not self._credit.is_wide or not self._known.model.has_graph(key[0], longer):
            return False
        if not self._credit.covers(expected_loss(acceptance, cell, longer, cell.choice, None)):
            return False
        return cell.hopeful or now - max(last, cell.settled_at) >= BLIND_BEYOND

    def _promising(
        self,
        key: CellKey,
        cell: Cell,
        acceptance: Acceptance,
        best: float,
        lengths: Iterable[int],
    ) -> Proposal | None:
        """The length that promises most; None if none is worth a trial."""
        model, choice = self._known.model, cell.choice
        here = self._known.compared(key, cell)
        assert here is not None and choice is not None, "it has timed steps and a choice"
        model.learn_draft_seconds(here)
        wide = self._credit.is_wide
        found = []
        for length in lengths:
            forecast = model.forecast(here, length)
            tokens = acceptance.expected_tokens(length)
            goodput, slower = best, None
            if forecast.relative is not None:
                goodput = tokens / forecast.relative
                slower = forecast.relative / cell.relative[choice]
            promises = goodput >= best * least_promise(forecast.basis, wide)
            if promises and self._credit.covers(
                expected_loss(acceptance, cell, length, choice, slower)
            ):
                found.append(Proposal(length, slower, forecast.basis, goodput))
        return max(found, key=lambda one: (one.goodput, -abs(one.length - choice)), default=None)


def _is_fresh(cell: Cell, length: int, now: float) -> bool:
    """Whether the length was tried lately."""
    return length in cell.tried and now - cell.tried[length] < STALE_SECONDS


def _most(length: int, acceptance: Acceptance, measured: Mapping[int, float]) -> float:
    """The goodput that a length cannot exceed.

    More drafts never make a step faster. A length that would not win even at the time of the
    shorter ones need not be tried, whatever a model says.
    """
    least = max((t for other, t in measured.items() if other <= length), default=0.0)
    return acceptance.expected_tokens(length) / least if least else math.inf
