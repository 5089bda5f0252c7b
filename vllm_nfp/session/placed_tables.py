"""vLLM's own cost tables, and measured ones in their place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vllm_nfp.adapter.verification import AdaptiveVerification, Tables
from vllm_nfp.draft.cost_tables import PricedCosts

OTHER_BATCH = "no measured costs are near the number of requests that run"
NOT_DRAFTS_ALONE = "all steps read prompts as well, or have more tokens than were measured"


class PlacedTables:
    """Puts tables into vLLM's manager. The serving thread alone does; any thread may read `own`.

    Args:
        verification: vLLM's.
    """

    __slots__ = ("_placed", "_scratch", "_verification", "own")

    def __init__(self, verification: AdaptiveVerification) -> None:
        self._verification = verification
        self.own = verification.tables
        """vLLM's own, the latest that was seen; None before it has made them."""
        self._placed: Tables | None = None
        """In the place of vLLM's own; None while these are in force."""
        self._scratch: Tables | None = None
        """A copy of vLLM's own, of which each step overwrites the part that it asks for."""

    def look_for_new_own(self) -> None:
        """vLLM makes its tables anew when it captures its graphs again; to be called first."""
        now = self._verification.tables
        if now is not self._placed and now is not self.own:
            self.own, self._placed, self._scratch = now, None, None

    def put(self, costs: PricedCosts, num_tokens: Mapping[str, int]) -> str:
        """Put measured costs in force for a step that verifies drafts alone.

        Args:
            num_tokens: tokens that the scheduler has planned, by request.

        Returns:
            str: why vLLM's own are to be in force instead; empty if measured ones are.
        """
        requests = len(num_tokens)
        measured, own = costs.by_requests.get(requests), self.own
        if measured is None or own is None:
            return OTHER_BATCH
        end = requests + len(measured)
        if sum(num_tokens.values()) >= end or end > len(own[1]):
            return NOT_DRAFTS_ALONE
        scratch = self._scratch
        if scratch is None:
            scratch = self._scratch = own[0], np.array(own[1])
        scratch[1][requests:end] = measured
        if self._placed is not scratch:
            self._verification.tables = self._placed = scratch
        return ""

    def put_own(self) -> None:
        """Put vLLM's own in force."""
        if self._placed is not None:
            self._verification.tables, self._placed = self.own, None
