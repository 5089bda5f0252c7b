"""What :mod:`benchmarks.verification.compare` compares, and under which loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.serving import shapes
from benchmarks.verification.load import LONGEST_ANSWER, Point

EXTENSION = "benchmarks.verification.extension.ReplayedDrafts"
CONTENDERS = ("fixed", "vllm", "measured", "none")
"""In the order in which they are measured, two started together: what no longer fits is left out
from the end on. ``vllm`` and ``measured`` compile the same, so they must not start together."""
FIXED = (1, 3, 5, 7)
LONGEST = 7
SHORT, LONG = 1024, 8192
MOST_LONG = 32
"""Requests with the long context: their KV cache takes some 25 GiB at 24 layers of 8B."""
FEW = 4
"""Requests so few that more places of each are measured, so that all tasks count alike."""
PLACES, PLACES_OF_FEW = 192, 384
WARM_UP = Point("warm-up", (SHORT,) * 16, 7 * PLACES)
"""For ways that learn: a thousand steps at 1.35 tokens each, and vLLM fits its confidences every
hundred."""
STREAMS, STREAM_PLACES = 128, 4096
KV_TOKENS = MOST_LONG * (LONG + SHORT) + (STREAMS - MOST_LONG) * (SHORT + LONGEST_ANSWER * PLACES)
"""Of a server's KV cache: all prompts are in it at once."""
OTHER_KINDS = tuple(
    Point("warm-up", (SHORT,) * n, places) for n, places in ((STREAMS, 16), (1, 64), (2, 64))
)
"""For the same ways: one and two requests, and the most, are compiled apart. A few dozen steps
each, so that drafts are cut in some."""


def points() -> list[Point]:
    """The loads, large ones first."""
    found = [Point("1k", (SHORT,) * n, _places(n)) for n in (128, 64, 32, 16, 8, 4, 2, 1)]
    found += [Point("8k", (LONG,) * n, _places(n)) for n in (32, 8, 1)]
    mixed = ((LONG,) * (n // 2) + (SHORT,) * (n // 2) for n in (64, 16, 4))
    return found + [Point("mixed", prompts, _places(len(prompts))) for prompts in mixed]


def _places(requests: int) -> int:
    return PLACES_OF_FEW if requests <= FEW else PLACES


def flags_of(
    contender: str, shape: str, layers: int, head: Path, adaptive: int = LONGEST,
    tokens: int = KV_TOKENS,
) -> tuple[str, ...]:  # fmt: skip
    """Of its server.

    Args:
        adaptive: tokens that ways which verify adaptively draft at each step.
        tokens: of the KV cache.
    """
    kv = int(shapes.kv_gib(shape, layers + 1, tokens) * 2**30)
    flags: tuple[str, ...] = (
        "--max-model-len", "12288", "--max-num-seqs", str(STREAMS), "--seed", "0",
        "--kv-cache-memory-bytes", str(kv), "--gpu-memory-utilization", "0.05",
        "--worker-extension-cls", EXTENSION,
    )  # fmt: skip
    if contender == "none":
        return flags
    config: dict[str, Any] = {
        "method": "eagle3", "model": str(head), "num_speculative_tokens": LONGEST,
    }  # fmt: skip
    if contender == "fixed":  # a table that names all lengths, so that each gets its CUDA graphs
        ends = (*range(1, len(FIXED)), STREAMS)
        table = [[at, end, k] for at, (end, k) in enumerate(zip(ends, FIXED, strict=True), 1)]
        config["num_speculative_tokens_per_batch_size"] = table
    else:
        config |= {"num_speculative_tokens": adaptive, "enable_adaptive_verification": True}
    flags += ("--speculative-config", json.dumps(config))
    return (*flags, "--nfp-probe", "--nfp-verification-costs") if contender == "measured" else flags
