"""The attention backend that vLLM takes for a model on a device if nobody names one."""

from __future__ import annotations

from vllm_nfp.principle.attention import ATTENTION_BACKENDS, FLASH_ATTN_3, backend_by_name
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.idle_compute import PredictionError
from vllm_nfp.principle.shape import ModelShape


def default_backend(shape: ModelShape, hardware: Hardware) -> str:
    """First in vLLM 0.32's order (_get_backend_priorities in platforms/cuda.py and rocm.py).

    Of those that take the cache's type. Where vLLM would take one whose rules are not known here
    (ROCM_ATTN on AMD), the next in its order.
    """
    if hardware.name.startswith("MI"):
        return "TRITON_MLA" if shape.use_mla else "TRITON_ATTN"
    if hardware.name.startswith(("B200", "B300", "GB")):
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
