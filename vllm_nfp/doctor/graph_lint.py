"""Batch sizes whose decode steps run in no FULL CUDA graph, and the capture sizes that they need.

vLLM rounds every capture size up to a multiple of the positions of a sequence, K + 1, and leaves
out what then exceeds the largest size or --max-num-seqs (vllm#54933, #53407, #57355).
"""

from __future__ import annotations

import json

from vllm_nfp.adapter.dispatch import Execution, GraphRules, place
from vllm_nfp.draft.cautions import size_range
from vllm_nfp.draft.lints import Tiers

_STEPS = ((256, 8), (512, 16))
"""Below the first number of sequences vLLM captures every 8th, below the second every 16th."""
_WIDEST_STEP = 32


def missing_graphs(
    release: str, rules: GraphRules, lengths: Tiers, max_num_batched_tokens: int
) -> str | None:
    """Which batch sizes lack a FULL graph and what to give; None if none does.

    Args:
        release: of vLLM, for the message.
        lengths: draft lengths by batch size up to --max-num-seqs.
        max_num_batched_tokens: steps of more tokens do not occur.
    """
    spans, added, worst = [], set(), Execution.PIECEWISE
    for first, last, k in lengths:
        without = [
            b
            for b in range(first, min(last, max_num_batched_tokens // (k + 1)) + 1)
            if place(rules, b, k + 1).execution is not Execution.FULL
        ]
        if not without:
            continue
        if place(rules, without[-1], k + 1).execution is Execution.NONE:
            worst = Execution.NONE
        spans.append(f"B={size_range(without[0], without[-1])} with K={k}")
        added |= {b * (k + 1) for b in _captured(without)}
    if not spans:
        return None
    how = "any CUDA graph" if worst is Execution.NONE else "a FULL CUDA graph"
    sizes = sorted({*rules.graphs.sizes, *added})
    given = json.dumps({"cudagraph_capture_sizes": sizes}, separators=(",", ":"))
    return (
        f"vLLM {release} runs {', '.join(spans)} without {how}, since its largest capture size is "
        f"{rules.graphs.largest} tokens and each is rounded up to a multiple of K+1: give "
        f"--compilation-config '{given}' without max_cudagraph_capture_size, or lower "
        f"--max-num-seqs"
    )


def _captured(batch_sizes: list[int]) -> list[int]:
    """Some of the batch sizes, the last among them: steps of the others are padded to these."""
    kept = [b for b in batch_sizes if b % _step(b) == 0]
    return sorted({*kept, batch_sizes[-1]})


def _step(batch_size: int) -> int:
    return next((step for below, step in _STEPS if batch_size < below), _WIDEST_STEP)
