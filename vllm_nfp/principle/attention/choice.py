"""Attention backends by vLLM's names, and the one that vLLM takes if nobody names one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vllm_nfp.principle.attention.flash_attention_2 import FLASH_ATTN_2
from vllm_nfp.principle.attention.flash_attention_3 import FLASH_ATTN_3
from vllm_nfp.principle.attention.flashinfer import FLASHINFER
from vllm_nfp.principle.attention.latent import (
    CUTLASS_MLA,
    FLASH_ATTN_MLA,
    FLASHINFER_MLA,
    FLASHMLA,
)
from vllm_nfp.principle.attention.tiling import AttentionBackend
from vllm_nfp.principle.attention.triton import TRITON_ATTN
from vllm_nfp.principle.attention.triton_mla import TRITON_MLA
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.text import hint, same_name

_HOPPER = ("H100", "H200", "H20", "H800", "GH200")
ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            FLASH_ATTN_3,
            FLASH_ATTN_2,
            TRITON_ATTN,
            FLASHINFER,
            FLASH_ATTN_MLA,
            FLASHMLA,
            TRITON_MLA,
            CUTLASS_MLA,
            FLASHINFER_MLA,
        )
    }
)
"""Tile rules by vLLM's name. Only FLASH_ATTN_3 was timed: the rules of the others are read from
their sources or assumed, as each says, and they run with FLASH_ATTN_3's constants."""


def backend_by_name(name: str, hardware: Hardware) -> AttentionBackend:
    """A backend by vLLM's name; FLASH_ATTN is version 3 on Hopper, else version 2.

    Case, dashes and underscores do not matter.

    Raises:
        PredictionError: for an unknown name, with the known ones.
    """
    names = ("FLASH_ATTN", *ATTENTION_BACKENDS)
    known = same_name(name, names)
    if known is None:
        raise PredictionError(
            f"unknown attention backend {name!r:.80}{hint(name, names)}: known are "
            f"{', '.join(names)}"
        )
    if known == "FLASH_ATTN":
        known = "FLASH_ATTN_3" if hardware.name.startswith(_HOPPER) else "FLASH_ATTN_2"
    return ATTENTION_BACKENDS[known]


def default_backend(shape: ModelShape, hardware: Hardware) -> str:
    """First in vLLM 0.32's order (_get_backend_priorities in platforms/cuda.py and rocm.py).

    Of those that take the cache's type. Where vLLM would take one whose rules are not known here
    (ROCM_ATTN on AMD), the next in its order.
    """
    if hardware.name.startswith("MI"):
        return "TRITON_MLA" if shape.use_mla else "TRITON_ATTN"
    if hardware.capability_10:
        if shape.use_mla:
            return "FLASHINFER_MLA"
        return "FLASH_ATTN" if shape.bidirectional else "FLASHINFER"
    hopper = backend_by_name("FLASH_ATTN", hardware) is FLASH_ATTN_3
    narrow_cache = shape.attention.fp8
    if shape.use_mla:
        return ("FLASHMLA" if narrow_cache else "FLASH_ATTN_MLA") if hopper else "TRITON_MLA"
    return "FLASHINFER" if narrow_cache and not hopper else "FLASH_ATTN"


def check_backend(name: str, shape: ModelShape, hardware: Hardware) -> None:
    """Refuse a backend that cannot serve the model.

    Raises:
        PredictionError: for an unknown name, or one for the other kind of cache.
    """
    if backend_by_name(name, hardware).name.endswith("MLA") == shape.use_mla:
        return
    fitting = [known for known in ATTENTION_BACKENDS if known.endswith("MLA") == shape.use_mla]
    kind = "a latent" if shape.use_mla else "keys and values"
    raise PredictionError(
        f"attention backend {name!r} cannot serve {shape.name}, which caches {kind}: "
        f"use one of {', '.join(fitting)}"
    )
