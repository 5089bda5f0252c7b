"""torchao: a named configuration for all modules, or one for each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.rules import Rules, ignored, skipping
from vllm_nfp.principle.weights.scheme import (
    FP8,
    INT8_BOTH,
    INT8_STORED,
    MXFP8,
    NARROW,
    NVFP4,
    Scheme,
    grouped,
)

_INTEGER = re.compile(r"(?:torch\.)?u?int([1-8])", re.ASCII)
_ANY_WIDTH: Mapping[str, tuple[str, ...]] = {
    "intxweightonly": (),
    "int8dynamicactivationintxweight": (NARROW,),
}
"""Configurations that name the type of their weights, with what is taken for granted."""
_GROUP = 128
"""Weights for each scale where the configuration does not say (torchao's own default)."""


def read(given: Mapping[str, object]) -> Rules | None:
    """The rules; None for a configuration that is not known."""
    kind = given.get("quant_type")
    if isinstance(kind, Mapping):
        kind = kind.get("default", kind)
    if not isinstance(kind, Mapping):
        kind = {"_type": str(kind), "_data": {}}
    skipped = skipping(ignored(given))
    if kind.get("_type") in ("ModuleFqnToConfig", "FqnToConfig"):
        return _by_module(_data(kind), skipped)
    scheme = _format(kind)
    return None if scheme is None else Rules(skipped, scheme)


def _by_module(
    given: Mapping[str, object], skipped: tuple[tuple[Names, Scheme | None], ...]
) -> Rules | None:
    """Configurations by module; ``_default`` is that of all others."""
    modules = given.get("module_fqn_to_config", given.get("fqn_to_config"))
    if not isinstance(modules, Mapping):
        return None
    named: list[tuple[Names, Scheme | None]] = []
    rest: Scheme | None = None
    for name, own in modules.items():
        scheme = _format(own) if isinstance(own, Mapping) else None
        if own is not None and scheme is None:
            return None
        if name == "_default":
            rest = scheme
        else:
            named.append((Names([str(name)]), scheme))
    return Rules((*skipped, *named), rest)


def _data(kind: Mapping[str, object]) -> Mapping[str, object]:
    found = kind.get("_data")
    return found if isinstance(found, Mapping) else {}


def _format(kind: Mapping[str, object]) -> Scheme | None:
    name = str(kind.get("_type")).lower().replace("_", "").removesuffix("config")
    size = _group(_data(kind))
    known: Mapping[str, Scheme] = {
        "int4weightonly": grouped(4, size),
        "int8weightonly": Scheme("wna16", 8, (INT8_STORED,)),
        "int8dynamicactivationint8weight": INT8_BOTH,
        "int8dynamicactivationint4weight": grouped(4, size, (NARROW,)),
        "float8dynamicactivationint4weight": grouped(4, size, (NARROW,)),
        "float8weightonly": Scheme("wna16", 8),
        "float8dynamicactivationfloat8weight": FP8,
        "float8staticactivationfloat8weight": FP8,
        "nvfp4dynamicactivationnvfp4weight": NVFP4,
        "mxdynamicactivationmxweight": MXFP8,
        "uintxweightonly": grouped(8, size),
    }
    if name in _ANY_WIDTH:
        return _any_width(_data(kind), size, _ANY_WIDTH[name])
    return known.get(name)


def _group(data: Mapping[str, object]) -> object:
    """Weights for each scale: as a number, or in the object that says how scales are shared."""
    shared = data.get("weight_granularity")
    inner = _data(shared) if isinstance(shared, Mapping) else {}
    if "group_size" in inner or isinstance(shared, Mapping):
        return inner.get("group_size")
    return data.get("group_size", _GROUP)


def _any_width(data: Mapping[str, object], size: object, assumed: tuple[str, ...]) -> Scheme | None:
    """Weights of the type that the configuration names, such as int4."""
    kind = data.get("weight_dtype")
    named = kind.get("_data") if isinstance(kind, Mapping) else kind
    found = _INTEGER.fullmatch(str(named))
    bits = int(found[1]) if found else 0
    return grouped(bits, size, assumed) if 0 < bits <= 8 else None
