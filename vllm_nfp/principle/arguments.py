"""The arguments of ``predict``: what each may be, and one sentence where it is something else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from vllm_nfp.crossing import MOST_EPSILON
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.graphs import CapturedGraphs, default_capture_sizes
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.reading.wrapper import text_config
from vllm_nfp.principle.routing import MOST_SKEW, TYPICAL_SKEW
from vllm_nfp.principle.shape import shown
from vllm_nfp.principle.weights.stored import is_read, quantization_of
from vllm_nfp.text import hint, same_name

MOST_VALUES = 64
"""Values in a list of batch sizes, contexts or tolerances."""
MOST_SEQUENCES = 1 << 16
MOST_CONTEXT = 1 << 27
MOST_CAPTURE_SIZES = 1024

DTYPES = ("auto", "bfloat16", "float16")
WEIGHT_BITS: Mapping[str, int] = {"fp8": 8, "int4": 4}
"""Bits per weight of ``quantization``; 4-bit weights multiply in 16 bits (GPTQ, AWQ)."""
KV_BITS: Mapping[str, float | None] = {
    "auto": None,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
}
"""Bits per cached element by vLLM's name of the cache's type; None: as the checkpoint says."""

ROUTINGS: Mapping[str, float] = {"uniform": 0.0, "typical": TYPICAL_SKEW}
"""How tokens reach experts, as the exponent of the experts' shares by rank."""


def check_batch_sizes(values: Sequence[int]) -> None:
    """Sequences in a step.

    Raises:
        PredictionError: for a value that is no whole number or out of bounds.
    """
    _check_sizes("batch_sizes", values, 1, MOST_SEQUENCES)


def check_contexts(values: Sequence[int]) -> None:
    """Cached tokens of a sequence.

    Raises:
        PredictionError: for a value that is no whole number or out of bounds.
    """
    _check_sizes("contexts", values, 0, MOST_CONTEXT)


def check_grid(
    batch_sizes: Sequence[int], contexts: Sequence[int], epsilons: Sequence[float]
) -> None:
    """The lists that a prediction is asked for.

    Raises:
        PredictionError: for an empty or too long list, a repeated value, or one out of bounds.
    """
    check_batch_sizes(batch_sizes)
    check_contexts(contexts)
    _check_epsilons(epsilons)
    _check_list("batch_sizes", batch_sizes)
    _check_list("contexts", contexts)
    _check_list("epsilons", epsilons)


def weight_bits(config: Mapping[str, object], quantization: str | None) -> float:
    """Bits per weight of a config.json that does not name its quantization.

    Raises:
        PredictionError: for an unknown name, or a config.json whose own quantization is read.
    """
    if quantization is None:
        return 16
    quantization = named("quantization", quantization, WEIGHT_BITS)
    text = text_config(config)
    given = quantization_of(config, text)
    layers = text.get("num_hidden_layers")
    if given is not None and is_read(given, min(layers, 512) if isinstance(layers, int) else 1):
        raise PredictionError(
            f"quantization {quantization!r} is given, but the config.json says how weights are "
            f"stored (quantization_config): leave it out"
        )
    return WEIGHT_BITS[quantization]


def routing_skew(routing: str | float) -> float:
    """Exponent of the experts' shares by rank: 0 for ``uniform``, a fitted one for ``typical``.

    Raises:
        PredictionError: for another name, or a number out of bounds.
    """
    if isinstance(routing, str) and (known := same_name(routing, ROUTINGS)) is not None:
        return ROUTINGS[known]
    try:
        skew = float(routing)
    except (TypeError, ValueError):
        skew = math.nan
    if not 0 <= skew <= MOST_SKEW:
        raise PredictionError(
            f"routing must be {', '.join(ROUTINGS)} or an exponent from 0 to {MOST_SKEW:g}, not "
            f"{shown(routing)}"
        )
    return skew


def captured(given: Sequence[int] | None, hardware: Hardware) -> CapturedGraphs:
    """CUDA graphs of so many tokens; those that vLLM captures by default on the device for None.

    Raises:
        PredictionError: for a value out of bounds, or given twice.
    """
    if given is None:
        return CapturedGraphs(default_capture_sizes(hardware))
    if not given:
        return CapturedGraphs()
    _check_sizes("capture_sizes", given, 1, MOST_SEQUENCES)
    _check_list("capture_sizes", given, MOST_CAPTURE_SIZES)
    return CapturedGraphs(tuple(sorted(given)))


def _check_list(name: str, values: Sequence[float], most: int = MOST_VALUES) -> None:
    if not values:
        raise PredictionError(f"{name} is empty: give one value or more")
    if len(values) > most:
        raise PredictionError(f"{name} holds {len(values)} values: give at most {most}")
    for low, high in itertools.pairwise(sorted(values)):
        if low == high:
            raise PredictionError(f"{name} holds {low:g} twice: give each value once")


def _check_sizes(name: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise PredictionError(
                f"{name} must hold whole numbers from {least} to {most}, not {shown(value)}"
            )


def _check_epsilons(values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value) or not 0 <= value <= MOST_EPSILON:
            raise PredictionError(
                f"epsilon must be between 0 and {MOST_EPSILON:g} (0.1 = 10 %), not {value!r}"
            )


def named(name: str, value: str, allowed: Iterable[str]) -> str:
    """The allowed value that is meant, however it is spelled.

    Raises:
        PredictionError: if it is none of them.
    """
    names = tuple(allowed)
    found = same_name(value, names) if isinstance(value, str) else None
    if found is None:
        near = hint(value, names) if isinstance(value, str) else ""
        raise PredictionError(f"{name} must be one of {', '.join(names)}, not {value!r:.80}{near}")
    return found
