"""What the draft length benchmark compares: lengths, loads, policies, and when rounds agree."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drafts.cost import METHODS
from vllm_nfp import predict
from vllm_nfp.draft.inputs import StepTimes

LENGTHS = (0, 1, 2, 3, 4, 6, 8)
LONGEST = LENGTHS[-1]
DOCUMENTED = [[1, 64, 3], [65, 128, 1], [129, 512, 0]]
"""The example of vLLM's page on dynamic speculative decoding."""
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
LONG_CONTEXT = 8192
ACCEPTANCES = (0.5, 0.7, 0.9)
MAIN_ACCEPTANCE = 0.7
FIXED = tuple(f"fixed:{k}" for k in LENGTHS)
ROUND = "round"
"""All fixed lengths, one after the other, again and again."""
AGREE = 0.03
"""Largest accepted median deviation of a length's rounds from their median, as a fraction; for
lengths with a CUDA graph, since without one every step waits for the host."""
WIDEST_GRAPH = 512
"""vLLM's default, in tokens, which the engines keep."""
PROBED_CONTEXTS = (1072, 8240)
"""About where the sequences of 1024 and 8192 tokens are while they are timed."""
LEVEL_SECONDS = 0.25
"""Of each level of the ramp."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with."""

    shape: str
    layers: int
    kv_gib: float
    speculates: bool
    tiny: bool
    method: str = METHODS[0]


@dataclass(frozen=True, slots=True)
class Command:
    """One measurement that an engine is asked for; ``seconds`` counts rounds for ``round``."""

    batch_size: int
    context: int
    policy: str
    """none, fixed:K, round, table:JSON or live."""
    acceptance: float
    seconds: float
    warm_steps: int
    fresh: bool = False
    """Begin with a controller that has learned nothing."""


def profile_of(spec: Path) -> Path:
    """Where an engine's probe keeps its profile."""
    return spec / "probe" / "profile-0.json"


def agree(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rounds of a point agree on each length's time.

    Of more than two, most of them: their median is what counts.
    """
    return all(
        _deviation(found) <= AGREE * statistics.median(found) for found in graphed_medians(rounds)
    )


def graphed_medians(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Medians over all rows of each policy's draft lengths that have a CUDA graph."""
    times: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for length, seconds in row["medians"].items():
            if row["batch_size"] * (int(length) + 1) <= WIDEST_GRAPH:
                times.setdefault((row["policy"], length), []).append(seconds)
    return list(times.values())


def _deviation(values: Sequence[float]) -> float:
    """Median distance from the median; of two values, half of what is between them."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def up_and_down(levels: Sequence[int]) -> tuple[int, ...]:
    """A ramp over the levels and back."""
    return (*levels, *reversed(levels[:-1]))


def step_times(spec: Path) -> StepTimes:
    """The probe's profile of an engine; where it measured nothing, what ``predict`` says."""
    profile = profile_of(spec)
    if profile.exists() and json.loads(profile.read_text(encoding="utf-8"))["curves"]:
        return profile
    return predict(
        spec / "model",
        hardware="H100-SXM",
        batch_sizes=LEVELS,
        contexts=PROBED_CONTEXTS,
        max_positions=LONGEST + 1,
    )
