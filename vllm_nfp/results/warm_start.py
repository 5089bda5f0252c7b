"""An earlier profile of the same model and device as the first observations of a cost surface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vllm_nfp.results.profile import Profile
from vllm_nfp.surface import Baseline, Observations, Ratio
from vllm_nfp.types import Basis, CurvePoint, Environment, ModelDescription, Module, Shape

MOST_RATIOS = 96
"""Ratios that are taken, evenly among the profile's shapes: each update costs their cube."""
REACH = 1.959964
"""Standard deviations from the middle to an end of a 95 % interval."""
LEAST_DEVIATION = 0.005
"""Of a log ratio: another start may lay memory out otherwise. A choice, not a fit."""
LEAST_SECONDS_DEVIATION = 0.03
"""Of log t(1): clocks differ from run to run. A choice, not a fit."""
AGED_DEVIATION = 0.02
"""What a week of age adds, and the most that age adds. A choice, not a fit."""
AGED_SECONDS = 7 * 86400.0


class OtherSetupError(ValueError):
    """A profile of something else; the message is a sentence that names both values."""


def check_same(profile: Profile, environment: Environment, model: ModelDescription) -> None:
    """Refuse a profile whose steps are not those of this server.

    Args:
        environment: of this server.
        model: served here.

    Raises:
        OtherSetupError: naming what differs.
    """
    for what, theirs, ours in (
        *_models(profile.model, model),
        *_setups(profile.environment, environment),
    ):
        if theirs != ours:
            raise OtherSetupError(f"its {what} is {theirs!s:.80}, here it is {ours!s:.80}")


def _models(
    theirs: ModelDescription, ours: ModelDescription
) -> Iterator[tuple[str, object, object]]:
    yield "model architecture", theirs.architecture, ours.architecture
    for name in ModelDescription.__dataclass_fields__:
        if name not in ("name", "architecture"):
            yield f"model's {name}", getattr(theirs, name), getattr(ours, name)


def _setups(theirs: Environment, ours: Environment) -> Iterator[tuple[str, object, object]]:
    yield "GPU" if ours.device.type == "cuda" else "device", theirs.device.name, ours.device.name
    yield "attention backend", _names(theirs), _names(ours)
    yield "tensor parallel size", theirs.tensor_parallel_size, ours.tensor_parallel_size
    yield "data parallel size", theirs.data_parallel_size, ours.data_parallel_size
    yield "dtype", theirs.dtype, ours.dtype
    yield "quantization", theirs.quantization, ours.quantization
    yield "KV cache dtype", theirs.kv_cache_dtype, ours.kv_cache_dtype
    yield "CUDA graph mode", theirs.cudagraph_mode, ours.cudagraph_mode
    yield "largest CUDA graph", _largest(theirs), _largest(ours)


def _names(of: Environment) -> str:
    return ", ".join(of.attention_backends) or "unknown"


def _largest(of: Environment) -> int:
    return max(of.cudagraph_capture_sizes, default=0)


def observations_of(
    profile: Profile, modules: Sequence[Module], most_positions: int, unix_seconds: float
) -> Observations:
    """What the measured points of a profile say.

    Args:
        modules: known to the prior.
        most_positions: last N of the prior.
        unix_seconds: now; older points are less certain.
    """
    points = sorted(
        (
            point
            for point in profile.curves
            if point.basis is Basis.MEASURED
            and point.samples > 0
            and point.module in modules
            and point.positions <= most_positions
        ),
        key=lambda point: (point.positions, point.batch_size, point.context, point.module),
    )
    age = max(0.0, unix_seconds - profile.environment.date_unix_seconds)
    aged = AGED_DEVIATION**2 * min(1.0, age / AGED_SECONDS)
    ratios = [point for point in points if point.positions > 1 and point.ratio_upper is not None]
    every = -(-len(ratios) // MOST_RATIOS) or 1
    return Observations(
        ratios=tuple(_ratio(point, aged) for point in ratios[::every]),
        baselines=tuple(_baseline(point) for point in points if point.positions == 1),
    )


def _ratio(point: CurvePoint, aged: float) -> Ratio:
    upper = point.ratio if point.ratio_upper is None else point.ratio_upper
    deviation = math.log(upper / max(point.ratio_lower, 1e-3)) / (2.0 * REACH)
    shape = Shape(point.batch_size, point.context, point.positions)
    variance = max(deviation, LEAST_DEVIATION) ** 2 + aged
    return Ratio(Module(point.module), shape, math.log(point.ratio), variance, samples=0)


def _baseline(point: CurvePoint) -> Baseline:
    return Baseline(
        Module(point.module),
        point.batch_size,
        point.context,
        math.log(point.median_seconds),
        LEAST_SECONDS_DEVIATION**2,
    )
