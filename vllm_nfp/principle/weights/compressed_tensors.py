"""compressed-tensors: groups of modules, each with a format."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.sizes import shown
from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.rules import Rules, ignored, skipping
from vllm_nfp.principle.weights.scheme import (
    FP8,
    FP8_BLOCK,
    GIVE,
    INT8_BOTH,
    MXFP4,
    MXFP8,
    NARROW,
    NVFP4,
    Scheme,
    UnreadError,
    grouped,
    strings,
)

_ALL = ("Linear",)
"""Classes that stand for all linear modules."""
_EXPERTS = ("FusedMoE", "RoutedExperts")
"""Classes of vLLM that stand for the routed experts of every layer."""
_EVERY_EXPERT = r"re:.*\.experts\..*"


def read(given: Mapping[str, object]) -> Rules | None:
    """The rules; None for a group whose format is not known.

    Raises:
        UnreadError: for sparse weights.
    """
    _check_dense(given)
    listed: list[tuple[Names, Scheme | None]] = []
    rest: Scheme | None = None
    for group in groups(given):
        scheme = _format(group)
        if scheme is None:
            return None
        targets = strings(group, "targets")
        named = [target for target in targets if target not in (*_ALL, *_EXPERTS)]
        if not targets or any(target in _ALL for target in targets):
            rest = scheme
        if any(target in _EXPERTS for target in targets):
            named.append(_EVERY_EXPERT)
        if named:
            listed.append((Names(named), scheme))
    if rest is None and not listed and not _only_cache(given):
        return None
    return Rules((*skipping(ignored(given)), *listed), rest)


def _only_cache(given: Mapping[str, object]) -> bool:
    """A config without groups, which asks for the format of the KV cache alone."""
    return not given.get("config_groups") and bool(given.get("kv_cache_scheme"))


def _check_dense(given: Mapping[str, object]) -> None:
    """Refuse sparse weights, which vLLM 0.32 serves no more.

    Raises:
        UnreadError: naming their format.
    """
    sparse = given.get("sparsity_config")
    kind = sparse.get("format") if isinstance(sparse, Mapping) else None
    if kind not in (None, "dense"):
        raise UnreadError(
            f"sparsity_config has the format {shown(kind)}, which vLLM does not serve: {GIVE}"
        )


def groups(given: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The groups of a config."""
    found = given.get("config_groups")
    if not isinstance(found, Mapping):
        return []
    return [group for group in found.values() if isinstance(group, Mapping)]


def _format(group: Mapping[str, object]) -> Scheme | None:
    weights, activations = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        return None
    kind, bits, size = weights.get("type"), weights.get("num_bits"), weights.get("group_size")
    if kind == "float":
        return _floats(weights, bits, size, bool(activations))
    if kind == "int" and activations:
        return INT8_BOTH if bits == 8 else _narrow(bits, size)
    return grouped(bits, size) if kind == "int" else None


def _floats(
    weights: Mapping[str, object], bits: object, size: object, activations: bool
) -> Scheme | None:
    """FP4, MX formats and FP8; the last without activations multiplies in 16 bits."""
    if bits == 4:
        return {16: NVFP4, 32: MXFP4}.get(size if isinstance(size, int) else 0)
    if bits != 8:
        return None
    if size == 32:
        return MXFP8
    if not activations:
        return Scheme("wna16", 8)
    return FP8_BLOCK if weights.get("strategy") == "block" else FP8


def _narrow(bits: object, size: object) -> Scheme | None:
    """4-bit weights with 8-bit activations."""
    return grouped(bits, size, (NARROW,)) if bits == 4 else None
