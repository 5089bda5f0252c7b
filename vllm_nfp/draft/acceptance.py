"""How often drafts are accepted: constant, by place in the draft, or as a server has counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.draft.length import expected_tokens

MOST_POSITIONS = 512


class AcceptanceError(ValueError):
    """Acceptance that cannot be; the message names the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Chance of the i-th draft to be accepted, given that those before it were.

    Raises:
        AcceptanceError: for a chance outside 0 to 1, or neither a list nor what lies beyond it.
    """

    per_position: tuple[float, ...] = ()
    """a_1, a_2, ...: of the first drafts, one by one."""
    beyond: float | None = None
    """Of every later draft; None: nothing is known of them, so that none is drafted."""

    def __post_init__(self) -> None:
        for chance in (*self.per_position, *(() if self.beyond is None else (self.beyond,))):
            if not (math.isfinite(chance) and 0.0 <= chance <= 1.0):
                raise AcceptanceError(
                    f"acceptance {chance:g} is no share: give numbers from 0 to 1, as in 0.8"
                )
        if not self.per_position and self.beyond is None:
            raise AcceptanceError("no acceptance is given: give one number or one for each draft")
        if len(self.per_position) > MOST_POSITIONS:
            raise AcceptanceError(
                f"acceptance is given for {len(self.per_position)} drafts: "
                f"at most {MOST_POSITIONS} are taken"
            )

    @property
    def longest(self) -> int | None:
        """Largest draft length that is known; None: any."""
        return len(self.per_position) if self.beyond is None else None

    def extended(self) -> Acceptance:
        """The same with later drafts accepted like the last known one."""
        if self.beyond is not None or not self.per_position:
            return self
        return Acceptance(self.per_position, self.per_position[-1])

    def expected_tokens(self, draft_length: int) -> float:
        """E(K) = 1 + sum over j up to K of a_1 ... a_j: a sequence's tokens per step.

        Raises:
            ValueError: for a draft length below 0 or beyond what is known.
        """
        if draft_length < 0 or (self.longest is not None and draft_length > self.longest):
            raise ValueError(f"acceptance of {draft_length} drafts is not known")
        listed = self.per_position[:draft_length]
        chances = tuple(itertools.accumulate(listed, lambda all_before, a: all_before * a))
        tokens = 1.0 + math.fsum(chances)
        later = draft_length - len(listed)
        if not later or self.beyond is None:
            return tokens
        reached = chances[-1] if chances else 1.0
        return tokens + reached * (expected_tokens(later, self.beyond) - 1.0)


def constant(acceptance: float) -> Acceptance:
    """Every draft with the same chance.

    Raises:
        AcceptanceError: for a chance outside 0 to 1.
    """
    return Acceptance(beyond=acceptance)


def from_rates(rates: Sequence[float]) -> Acceptance:
    """From the share of all drafts whose i-th token was accepted, as vLLM counts and logs it.

    A token is accepted only after all before it were, so that the share is a_1 ... a_i.

    Raises:
        AcceptanceError: for a share outside 0 to 1, or one above the share before it.
    """
    for rate in rates:
        if not (math.isfinite(rate) and 0.0 <= rate <= 1.0):
            raise AcceptanceError(
                f"the acceptance rate {rate:g} is no share of drafts: give numbers from 0 to 1"
            )
    for before, rate in itertools.pairwise(rates):
        if rate > before:
            raise AcceptanceError(
                f"acceptance rates rise from {before:g} to {rate:g}, yet a draft's token is "
                f"accepted only after those before it: give rates that do not rise, or chances "
                f"given the drafts before as --acceptance-per-position"
            )
    known = (1.0, *rates)
    # Once no draft got that far, nothing is known of later chances: 0 changes no sum.
    chances = (after / before if before else 0.0 for before, after in itertools.pairwise(known))
    return Acceptance(per_position=tuple(min(1.0, chance) for chance in chances))


def from_counters(drafts: float, accepted_per_position: Sequence[float]) -> Acceptance:
    """From vLLM's counters of drafts and of accepted tokens by place in the draft.

    Raises:
        AcceptanceError: if no draft was counted, or the counters contradict each other.
    """
    if not accepted_per_position or not drafts > 0:
        raise AcceptanceError(
            "the server has counted no drafts yet: send it traffic, or give --acceptance"
        )
    for before, accepted in itertools.pairwise((drafts, *accepted_per_position)):
        if not 0.0 <= accepted <= before:
            raise AcceptanceError(
                f"the server's counters contradict each other ({accepted:.0f} tokens accepted "
                f"after {before:.0f}): give --acceptance"
            )
    return from_rates([accepted / drafts for accepted in accepted_per_position])
