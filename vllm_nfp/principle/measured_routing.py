"""The routing that a live probe's profile shows: what is put in place of a guess.

Where the probe counted the experts that real steps chose, the counts say it. Else the measured
times of the experts' module do.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.routing import closest_skew
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Step
from vllm_nfp.strict_json import read_object
from vllm_nfp.text import printable
from vllm_nfp.types import Basis, CurvePoint, ExpertRouting, Module

MAX_BYTES = 64 << 20

LEAST_POINTS = 3


class RoutingError(PredictionError):
    """Measured times that show no routing; the message says why."""


@dataclass(frozen=True, slots=True)
class _Profile:
    """What of a profile is used."""

    curves: tuple[CurvePoint, ...]
    experts: ExpertRouting | None = None


@dataclass(frozen=True, slots=True)
class FoundRouting:
    """A routing, and what shows it."""

    skew: float
    """Exponent of the experts' shares by rank."""
    source: str
    """Completes the sentence "Routing is"; empty: it is assumed."""


def routing_in(path: Path, shape: ModelShape, target: Target, serving: Serving) -> FoundRouting:
    """The routing that a profile shows.

    Args:
        shape: a model with experts.
        serving: how its steps run; the routing in it is left aside.

    Raises:
        RoutingError: if the file cannot be read, is no profile, is one of a model with other
            experts, or shows no routing.
    """
    read = _read(path)
    name = printable(path.name)
    counted = read.experts
    if counted is None or not shape.num_moe_layers:
        skew = measured_skew(shape, target, serving, _ratios_of(read))
        return FoundRouting(
            skew,
            f"as the times of experts in {name} show it: shares fall with rank to the -{skew:g}",
        )
    if counted.num_experts != shape.num_experts:
        raise RoutingError(
            f"routing {str(path)!r:.80} counts {counted.num_experts} experts, {shape.name} has "
            f"{shape.num_experts}: give a profile of this model"
        )
    return FoundRouting(
        counted.skew,
        f"as counted over {counted.tokens} tokens of real steps in {name}: shares fall about with "
        f"rank to the -{counted.skew:g}",
    )


def _read(path: Path) -> _Profile:
    try:
        return read_object(path, MAX_BYTES).decode(_Profile, pass_over=True)
    except OSError as error:
        raise RoutingError(
            f"routing {str(path)!r:.80} cannot be read ({error.strerror}): give a profile that "
            f"vllm-nfp measure or a server wrote"
        ) from None
    except ValueError as error:
        raise RoutingError(
            f"routing {str(path)!r:.80} cannot be used ({error}): give a profile that vllm-nfp "
            f"measure or a server wrote"
        ) from None


def _ratios_of(read: _Profile) -> dict[tuple[int, int], float]:
    """(B, N) -> measured t(N)/t(1) of ``moe_ffn``, the mean over contexts."""
    found: dict[tuple[int, int], list[float]] = {}
    for point in read.curves:
        measured = point.basis is Basis.MEASURED and point.positions > 1
        if point.module is Module.MOE_FFN and measured:
            found.setdefault((point.batch_size, point.positions), []).append(point.ratio)
    return {key: statistics.fmean(ratios) for key, ratios in found.items()}


def measured_skew(
    shape: ModelShape,
    target: Target,
    serving: Serving,
    ratios: Mapping[tuple[int, int], float],
) -> float:
    """Exponent of the experts' shares with which t(N)/t(1) of the experts' module fits best.

    Args:
        shape: a model with experts.
        serving: how its steps run; the routing in it is left aside.
        ratios: (B, N) -> measured t(N)/t(1) of ``moe_ffn``, N above 1.

    Raises:
        RoutingError: for a model without experts, or fewer than three ratios.
    """
    if not shape.num_moe_layers:
        raise RoutingError(f"{shape.name} has no experts, so no routing can be read from its times")
    if len(ratios) < LEAST_POINTS:
        raise RoutingError(
            f"a routing is read from {LEAST_POINTS} or more timed points of moe_ffn beyond N = 1, "
            f"not {len(ratios)}: give a profile of a model with experts, or measure for longer"
        )
    return closest_skew(lambda skew: _error(shape, target, serving, ratios, skew))


def _error(
    shape: ModelShape,
    target: Target,
    serving: Serving,
    ratios: Mapping[tuple[int, int], float],
    skew: float,
) -> float:
    """Mean absolute error of the logarithm."""
    skewed = dataclasses.replace(serving, routing_skew=skew)
    found = []
    for batch_size in {size for size, _ in ratios}:
        positions = np.array([1.0, *(n for size, n in ratios if size == batch_size)])
        step = Step(shape, target, skewed, batch_size, 1, positions)
        seconds = step.module(Module.MOE_FFN).seconds()
        measured = np.array([ratio for (size, _), ratio in ratios.items() if size == batch_size])
        found.append(np.abs(np.log(seconds[1:] / seconds[0] / measured)))
    return float(np.mean(np.concatenate(found)))
