"""Reads a step out of vLLM's scheduler output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_nfp.types import EngineStep


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that a step may hold."""

    sequences: int
    tokens: int


def limits_of(vllm_config: Any) -> StepLimits:
    """The scheduler's limits."""
    scheduler = vllm_config.scheduler_config
    return StepLimits(int(scheduler.max_num_seqs), int(scheduler.max_num_batched_tokens))


def step_of(
    scheduler_output: Any, decode_positions: int, limits: StepLimits, waiting: bool | None = None
) -> EngineStep | None:
    """The step as the scheduler planned it, alike on all ranks; None if it runs nothing.

    A worker does not see the queue of requests. What it sees of it: a step that is full of tokens
    or sequences, and sequences that were preempted.

    Args:
        waiting: what :func:`requests_wait` says of it, where that is known already.
    """
    counts = scheduler_output.num_scheduled_tokens
    if not counts:
        return None
    batch_size, tokens = len(counts), scheduler_output.total_num_scheduled_tokens
    # This runs before every step: nothing is looked up that follows from the totals.
    positions = 1 if tokens == batch_size else max(counts.values())
    computed = scheduler_output.scheduled_cached_reqs.num_computed_tokens
    return EngineStep(
        batch_size,
        round(sum(computed) / len(computed)) if computed else 0,
        positions,
        decode=(
            positions <= decode_positions
            and not scheduler_output.scheduled_new_reqs
            and not scheduler_output.scheduled_encoder_inputs
        ),
        fullness=batch_size / limits.sequences,
        waiting=requests_wait(scheduler_output, limits) if waiting is None else waiting,
    )


def requests_wait(scheduler_output: Any, limits: StepLimits) -> bool:
    """Whether the step is full of tokens, or sequences were preempted for it."""
    return scheduler_output.total_num_scheduled_tokens >= limits.tokens or bool(
        scheduler_output.preempted_req_ids
    )
