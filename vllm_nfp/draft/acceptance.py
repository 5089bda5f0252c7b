"""How often drafted tokens are accepted: constant, by position, or as a server has counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_nfp.draft.length import expected_tokens

MOST_POSITIONS = 512
BISECTIONS = 40
"""Halvings after which a share is exact to a float's digits that matter."""


class AcceptanceError(ValueError):
    """Acceptance that is impossible; the message names the value and what is allowed."""


class NoAcceptanceError(AcceptanceError):
    """Nobody has given or counted an acceptance."""


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
    drafts: float | None = field(default=None, compare=False)
    """Drafts that a server has counted this on; None: it was given, not counted."""

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
        """The same with the last value reused for later tokens: the only rule of extension."""
        if self.beyond is not None or not self.per_position:
            return self
        return Acceptance(self.per_position, self.per_position[-1], self.drafts)

    def expected_tokens(self, draft_length: int) -> float:
        """E(K) = 1 + sum over j up to K of a_1 ... a_j: a sequence's tokens per step.

        Raises:
            ValueError: for a draft length below 0 or beyond what is known.
        """
        if draft_length < 0 or (self.longest is not None and draft_length > self.longest):
            raise ValueError(f"acceptance of {draft_length} drafted tokens is not known")
        chances = self._reached(draft_length)
        tokens = 1.0 + math.fsum(chances)
        later = draft_length - len(chances)
        if not later or self.beyond is None:
            return tokens
        reached = chances[-1] if chances else 1.0
        return tokens + reached * (expected_tokens(later, self.beyond) - 1.0)

    def relative_error(self, draft_length: int, other: int = 0) -> float:
        """Standard error of log E(K) - log E(other) from counting drafts; 0 if none were counted.

        Both lengths are seen in the same drafts: what a draft gets accepted of its first ``other``
        tokens is part of what it gets of its first K. Positions that were not counted add nothing.
        """
        if not self.drafts:
            return 0.0
        first, second = self._counted_until(other), self._counted_until(draft_length)
        variance = (
            _moment(second, second) / self.expected_tokens(draft_length) ** 2
            + _moment(first, first) / self.expected_tokens(other) ** 2
            - 2.0
            * _moment(first, second)
            / (self.expected_tokens(draft_length) * self.expected_tokens(other))
        )
        return math.sqrt(max(0.0, variance) / self.drafts)

    def _reached(self, draft_length: int) -> tuple[float, ...]:
        """a_1 ... a_i of the listed positions up to a draft length."""
        listed = self.per_position[:draft_length]
        return tuple(itertools.accumulate(listed, lambda all_before, a: all_before * a))

    def _counted_until(self, draft_length: int) -> tuple[float, ...]:
        """The same kept off 0 and 1 by one draft each, so that few drafts are not certain."""
        drafts = self.drafts or 0.0
        return tuple((p * drafts + 1.0) / (drafts + 2.0) for p in self._reached(draft_length))


def _moment(first: Sequence[float], second: Sequence[float]) -> float:
    """Covariance of the tokens that a draft gets accepted of two of its beginnings.

    Args:
        first: probability that the i-th token is accepted, for the shorter beginning.
        second: the same for the longer one.
    """
    rows = (i * p + math.fsum(second[i:]) for i, p in enumerate(first, 1))
    return math.fsum(rows) - math.fsum(first) * math.fsum(second)


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


def from_counters(
    drafts: float, accepted_per_position: Sequence[float], drafted: float | None = None
) -> Acceptance:
    """From vLLM's counters of drafts and of accepted tokens by position in the draft.

    Acceptance is of tokens that were drafted, as vLLM counts it: accepted over drafted. vLLM does
    not export how many drafts had an i-th token, see :func:`_drafted_per_position`.

    Args:
        drafted: tokens of all drafts; None: every draft was of full length.

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
    known = _drafted_per_position(drafts, accepted_per_position, drafted)
    rates = itertools.accumulate(
        (a / d if d else 0.0 for a, d in zip(accepted_per_position, known, strict=True)), min
    )
    return Acceptance(from_rates(tuple(rates)).per_position, drafts=drafts)


def _drafted_per_position(
    drafts: float, accepted: Sequence[float], drafted: float | None
) -> tuple[float, ...]:
    """Drafts that had a first, second, ... token, as far as the totals show it.

    Every draft has a first token, and an i-th at least where it was accepted. What remains of the
    total is spread as if each further token were missing equally often.
    """
    places = range(len(accepted))
    if drafted is None or drafted >= drafts * len(accepted):
        return tuple(drafts for _ in places)

    def spread(keeps: float) -> tuple[float, ...]:
        return tuple(max(accepted[i], drafts * keeps**i) for i in places)

    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if math.fsum(spread(middle)) < drafted else (low, middle)
    return spread(low)
