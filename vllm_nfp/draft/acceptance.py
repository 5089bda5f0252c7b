"""How often drafted tokens are accepted: constant, by position, or as a server has counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.draft.length import expected_tokens

MOST_POSITIONS = 512


class AcceptanceError(ValueError):
    """Acceptance that is impossible; the message names the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Probability that the i-th drafted token is accepted, given that those before it were.

    Raises:
        AcceptanceError: for a probability outside 0 to 1, or without any.
    """

    per_position: tuple[float, ...] = ()
    """a_1, a_2, ...: of the first drafted tokens, one by one."""
    beyond: float | None = None
    """Of every later token; None: not known, so no later token is drafted."""

    def __post_init__(self) -> None:
        for chance in (*self.per_position, *(() if self.beyond is None else (self.beyond,))):
            if not (math.isfinite(chance) and 0.0 <= chance <= 1.0):
                meant = f" (did you mean {chance / 100:g}?)" if 10.0 <= chance <= 100.0 else ""
                raise AcceptanceError(f"acceptance must be between 0 and 1, got {chance:g}{meant}")
        if not self.per_position and self.beyond is None:
            raise AcceptanceError(
                "acceptance is empty: give one number, or one for each drafted token"
            )
        if len(self.per_position) > MOST_POSITIONS:
            raise AcceptanceError(
                f"acceptance has {len(self.per_position)} values: give at most {MOST_POSITIONS}"
            )

    @property
    def longest(self) -> int | None:
        """Largest draft length that is known; None: any."""
        return len(self.per_position) if self.beyond is None else None

    def extended(self) -> Acceptance:
        """The same with the last value reused for later tokens."""
        if self.beyond is not None or not self.per_position:
            return self
        return Acceptance(self.per_position, self.per_position[-1])

    def expected_tokens(self, draft_length: int) -> float:
        """E(K) = 1 + sum over j up to K of a_1 ... a_j: a sequence's tokens per step.

        Raises:
            ValueError: for a draft length below 0 or beyond what is known.
        """
        if draft_length < 0 or (self.longest is not None and draft_length > self.longest):
            raise ValueError(f"acceptance of {draft_length} drafted tokens is not known")
        listed = self.per_position[:draft_length]
        chances = tuple(itertools.accumulate(listed, lambda all_before, a: all_before * a))
        tokens = 1.0 + math.fsum(chances)
        later = draft_length - len(listed)
        if not later or self.beyond is None:
            return tokens
        reached = chances[-1] if chances else 1.0
        return tokens + reached * (expected_tokens(later, self.beyond) - 1.0)


def constant(acceptance: float) -> Acceptance:
    """Every drafted token with the same probability.

    Raises:
        AcceptanceError: for a probability outside 0 to 1.
    """
    return Acceptance(beyond=acceptance)


def from_rates(rates: Sequence[float]) -> Acceptance:
    """From the fraction of all drafts whose i-th token was accepted, as vLLM counts and logs it.

    A token is accepted only after all before it were, so the fraction is a_1 ... a_i.

    Raises:
        AcceptanceError: for a fraction outside 0 to 1, or one above the fraction before it.
    """
    for rate in rates:
        if not (math.isfinite(rate) and 0.0 <= rate <= 1.0):
            raise AcceptanceError(f"acceptance rates must be between 0 and 1, got {rate:g}")
    for before, rate in itertools.pairwise(rates):
        if rate > before:
            raise AcceptanceError(
                f"acceptance rates rise from {before:g} to {rate:g}, but a drafted token is "
                f"accepted only after those before it: give rates that do not rise, or "
                f"probabilities given the tokens before as --acceptance-per-position"
            )
    known = (1.0, *rates)
    # Where no draft got that far, later probabilities are unknown: 0 changes no sum.
    chances = (after / before if before else 0.0 for before, after in itertools.pairwise(known))
    return Acceptance(per_position=tuple(min(1.0, chance) for chance in chances))


def from_counters(drafts: float, accepted_per_position: Sequence[float]) -> Acceptance:
    """From vLLM's counters of drafts and of accepted tokens by position in the draft.

    Raises:
        AcceptanceError: if no draft was counted, or the counters contradict each other.
    """
    if not accepted_per_position or not drafts > 0:
        raise AcceptanceError(
            "the server has counted no drafts yet: send it requests, or give --acceptance"
        )
    for before, accepted in itertools.pairwise((drafts, *accepted_per_position)):
        if not 0.0 <= accepted <= before:
            raise AcceptanceError(
                f"the server's counters contradict each other ({accepted:.0f} tokens accepted "
                f"after {before:.0f}): give --acceptance"
            )
    return from_rates([accepted / drafts for accepted in accepted_per_position])
