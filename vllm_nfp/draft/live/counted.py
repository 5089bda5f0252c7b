"""Acceptance counted from steps, by position in the draft; old counts decay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_nfp.draft.acceptance import Acceptance

MEMORY_DRAFTS = 8192.0
"""Drafts after which a count weighs 1/e."""
RECENT_DRAFTS = 512.0
"""The same for the counts that show whether acceptance has changed."""
FEWEST_DRAFTS = 64.0
"""Drafts that must have reached a position before its acceptance counts."""
HINT_SIGMAS = 3.0
CHANGE_SIGMAS = 5.0
CHANGE_SHARE = 0.1
"""A change counts if it is this many standard errors, and this large a difference."""


class PlaceCounts:
    """Drafts that reached a position in the draft, and those that were accepted there.

    Args:
        places: the longest draft.
        memory_drafts: drafts after which a count weighs 1/e.
    """

    def __init__(self, places: int, memory_drafts: float) -> None:
        self._memory = memory_drafts
        self.reached = [0.0] * places
        self.accepted = [0.0] * places

    def add(self, batch_size: int, accepted: Sequence[int]) -> None:
        """Take in a step of ``batch_size`` drafts of ``len(accepted)`` tokens each."""
        if not accepted:
            return
        keep = math.exp(-batch_size / self._memory)
        before = batch_size
        for place, passed in enumerate(accepted):
            # Positions beyond this draft do not decay: nothing was measured there.
            self.reached[place] = self.reached[place] * keep + before
            self.accepted[place] = self.accepted[place] * keep + passed
            before = passed

    def forget(self, place: int) -> None:
        """Forget this position and all later ones."""
        for counts in (self.reached, self.accepted):
            counts[place:] = [0.0] * (len(counts) - place)

    def share(self, place: int) -> float:
        """Probability of acceptance at this position, given those before it."""
        return self.accepted[place] / self.reached[place]


class CountedAcceptance:
    """What is known of acceptance now.

    Args:
        places: the longest draft.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._long = PlaceCounts(self._places, MEMORY_DRAFTS)
        self._recent = PlaceCounts(self._places, RECENT_DRAFTS)

    def add(self, batch_size: int, accepted: Sequence[int]) -> None:
        """Take in a step."""
        self._long.add(batch_size, accepted)
        self._recent.add(batch_size, accepted)

    @property
    def known_places(self) -> int:
        """Positions, from the first on, that enough drafts have reached."""
        for place, reached in enumerate(self._long.reached):
            if reached < FEWEST_DRAFTS:
                return place
        return self._places

    @property
    def acceptance(self) -> Acceptance | None:
        """Probabilities by position, the last one for later ones; None: not known yet."""
        known = self.known_places
        if known == 0:
            return None
        shares = tuple(min(1.0, self._long.share(place)) for place in range(known))
        return Acceptance(shares).extended()

    def look_beyond(self, length: int) -> None:
        """Drafts longer than ``length`` are made again: forget the recent counts beyond it."""
        self._recent.forget(length)

    def is_better_beyond(self, length: int, tried: int) -> bool:
        """Whether acceptance beyond ``length``, up to ``tried``, has been better recently.

        A hint, on fewer drafts than :attr:`changed` requires. Positions beyond ``tried`` would not
        be measured by trying this length once more.
        """
        return any(
            self._recent.share(place) - self._long.share(place)
            > max(HINT_SIGMAS * self._error(place), CHANGE_SHARE)
            for place in range(length, min(tried, self.known_places))
            if self._recent.reached[place] > 0.0
        )

    @property
    def changed(self) -> bool:
        """Whether recent acceptance differs significantly from that before."""
        for place in range(self.known_places):
            if self._recent.reached[place] < FEWEST_DRAFTS:
                continue
            difference = abs(self._recent.share(place) - self._long.share(place))
            if difference > max(CHANGE_SIGMAS * self._error(place), CHANGE_SHARE):
                return True
        return False

    def _error(self, place: int) -> float:
        """Standard error of the recent acceptance at a position, from both counts together."""
        pooled = 0.5 * (self._long.share(place) + self._recent.share(place))
        return math.sqrt(max(pooled * (1.0 - pooled), 1e-3) / self._recent.reached[place])
