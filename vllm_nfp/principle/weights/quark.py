"""AMD Quark: a format for all modules, and others by wildcards."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.rules import Rules, ignored, skipping
from vllm_nfp.principle.weights.scheme import (
    FP8,
    FP8_BLOCK,
    INT8_BOTH,
    INT8_STORED,
    MXFP4,
    MXFP6,
    MXFP8,
    NARROW,
    NVFP4,
    Scheme,
    grouped,
)


def read(given: Mapping[str, object]) -> Rules | None:
    """The rules; None for a format that is not known."""
    by_class = given.get("layer_type_quant_config")
    linear = by_class.get("Linear") if isinstance(by_class, Mapping) else None
    whole = linear or given.get("global_quant_config")
    if not isinstance(whole, Mapping):
        return None
    rest = _format(whole)
    if rest is None and whole.get("weight"):
        return None
    named: list[tuple[Names, Scheme | None]] = []
    layers = given.get("layer_quant_config") or {}
    for pattern, own in layers.items() if isinstance(layers, Mapping) else ():
        # An entry without weights is about the cache alone.
        if not isinstance(own, Mapping) or not own.get("weight"):
            continue
        scheme = _format(own)
        if scheme is None or not isinstance(pattern, str):
            return None
        named.append((Names([pattern]), scheme))
    if rest is None and not named:
        return None
    return Rules((*skipping(ignored(given)), *named), rest)


def _format(given: Mapping[str, object]) -> Scheme | None:
    weight, inputs = _single(given.get("weight")), _single(given.get("input_tensors"))
    if weight is None:
        return None
    size = weight.get("group_size")
    return _of_type(weight, weight.get("dtype"), size, bool(inputs))


def _of_type(
    weight: Mapping[str, object], kind: object, size: object, inputs: bool
) -> Scheme | None:
    """The format of weights of a type, with quantized inputs or not."""
    if kind == "fp4":
        return NVFP4 if size == 16 else MXFP4
    if kind == "fp8_e4m3":
        scaled = (weight.get("qscheme"), size)
        per_block = FP8_BLOCK if scaled[0] == "per_block" else FP8
        return MXFP8 if scaled == ("per_group", 32) else per_block
    if kind == "int8":
        return INT8_BOTH if inputs else Scheme("wna16", 8, (INT8_STORED,))
    if kind in ("int4", "uint4"):
        return grouped(4, size, (NARROW,) if inputs else ())
    return MXFP6 if kind in ("fp6_e2m3", "fp6_e3m2") else None


def _single(entry: object) -> Mapping[str, object] | None:
    """A tensor's format; of two steps the one that is stored, which comes last for FP8 and INT4."""
    if isinstance(entry, (list, tuple)) and entry:
        narrow = [e for e in entry if isinstance(e, Mapping) and "4" in str(e.get("dtype"))[:4]]
        entry = narrow[0] if narrow else entry[0]
    return entry if isinstance(entry, Mapping) else None
