"""What a server's real steps take beyond their work on the device, from its /metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vllm_nfp.draft.server_drafts import DRAFTS

if TYPE_CHECKING:
    from vllm_nfp.results.scrape import Samples

INTER_TOKEN_LATENCY = "vllm:inter_token_latency_seconds"
INTER_TOKEN_SUM, INTER_TOKEN_COUNT = (f"{INTER_TOKEN_LATENCY}_{end}" for end in ("sum", "count"))
"""vLLM observes the time between two outputs of a sequence, one for each step."""
STEP_SECONDS, STEPS = "vllm_nfp_step_latency_seconds", "vllm_nfp_steps_total"
LEAST_STEPS = 64.0
"""Steps of sequences that must have been counted."""


def host_seconds(samples: Samples, engine: str | None = None) -> float:
    """Mean time of a step beyond its work on the device, since the server started; 0: not known.

    Args:
        engine: one engine's; None: all engines together.
    """

    def of(name: str) -> list[tuple[Mapping[str, str], float]]:
        found = samples.get(name, ())
        return [(labels, v) for labels, v in found if engine in (None, labels.get("engine"))]

    seconds = {_kind(labels): value for labels, value in of(STEP_SECONDS)}
    device = (
        (labels["batch_size"], count, seconds[_kind(labels)])
        for labels, count in of(STEPS)
        if _kind(labels) in seconds and "batch_size" in labels
    )
    return beyond_device(
        math.fsum(value for _, value in of(INTER_TOKEN_SUM)),
        math.fsum(value for _, value in of(INTER_TOKEN_COUNT)),
        ((float(batch), count, each) for batch, count, each in device),
    )


def drafted_fraction(samples: Samples) -> float | None:
    """Fraction of steps, by sequence, that had a draft since the server started; None: not known.

    A lookup finds none in most texts. vLLM counts drafts that were made alone.
    """
    steps = math.fsum(value for _, value in samples.get(INTER_TOKEN_COUNT, ()))
    drafts = math.fsum(value for _, value in samples.get(DRAFTS, ()))
    return min(1.0, drafts / steps) if steps >= LEAST_STEPS and drafts else None


def beyond_device(
    seconds: float, steps: float, device: Iterable[tuple[float, float, float]]
) -> float:
    """Mean of real steps less that of their work on the device, both by sequence; at least 0.

    Args:
        seconds: between two outputs of a sequence, summed.
        steps: how many that are.
        device: (batch size, steps, seconds of each) of decode steps by kind.
    """
    kinds = tuple(device)
    weight = math.fsum(batch * count for batch, count, _ in kinds)
    if steps < LEAST_STEPS or weight < LEAST_STEPS:
        return 0.0
    mean = math.fsum(batch * count * each for batch, count, each in kinds) / weight
    return max(0.0, seconds / steps - mean)


def _kind(labels: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(labels.get(name) for name in ("engine", "batch_size", "context", "positions"))
