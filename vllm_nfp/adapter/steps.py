"""Reads a step out of vLLM's scheduler output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_nfp.adapter.versions import BOUNDED_KV_CACHE_KINDS
from vllm_nfp.types import EngineStep
from vllm_nfp.types.steps import mean_of


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most that a step may hold."""

    sequences: int
    tokens: int
    cached_tokens: float = math.inf
    """Of all sequences, in the KV cache."""


def limits_of(vllm_config: Any, cached_tokens: float = math.inf) -> StepLimits:
    """The scheduler's limits.

    Args:
        cached_tokens: see :func:`cached_tokens_of`.
    """
    scheduler = vllm_config.scheduler_config
    return StepLimits(
        int(scheduler.max_num_seqs), int(scheduler.max_num_batched_tokens), cached_tokens
    )


def cached_tokens_of(kv_cache_config: Any) -> float:
    """Tokens of sequences that the KV cache holds, roughly.

    All groups of layers take blocks from one pool. Groups that keep only a window of each sequence
    take few, and are left out.
    """
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    growing = [s for s in specs if type(s).__name__ not in BOUNDED_KV_CACHE_KINDS]
    blocks_per_token = sum(1.0 / spec.block_size for spec in growing)
    return kv_cache_config.num_blocks / blocks_per_token if blocks_per_token else math.inf


def step_of(scheduler_output: Any, decode_positions: int, limits: StepLimits) -> EngineStep | None:
    """The step as the scheduler planned it, alike on all ranks; None if it runs nothing.

    A worker does not see the queue of requests. What it sees of it: how many sequences run, how
    much they keep in the KV cache, whether the step is full of tokens, and preemptions.
    """
    counts = scheduler_output.num_scheduled_tokens
    if not counts:
        return None
    batch_size, tokens = len(counts), scheduler_output.total_num_scheduled_tokens
    # This runs before every step: nothing is looked up that follows from the totals.
    longest = 1 if tokens == batch_size else max(counts.values())
    computed = scheduler_output.scheduled_cached_reqs.num_computed_tokens
    cached = sum(computed)
    kept = (cached + tokens) / limits.cached_tokens
    # More than the KV cache holds: the sequences share prefixes, so that the sum says nothing.
    kept = kept if kept <= 1.0 else 0.0
    return EngineStep(
        batch_size,
        round(cached / len(computed)) if computed else 0,
        mean_of(tokens, batch_size),
        decode=(
            longest <= decode_positions
            and not scheduler_output.scheduled_new_reqs
            and not scheduler_output.scheduled_encoder_inputs
        ),
        fullness=max(batch_size / limits.sequences, kept),
        full=tokens >= limits.tokens,
        preempted=bool(scheduler_output.preempted_req_ids),
        tokens=tokens,
    )


def requests_wait(scheduler_output: Any, limits: StepLimits) -> bool:
    """Whether the step is full of tokens, or sequences were preempted for it."""
    return scheduler_output.total_num_scheduled_tokens >= limits.tokens or bool(
        scheduler_output.preempted_req_ids
    )


def text_of(request: Any, most: int) -> list[int]:
    """The first token ids of a prompt that stand for text, as all tokens of a decode step do.

    The places of an image hold one id again and again, which would send all of them to the same
    experts; those of an embedding hold none.

    Args:
        request: vLLM's NewRequestData.
        most: ids.
    """
    ids = request.prompt_token_ids
    if not ids or request.prompt_is_token_ids is not None:
        return []
    kept: list[int] = []
    begin = 0
    for feature in request.mm_features:
        place = feature.mm_position
        kept += ids[begin : min(place.offset, begin + most)]
        begin = place.offset + place.length
        if len(kept) >= most:
            break
    return [*kept, *ids[begin : begin + most]][:most]


@dataclass(frozen=True, slots=True)
class BlocksTaken:
    """KV blocks that a new request has taken from the pool, for one KV cache group."""

    group: int
    """Place of the group among all of the server's."""
    whole: np.ndarray[Any, Any]
    """Numbers of those that the request's first step fills, in the order of the tokens, int64."""
    rest: np.ndarray[Any, Any]
    """Numbers of all others, int64."""


def blocks_taken(scheduler_output: Any, block_tokens: Mapping[int, int]) -> Iterator[BlocksTaken]:
    """The KV blocks of the requests that a step begins.

    Those with content of earlier requests that share a prefix, or from a KV connector, are left
    out: they may belong to several sequences. Blocks that are taken ahead of the tokens of this
    step are no whole ones.

    Args:
        block_tokens: KV cache group -> tokens in a block as the scheduler sees it, of groups in
            which token i of a sequence lies in entry i // block_tokens. Of others none is whole.
    """
    for request in scheduler_output.scheduled_new_reqs:
        computed = request.num_computed_tokens
        tokens = computed + scheduler_output.num_scheduled_tokens[request.req_id]
        for group, block_ids in enumerate(request.block_ids):
            numbers = np.asarray(block_ids, dtype=np.int64)
            size = block_tokens.get(group)
            first, end = (computed // size, tokens // size) if size else (0, 0)
            yield BlocksTaken(group, numbers[first:end], numbers[end:])
