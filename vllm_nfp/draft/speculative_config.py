"""A schedule as the JSON that vLLM's ``--speculative-config`` takes.

The table of draft lengths, ``num_speculative_tokens_per_batch_size``, is a list of
``[first, last, K]`` with inclusive ranges of batch sizes that begin with 1; vLLM carries the last
K on to every larger batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from vllm_nfp.draft.schedule import Schedule

DraftMethod = Literal["ngram", "eagle", "eagle3", "mtp", "draft_model"]
DRAFT_METHODS: tuple[str, ...] = get_args(DraftMethod)
NEEDS_MODEL = frozenset({"eagle", "eagle3", "draft_model"})
"""Methods whose drafts come from weights of their own."""


def speculative_config(
    schedule: Schedule, method: str, draft_model: str | None = None
) -> dict[str, Any]:
    """The settings; K = 0 beyond the last batch size that the schedule holds.

    Raises:
        ValueError: if drafts pay nowhere, the method is unknown, or its model is missing.
    """
    if method not in DRAFT_METHODS:
        raise ValueError(f"draft method {method!r} is none of {', '.join(DRAFT_METHODS)}")
    if method in NEEDS_MODEL and not draft_model:
        raise ValueError(f"draft method {method} needs the folder or name of its draft model")
    if not schedule.pays:
        raise ValueError(
            "drafts pay at no batch size: serve without --speculative-config, or find drafts "
            "that are accepted more often or cost less"
        )
    model: Mapping[str, str] = {"model": draft_model} if draft_model else {}
    return {
        "method": method,
        **model,
        "num_speculative_tokens": schedule.longest,
        "num_speculative_tokens_per_batch_size": table(schedule),
    }


def table(schedule: Schedule) -> list[list[int]]:
    """[first, last, K] for each range, closed by K = 0, lest vLLM carry the last K on."""
    rows = [[r.batch_size_first, r.batch_size_last, r.draft_length] for r in schedule.ranges]
    last = rows[-1]
    if last[2] != 0:
        rows.append([last[1] + 1, last[1] + 1, 0])
    return rows
