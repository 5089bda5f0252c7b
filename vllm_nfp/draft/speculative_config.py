"""A schedule as the JSON that vLLM's ``--speculative-config`` takes.

The table of draft lengths, ``num_speculative_tokens_per_batch_size``, is a list of
``[first, last, K]`` with inclusive ranges of batch sizes that begin with 1; vLLM carries the last
K on to every larger batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from vllm_nfp.draft.schedule import Schedule
from vllm_nfp.text import hint, same_name

DraftMethod = Literal["ngram", "ngram_gpu", "eagle", "eagle3", "mtp", "draft_model"]
DRAFT_METHODS: tuple[str, ...] = get_args(DraftMethod)
LOOK_UPS = frozenset({"ngram", "ngram_gpu"})
"""Methods that look drafts up in the text so far, once a step, without weights."""
NEEDS_MODEL = frozenset({"eagle", "eagle3", "draft_model"})
"""Methods whose drafts come from weights of their own."""


def speculative_config(
    schedule: Schedule, method: str, draft_model: str | None = None
) -> dict[str, Any]:
    """The settings; K = 0 beyond the last batch size that the schedule holds.

    Raises:
        ValueError: if drafts pay nowhere, the method is unknown, or its model is missing or one too
            many.
    """
    known = same_name(method, DRAFT_METHODS)
    if known is None:
        raise ValueError(
            f"draft method {method!r:.80} is none of {', '.join(DRAFT_METHODS)}"
            f"{hint(method, DRAFT_METHODS)}"
        )
    method = known
    if method in NEEDS_MODEL and not draft_model:
        raise ValueError(f"draft method {method} needs the folder or name of its draft model")
    if method in LOOK_UPS and draft_model:
        raise ValueError(
            f"draft method {method} has no draft model, yet {draft_model!r:.80} is given: leave "
            f"it out, or name the method that it is for"
        )
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
