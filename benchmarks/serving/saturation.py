"""The model and the requests of the overhead benchmarks, and the rate that saturates a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.serving import load, shapes
from benchmarks.serving.traffic import Load

SATURATION_SECONDS = 4.0
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Traffic:
    """A model, and the requests that its servers get."""

    shape: str
    layers: int | None
    kv_gib: float | None
    """Of each rank; None: as vLLM sizes it."""
    prompt_tokens: int
    output_tokens: int
    saturating: int
    """Streams that saturate the server."""


def a_load(traffic: Traffic, model: str, url: str, seed: int, seconds: float) -> Load:
    """The requests of one turn; the same for all variants."""
    return Load(
        url,
        model,
        shapes.vocab_size(traffic.shape),
        traffic.saturating,
        traffic.prompt_tokens,
        traffic.output_tokens,
        seconds,
        seed=seed,
    )


def saturation(
    traffic: Traffic, model: str, url: str, warmup_seconds: float = 2.0
) -> dict[str, Any]:
    """What the plain server gives with as many streams as it takes."""
    work = a_load(traffic, model, url, 10_007, SATURATION_SECONDS)
    summary = load.run(work, warmup_seconds).summary()
    tokens = summary["tokens_per_second"]
    assert isinstance(tokens, float)
    return {**summary, "requests_per_second": tokens / traffic.output_tokens}
