"""What in a server's settings keeps draft lengths from paying: one sentence each, or None.

The rules are read in the sources of vLLM 0.29.0 to 0.33.0, where they are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from vllm_nfp.draft.methods import TABLE_NEEDS_V2

Tiers: TypeAlias = Sequence[tuple[int, int, int]]
"""(first batch size, last, draft length), ascending and without gaps from 1."""

LONG_CONTEXT = 4096
"""Context length in tokens from which FlashAttention 2's lack of a split is told: an RTX 3090 took
5.4 times as long for 8 positions as for 1 there (vllm-project/flash-attention#193)."""


def tiers(table: Tiers, longest: int, max_num_seqs: int) -> tuple[tuple[int, int, int], ...]:
    """The draft length of every batch size, as build_dynamic_sd_schedule_lookup reads a table.

    Gaps and the tail go on with the draft length before them, and none exceeds ``longest``.

    Args:
        table: vLLM's, which begins with batch size 1; empty: one draft length for all.
        longest: num_speculative_tokens.
    """
    starts = [(first, min(k, longest)) for first, _, k in sorted(table) if first <= max_num_seqs]
    starts = starts or [(1, longest)]
    ends = [first - 1 for first, _ in starts[1:]] + [max_num_seqs]
    return tuple((first, last, k) for (first, k), last in zip(starts, ends, strict=True))


def drafting_slots(method: str, draft_length: int, parallel: bool = False) -> int:
    """Tokens of a step's budget that each sequence takes beside its positions.

    After ``max_num_new_slots_for_drafting`` of vLLM's ``config/speculative.py``.

    Args:
        parallel: ``parallel_drafting`` of vLLM's speculative config.
    """
    if parallel and method in ("eagle", "eagle3"):
        return draft_length - 1
    if parallel and method == "draft_model":
        return draft_length
    return {"dflash": draft_length, "dspark": draft_length - 1, "draft_model": 1}.get(method, 0)


def crowded_step(lengths: Tiers, slots: int, max_num_batched_tokens: int) -> str | None:
    """The running sequences fill a step, or do not fit one (vllm#50708).

    Args:
        slots: of :func:`drafting_slots`, for the longest drafts.
    """
    full = [
        (last * (k + 1 + slots), last, k)
        for _, last, k in lengths
        if k and last * (k + 1 + slots) >= max_num_batched_tokens
    ]
    if not full:
        return None
    tokens, sequences, k = max(full)
    each = f"{k + 1} tokens" + (f" and {slots} slots for drafting" if slots else "")
    fitting = max_num_batched_tokens // (k + 1 + slots)
    rest = "the others wait for the next step" if fitting < sequences else "no prompt token fits"
    return (
        f"{sequences} sequences with K={k} take {each} each, {tokens} in all, but a step holds "
        f"--max-num-batched-tokens {max_num_batched_tokens}: {min(fitting, sequences)} fit and "
        f"{rest}; give a --max-num-batched-tokens well above {tokens}, or lower --max-num-seqs or K"
    )


def whole_draft(method: str, shortest: int, longest: int) -> str:
    """The V2 runner drafts num_speculative_tokens times, whatever the table says."""
    return (
        f"the V2 model runner of vLLM 0.32 and 0.33 makes {longest} drafts with {method} at every "
        f"batch size and drops those beyond K: K={shortest} saves their verification, not their "
        f"drafting, so compare with --max-draft-length {max(1, shortest)}"
    )


def one_length(method: str, lengths: Sequence[int]) -> str | None:
    """A method without draft lengths by batch size, where several would be best.

    Args:
        lengths: the best ones, of all batch sizes.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return None
    return (
        f"vLLM has one draft length for {method}: with num_speculative_tokens={longest} up to "
        f"{longest} tokens are drafted at every batch size, though {shortest} to {longest} are "
        f"best; choose the one for the batch sizes that you serve, and give it as --draft-lengths"
    )


def ignored_table(longest: int, data_parallel: int) -> str | None:
    """vLLM drops a table under data parallelism (vllm#45963)."""
    if data_parallel <= 1:
        return None
    return (
        f"vLLM ignores draft lengths by batch size with {data_parallel} data-parallel engines and "
        f"drafts num_speculative_tokens={longest} at every batch size: choose that one for the "
        f"batch sizes that you serve, or serve {data_parallel} servers without data parallelism"
    )


def piecewise_table(uses_v2: bool, v2_follows: bool) -> str | None:
    """The V1 runner gives up FULL graphs for a table (vllm#49548).

    Args:
        v2_follows: the V2 runner of this release follows a table.
    """
    if uses_v2:
        return None
    instead = "VLLM_USE_V2_MODEL_RUNNER=1" if v2_follows else "vLLM 0.32 or later and its V2 runner"
    return (
        f"the V1 model runner gives up FULL CUDA graphs for draft lengths by batch size, and every "
        f"decode step pays for it: serve with {instead}, or with one num_speculative_tokens and no "
        f"num_speculative_tokens_per_batch_size"
    )


def fixed_on_v1(
    method: str, lengths: Tiers, longest: int, uses_v2: bool, v2_follows: bool
) -> str | None:
    """The V1 runner's ngram_gpu asserts that every step drafts num_speculative_tokens.

    Args:
        longest: num_speculative_tokens.
        v2_follows: the V2 runner of this release follows a table.
    """
    if uses_v2 or method not in TABLE_NEEDS_V2 or all(k == longest for *_, k in lengths):
        return None
    instead = "VLLM_USE_V2_MODEL_RUNNER=1" if v2_follows else "vLLM 0.32 or later and its V2 runner"
    return (
        f"the V1 model runner stops with an AssertionError at the first step that drafts another "
        f"number of tokens with {method} than num_speculative_tokens={longest}: serve with "
        f"{instead}, with method ngram, or without num_speculative_tokens_per_batch_size"
    )


def unsplit_cache(longest_context: int) -> str | None:
    """FlashAttention 2 splits the cache of a sequence at one position alone (vllm#51320)."""
    if longest_context < LONG_CONTEXT:
        return None
    return (
        f"FlashAttention 2 splits the KV cache of a sequence over the GPU at one position, but not "
        f"at two or more: at contexts like {longest_context} and few sequences the first draft "
        f"costs most of what drafts can gain; compare with --attention-backend FLASHINFER, which "
        f"splits it at any"
    )
