"""A schedule as the JSON that vLLM's ``--speculative-config`` takes.

The table of draft lengths, ``num_speculative_tokens_per_batch_size``, is a list of
``[first, last, K]`` with inclusive ranges of batch sizes that begin with 1. vLLM uses the last K
for every larger batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_nfp.draft.methods import DRAFT_METHODS, LOOKUPS, NEEDS_MODEL, ONE_LENGTH, known_method
from vllm_nfp.draft.rows import Schedule
from vllm_nfp.text import hint


def speculative_config(
    schedule: Schedule,
    method: str,
    draft_model: str | None = None,
    parallel_drafting: bool = False,
) -> dict[str, Any]:
    """The settings; beyond the last batch size vLLM goes on with the last K.

    A method of one draft length gets the longest of the schedule. A schedule of one length gets
    no table: it would say nothing more, cost the V1 runner its FULL CUDA graphs (vllm#49548), and
    be ignored with a warning under data parallelism (vllm#45963).

    Args:
        parallel_drafting: one pass of the drafter makes all drafts.

    Raises:
        ValueError: if drafts pay nowhere, the method is unknown, or a draft model is missing or
            given to a lookup.
    """
    known = known_method(method)
    if known is None:
        raise ValueError(
            f"draft method {method!r:.80} is none of {', '.join(DRAFT_METHODS)}"
            f"{hint(method, DRAFT_METHODS)}"
        )
    method = known
    if method in NEEDS_MODEL and not draft_model:
        raise ValueError(f"draft method {method} needs the directory or name of its draft model")
    if method in LOOKUPS and draft_model:
        raise ValueError(
            f"draft method {method} uses no draft model, but {draft_model!r:.80} is given: leave "
            f"it out, or name the method that it is for"
        )
    if not schedule.pays:
        raise ValueError(
            "drafts pay at no batch size: serve without --speculative-config, or use drafts that "
            "are accepted more often or cost less"
        )
    model: Mapping[str, str] = {"model": draft_model} if draft_model else {}
    settings = {"method": method, **model, "num_speculative_tokens": schedule.longest}
    if parallel_drafting:
        settings["parallel_drafting"] = True
    if method in ONE_LENGTH or len(schedule.ranges) == 1:
        return settings
    return {**settings, "num_speculative_tokens_per_batch_size": table(schedule)}


def table(schedule: Schedule) -> list[list[int]]:
    """[first, last, K] for each range; vLLM uses the last K for every larger batch."""
    return [[r.batch_size_first, r.batch_size_last, r.draft_length] for r in schedule.ranges]
