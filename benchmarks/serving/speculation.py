"""vLLM's ``speculative_config`` of servers and engines whose models have dummy weights."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def speculative_config(
    method: str,
    longest: int,
    head: Path | None,
    acceptance: Sequence[float] | None,
    lookup: int = 2,
) -> dict[str, Any]:
    """Without a table of draft lengths.

    Args:
        longest: drafts of a step, at most.
        head: of a method that drafts with one; None: n-grams.
        acceptance: of each draft, given that those before it were accepted, for so many drafts or
            more; None: as the model has it.
        lookup: tokens of an n-gram, at most.
    """
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": longest}
    if head is None:
        config |= {"prompt_lookup_min": 1, "prompt_lookup_max": lookup}
    else:
        config["model"] = str(head)
    if acceptance is not None:
        reached = itertools.accumulate(acceptance[:longest], operator.mul)
        config |= {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": list(reached),
        }
    return config
