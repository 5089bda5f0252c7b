"""Keeps the uncompiled run of the timed modules from loading kernels that serving never loads.

A CUDA kernel is loaded with the whole module that it was compiled in, which stays in the host's
memory: on an H100 with torch 2.11 that of ``index_select``, which looks embeddings and rotary
angles up, is 65 MiB, those of a plain RMS norm 37 MiB (``python -m benchmarks.operator_memory``).
All of these stand outside every timed module. Here they run as they do where vLLM serves without
compiling, with its own kernels, and embeddings are indexed, as vLLM's sampler indexes anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet

NORMS = ("rms_norm", "fused_add_rms_norm")
VLLM_KERNELS, PLAIN = "vllm_c", "native"


@contextmanager
def light_ops() -> Iterator[None]:
    """Let embeddings and norms run small kernels, while the context lasts.

    Without a GPU nothing changes. Rotary embeddings are seen to by
    :func:`vllm_nfp.adapter.layers.fused_ops`.
    """
    patches = PatchSet()
    try:
        with ExitStack() as stack:
            if torch.cuda.is_available():
                _index_embeddings(patches)
                _use_vllm_norms(stack)
            yield
    finally:
        patches.restore()


def _index_embeddings(patches: PatchSet) -> None:
    def embedding(_original: Any) -> Any:
        def indexed(_method: Any, layer: Any, token_ids: torch.Tensor) -> torch.Tensor:
            rows: torch.Tensor = layer.weight[token_ids]
            return rows

        return indexed

    patches.wrap(targets.EMBEDDING, embedding)


def _use_vllm_norms(stack: ExitStack) -> None:
    """Prefer vLLM's kernels for norms; releases without operators of several kinds have no need."""
    try:
        from vllm import ir
    except ImportError:
        return
    for name in NORMS:
        operator = getattr(ir.ops, name, None)
        if operator is None or VLLM_KERNELS not in operator.supported_providers():
            continue
        stack.enter_context(operator.set_priority([VLLM_KERNELS, PLAIN]))
