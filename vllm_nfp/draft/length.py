"""Tokens of a step with drafts (docs/theory.md, "Draft length").

If a drafted token is accepted with probability a given those before it, a step of K drafts makes
E(K) = 1 + a + ... + a^K tokens. Which K is best is chosen in :mod:`vllm_nfp.draft.schedule` alone.
"""

from __future__ import annotations

import math


def expected_tokens(draft_length: int, acceptance: float) -> float:
    """E(K): expected tokens per sequence and step, at constant acceptance.

    Args:
        draft_length: K, 0 or more.
        acceptance: probability that a drafted token is accepted given those before it, 0 to 1.

    Raises:
        ValueError: for an argument out of range.
    """
    if draft_length < 0:
        raise ValueError(f"draft_length must be 0 or more, not {draft_length}")
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"acceptance must be between 0 and 1, not {acceptance!r}")
    if acceptance in (0.0, 1.0):
        return 1.0 + draft_length * acceptance
    # (1 - a^(K+1)) / (1 - a), without loss of digits where a is close to 1.
    return -math.expm1((draft_length + 1) * math.log(acceptance)) / (1.0 - acceptance)
