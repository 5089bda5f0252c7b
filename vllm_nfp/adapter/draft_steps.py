"""Reads the scheduler's decode steps as the controller of draft lengths takes them in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vllm_nfp.draft.live import StepObservation


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A step that was planned and is not finished."""

    output: Any
    """vLLM's ``SchedulerOutput``."""
    asked: int
    """Draft length that was asked for when the drafts of this step were made."""
    asks: int
    """Draft length that this step asks for, to be verified in the next."""


def reads_prompts(output: Any) -> bool:
    """Whether a step reads more than one token and the drafts of each request."""
    drafts = output.scheduled_spec_decode_tokens
    drafted = sum(map(len, drafts.values())) if drafts else 0
    others = output.total_num_scheduled_tokens != len(output.num_scheduled_tokens) + drafted
    return bool(output.scheduled_new_reqs) or others


def observe(
    step: ScheduledStep, model_output: Any, before: float | None, now: float
) -> StepObservation | None:
    """A finished step as the controller takes it in; None if it is no pure decode step.

    A draft that the proposer did not find counts as not accepted, so that the tokens and the time
    of the steps in which K were asked for are what K gives.

    Args:
        model_output: vLLM's ``ModelRunnerOutput`` of the step.
        before: when the step before was finished; None if the time since is not this step's.
        now: seconds of the same clock.
    """
    output, length = step.output, step.asked
    drafts = output.scheduled_spec_decode_tokens
    counts = output.num_scheduled_tokens
    sampled = model_output.sampled_token_ids
    batch_size = len(counts)
    if reads_prompts(output):
        return None
    if not sampled or len(sampled) != batch_size:
        return None
    tokens = Counter(map(len, sampled))
    if tokens.get(0) or (drafts and max(map(len, drafts.values())) > length):
        return None  # a prompt's chunk, or drafts from before the last change
    computed = output.scheduled_cached_reqs.num_computed_tokens
    accepted = tuple(
        sum(count for n, count in tokens.items() if n > place) for place in range(1, length + 1)
    )
    # A step that makes another number of drafts than it verifies belongs to neither length.
    timed = before is not None and step.asks == length
    return StepObservation(
        batch_size,
        round(sum(computed) / max(1, len(computed))),
        length,
        now - before if timed and before is not None else None,
        accepted,
    )
