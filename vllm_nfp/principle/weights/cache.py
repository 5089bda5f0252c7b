"""How a checkpoint asks for its KV cache."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.sizes import ShapeError, shown
from vllm_nfp.principle.weights.modelopt import flat


def stored_kv_bits(given: object | None) -> float:
    """Bits per cached element that a checkpoint asks for; 16 unless it has an FP8 scheme.

    vLLM follows ``kv_cache_scheme`` where its own ``--kv-cache-dtype`` is auto.

    Raises:
        ShapeError: for a scheme other than 8-bit floats.
    """
    if not isinstance(given, Mapping):
        return 16
    scheme = given.get("kv_cache_scheme")
    if scheme == "FP8":
        return 8
    given = flat(given)
    if scheme is None:
        return 8 if given.get("kv_cache_quant_algo") == "FP8" else 16
    if isinstance(scheme, Mapping) and scheme.get("type") == "float":
        bits = scheme.get("num_bits")
        if isinstance(bits, int) and bits == 8:
            return 8
    raise ShapeError(f"kv_cache_scheme {shown(scheme)} is not of 8-bit floats: give kv_bits")
