"""The draft length that gives the most tokens per second (docs/theory.md, "Draft length").

Verification of K drafts runs N = K + 1 positions. With a chance a that a draft is accepted after
the ones before it, a step gives E(K) = 1 + a + ... + a^K tokens, and B sequences give
B E(K) / (t(K+1; B, L) + t_draft(K; B)) tokens per second. Here the drafts are free, t_draft = 0,
as with n-gram lookup; a draft model's cost makes the best K smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """The best draft length of one cell at one acceptance."""

    batch_size: int
    context: int
    acceptance: float
    draft_length: int
    """K; 0: drafts do not pay."""
    expected_tokens: float
    """E(K), a sequence's tokens per step."""
    step_ratio: float
    """t(K + 1) / t(1)."""
    speedup: float
    """Tokens per second over those without drafts: E(K) / step_ratio."""
    at_limit: bool
    """K + 1 is the largest count that was measured: more drafts may be better still."""


def expected_tokens(draft_length: int, acceptance: float) -> float:
    """E(K): tokens that a step gives a sequence, its drafts' acceptance being constant.

    Args:
        draft_length: K, 0 or more.
        acceptance: chance that a draft is accepted after the ones before it, 0 to 1.

    Raises:
        ValueError: for an argument out of range.
    """
    if draft_length < 0:
        raise ValueError(f"draft_length must be 0 or more, not {draft_length}")
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"acceptance must be a share from 0 to 1, not {acceptance!r}")
    if acceptance in (0.0, 1.0):
        return 1.0 + draft_length * acceptance
    # (1 - a^(K+1)) / (1 - a), without loss of digits where a is close to 1.
    return -math.expm1((draft_length + 1) * math.log(acceptance)) / (1.0 - acceptance)


def best_draft_length(
    ratios: Mapping[int, float], batch_size: int, context: int, acceptance: float
) -> DraftChoice:
    """The best K among those whose step time is known; the smaller of two that are equal.

    Between measured counts the time is a staircase of unknown steps, so nothing is interpolated.

    Args:
        ratios: t(N) / t(1) by the number N of positions; holds N = 1.

    Raises:
        ValueError: if N = 1 is missing, or acceptance is no share.
    """
    if 1 not in ratios:
        raise ValueError("the times lack N = 1, the step without drafts")
    choices = [
        _choice(ratios, batch_size, context, acceptance, positions) for positions in sorted(ratios)
    ]
    return max(choices, key=lambda choice: (choice.speedup, -choice.draft_length))


def _choice(
    ratios: Mapping[int, float], batch_size: int, context: int, acceptance: float, positions: int
) -> DraftChoice:
    tokens = expected_tokens(positions - 1, acceptance)
    return DraftChoice(
        batch_size=batch_size,
        context=context,
        acceptance=acceptance,
        draft_length=positions - 1,
        expected_tokens=tokens,
        step_ratio=ratios[positions],
        speedup=tokens / ratios[positions],
        at_limit=positions == max(ratios),
    )
