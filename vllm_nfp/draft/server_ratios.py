"""t(N) / t(1) on a server's /metrics, with intervals and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from vllm_nfp.draft.curve import UNBOUNDED, StepCurve, curve_of_seconds, weakest
from vllm_nfp.results.scrape import count
from vllm_nfp.types import Basis

if TYPE_CHECKING:
    from vllm_nfp.results.scrape import Samples

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Ratio:
    """t(N) / t(1), as the server's own recommendation uses it; of several engines the slowest."""

    value: float = 0.0
    lower: float = math.inf
    upper: float = 0.0
    bases: list[Basis] = field(default_factory=list)

    @property
    def interval(self) -> tuple[float, float]:
        """Not known of a server whose vllm-nfp is older than these metrics."""
        return (self.lower, self.upper) if self.lower <= self.value <= self.upper else UNBOUNDED


def ratios_of(
    samples: Samples, name: str, key_of: Callable[[Mapping[str, str]], K]
) -> dict[K, dict[int, Ratio]]:
    """The ratios of a metric and its ``_lower``, ``_upper`` and ``_basis``, by key and N > 1.

    Empty if the server's vllm-nfp is older than the metric.
    """
    found: dict[K, dict[int, Ratio]] = {}

    def each(suffix: str) -> Iterator[tuple[Ratio, Mapping[str, str], float]]:
        for labels, value in samples.get(f"{name}{suffix}", ()):
            positions = count(labels["positions"])
            if positions != 1:
                of = found.setdefault(key_of(labels), {})
                yield of.setdefault(positions, Ratio()), labels, value

    for ratio, _, value in each(""):
        ratio.value = max(value, ratio.value)
    for ratio, _, value in each("_lower"):
        ratio.lower = min(value, ratio.lower)
    for ratio, _, value in each("_upper"):
        ratio.upper = max(value, ratio.upper)
    for ratio, labels, _ in each("_basis"):
        ratio.bases.append(Basis(labels["basis"]))
    return {key: {n: r for n, r in of.items() if r.value} for key, of in found.items()}


def curve_of(
    cell: tuple[int, int], seconds: Mapping[int, float], ratios: Mapping[int, Ratio]
) -> StepCurve:
    """The curve of these times, with these ratios where there are any.

    Raises:
        ValueError: if N = 1 is missing, or for what cannot be.
    """
    curve = curve_of_seconds(*cell, seconds, {n: ratio.value for n, ratio in ratios.items()})
    known = [ratios.get(n, Ratio()) for n, _ in curve.points[1:]]
    return replace(
        curve,
        bases=(Basis.MEASURED, *(weakest(ratio.bases) for ratio in known)),
        intervals=((1.0, 1.0), *(ratio.interval for ratio in known)),
    )
