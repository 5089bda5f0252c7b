"""Keeps the uncompiled run of the timed modules from loading kernels that serving never loads.

A CUDA kernel is loaded with the whole module that it was compiled in, which stays in the host's
memory (``python -m benchmarks.memory.operator_memory``). On an H100 with torch 2.11 the module of
``index_select``, which looks up embeddings and rotary angles, takes 65 MiB. Those of a plain RMS
norm take 37 MiB. None of these operators is part of a timed module. Here they run vLLM's own
kernels, as they do where vLLM serves without compiling. Embeddings are looked up by indexing: rows
of two tokens or more are copied by a small kernel that vLLM's sampler uses anyway. For a single
token PyTorch takes another one, whose module is 33 MiB, so that its row is looked up twice.

Activations are quantized to FP8 by vLLM's kernel as well. Under torch.compile that operator has a
plain implementation which, called from code that is not compiled, is compiled by itself: in the
middle of a probe. It is no module, so that ``fused_ops`` does not find it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet

NORMS = ("rms_norm", "fused_add_rms_norm")
"""Operators of ``vllm.ir``, which every known release has (sources of 0.29.0 and 0.32.0)."""
VLLM_KERNELS, PLAIN = "vllm_c", "native"


@contextmanager
def light_ops() -> Iterator[None]:
    """Have embeddings, norms and FP8 activations run small kernels while the context lasts.

    Without a GPU nothing changes. :func:`vllm_nfp.adapter.layer_hooks.fused_ops` does the same for
    rotary embeddings.
    """
    patches = PatchSet()
    try:
        with ExitStack() as stack:
            if torch.cuda.is_available():
                _index_embeddings(patches)
                _quantize_by_kernel(patches)
                _use_vllm_norms(stack)
            yield
    finally:
        patches.restore()


def _index_embeddings(patches: PatchSet) -> None:
    def embedding(_original: Any) -> Any:
        def indexed(_method: Any, layer: Any, token_ids: torch.Tensor) -> torch.Tensor:
            count = len(token_ids)
            if count == 1:
                token_ids = _twice(token_ids)
            rows: torch.Tensor = layer.weight[token_ids]
            return rows[:count]

        return indexed

    patches.wrap(targets.EMBEDDING, embedding)


def _quantize_by_kernel(patches: PatchSet) -> None:
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8

    def forward(original: Any) -> Any:
        def chosen(op: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(op, QuantFP8):
                return op.forward_cuda(*args, **kwargs)
            return original(op, *args, **kwargs)

        return chosen

    patches.wrap(targets.CUSTOM_OP, forward)


def _twice(token_id: torch.Tensor) -> torch.Tensor:
    """The only value two times, by copies of memory, which are no kernels."""
    pair = token_id.new_empty(2)
    for place in range(2):
        pair[place : place + 1].copy_(token_id)
    return pair


def _use_vllm_norms(stack: ExitStack) -> None:
    """Prefer vLLM's own kernels for norms, where it was built with them."""
    from vllm import ir

    for name in NORMS:
        operator = getattr(ir.ops, name)
        if VLLM_KERNELS in operator.supported_providers():
            stack.enter_context(operator.set_priority([VLLM_KERNELS, PLAIN]))
