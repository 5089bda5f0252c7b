"""ModelOpt: FP8, NVFP4 and MX formats, alike in all modules or module by module."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.sizes import shown
from vllm_nfp.principle.weights import compressed_tensors
from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.rules import Rules, ignored, skipping, uniform
from vllm_nfp.principle.weights.scheme import (
    FP8,
    FP8_BLOCK,
    GIVE,
    MXFP4,
    MXFP8,
    NVFP4,
    Scheme,
    UnreadError,
)

ALGORITHMS: Mapping[str, Scheme] = {
    "FP8": FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": FP8,
    "FP8_PB_WO": FP8_BLOCK,
    "FP8_PB_REAL": FP8_BLOCK,
    "FP8_BLOCK_SCALES": FP8_BLOCK,
    "NVFP4": NVFP4,
    "NVFP4_AWQ": NVFP4,
    "W4A16_NVFP4": Scheme("wna16", NVFP4.bits),
    "MXFP4": MXFP4,
    "MXFP8": MXFP8,
}
"""Names of formats (vLLM 0.32, layers/quantization/modelopt.py)."""
_PLAIN = ("", "NONE", "UNQUANTIZED", "BF16", "BFLOAT16", "FP16", "W16A16")
"""Names that checkpoints have for 16 bits; vLLM takes any that it does not know so."""


def flat(given: Mapping[str, object]) -> Mapping[str, object]:
    """The older form, which nests all under ``quantization`` and names no method."""
    nested = given.get("quantization")
    found = {**given, **nested} if isinstance(nested, Mapping) else given
    if isinstance(found.get("quant_algo"), str) and not found.get("quant_method"):
        return {**found, "quant_method": "modelopt"}
    return found


def read(given: Mapping[str, object]) -> Rules | None:
    """The rules; None for a format that is not known. As in vLLM, the LM head is quantized too."""
    algorithm = str(given.get("quant_algo")).upper()
    if algorithm == "MIXED_PRECISION":
        if given.get("config_groups") and not given.get("quantized_layers"):
            return compressed_tensors.read(given)
        return Rules((*skipping(ignored(given)), *by_module(given)), None)
    scheme = ALGORITHMS.get(algorithm)
    return None if scheme is None else uniform(given, scheme, head=True)


def by_module(given: Mapping[str, object]) -> tuple[tuple[Names, Scheme | None], ...]:
    """The formats of the modules that ``quantized_layers`` names.

    Raises:
        UnreadError: for a format that is not known, or no module at all.
    """
    named = given.get("quantized_layers")
    paths: dict[object, list[str]] = {}
    for path, entry in named.items() if isinstance(named, Mapping) else ():
        if not isinstance(entry, Mapping) or not isinstance(path, str) or "*" in path:
            raise UnreadError(
                f"quantized_layers has {shown(path)} with {shown(entry)}, which is not read: {GIVE}"
            )
        algorithm = entry.get("quant_algo")
        paths.setdefault(algorithm if isinstance(algorithm, str) else None, []).append(path)
    if not paths:
        raise UnreadError(f"quant_algo is MIXED_PRECISION without quantized_layers: {GIVE}")
    return tuple((Names(listed), _of_module(listed[0], name)) for name, listed in paths.items())


def _of_module(path: str, algorithm: object) -> Scheme | None:
    """The format of one module; None: 16 bits."""
    name = str(algorithm or "").upper()
    if name in _PLAIN:
        return None
    if name not in ALGORITHMS:
        raise UnreadError(
            f"quantized_layers has {shown(path)} with {shown(algorithm)}, which is not read: {GIVE}"
        )
    return ALGORITHMS[name]
