"""What a server's real steps take beyond their work on the device, from its /metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_nfp.draft.server_drafts import DRAFTS
from vllm_nfp.results.scrape import count

if TYPE_CHECKING:
    from vllm_nfp.results.scrape import Samples

SEQUENCE_STEPS = "vllm:inter_token_latency_seconds_count"
"""vLLM observes an inter-token latency for each step of each sequence. Their number alone is used:
the times hold the steps that read other requests' prompts."""
STEP_SECONDS, STEPS = "vllm_nfp_step_latency_seconds", "vllm_nfp_steps_total"
PERIOD_SECONDS = "vllm_nfp_step_period_seconds"
STEP_TIMES = (STEP_SECONDS, STEPS, PERIOD_SECONDS)
"""What :func:`host_seconds` needs."""
LEAST_STEPS = 64.0
"""Steps that must have been counted."""


def host_seconds(samples: Samples, engine: str | None = None) -> float:
    """Mean time of a decode step beyond its work on the device, since the server started.

    Scheduling, sampling and launching that the device waits for. A step that reads a prompt has no
    part in it. 0: not known, as with a vllm-nfp that has no periods, or nothing.

    Args:
        engine: one engine's; None: all engines together.
    """

    def of(name: str) -> dict[tuple[str | None, ...], float]:
        found = samples.get(name, ())
        return {
            _kind(labels): value
            for labels, value in found
            if engine in (None, labels.get("engine"))
        }

    counts, device = of(STEPS), of(STEP_SECONDS)
    return beyond_device(
        (counts[kind], period, device[kind])
        for kind, period in of(PERIOD_SECONDS).items()
        if kind in counts and kind in device
    )


@dataclass(frozen=True, slots=True)
class RealStep:
    """A kind of decode step that a server has run."""

    batch_size: int
    context: int
    positions: int
    steps: float
    """How many, since the server started."""
    period_seconds: float
    """Median time from the begin of one to that of the next: drafting and the host included."""


def real_steps(samples: Samples) -> tuple[RealStep, ...]:
    """The kinds of steps of which enough were run that their period is known."""
    counts = {_kind(labels): value for labels, value in samples.get(STEPS, ())}
    found = []
    for labels, period in samples.get(PERIOD_SECONDS, ()):
        steps = counts.get(_kind(labels), 0.0)
        if steps >= LEAST_STEPS:
            size, context, positions = (
                count(labels[name]) for name in ("batch_size", "context", "positions")
            )
            found.append(RealStep(size, context, positions, steps, period))
    return tuple(found)


def drafted_fraction(samples: Samples) -> float | None:
    """Fraction of steps, by sequence, that had a draft since the server started; None: not known.

    A lookup finds none in most texts. vLLM counts drafts that were made alone.
    """
    steps = math.fsum(value for _, value in samples.get(SEQUENCE_STEPS, ()))
    drafts = math.fsum(value for _, value in samples.get(DRAFTS, ()))
    return min(1.0, drafts / steps) if steps >= LEAST_STEPS and drafts else None


def beyond_device(kinds: Iterable[tuple[float, float, float]]) -> float:
    """Mean over steps of their period less their work on the device; at least 0.

    Args:
        kinds: steps of each kind, seconds from the begin of one to that of the next, and seconds of
            its work on the device. Both are medians over the same steps.
    """
    known = tuple(kinds)
    steps = math.fsum(count for count, _, _ in known)
    if steps < LEAST_STEPS:
        return 0.0
    return max(0.0, math.fsum(n * (period - device) for n, period, device in known) / steps)


def _kind(labels: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(labels.get(name) for name in ("engine", "batch_size", "context", "positions"))
