"""Keeps the uncompiled run of the timed modules from loading kernels that serving never loads.

A CUDA kernel is loaded with the whole module that it was compiled in, which stays in the host's
memory: PyTorch's embedding brings 63 MiB, the plain RMS norm of vLLM 37 MiB (H100, torch 2.11,
``python -m benchmarks.switched --attach-only``). Both stand outside every timed module, and other
kernels compute the same: one of a few lines, and vLLM's own norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch

from vllm_nfp.engine.patch import PatchSet

NORMS = ("rms_norm", "fused_add_rms_norm")
VLLM_KERNELS, PLAIN = "vllm_c", "native"
COLUMNS = 1024
"""Of a row, that one program copies."""


@contextmanager
def light_ops() -> Iterator[None]:
    """Let embeddings and norms run small kernels, while the context lasts; without a GPU nothing
    changes."""
    patches = PatchSet()
    try:
        with ExitStack() as stack:
            if torch.cuda.is_available():
                _copy_rows(patches)
                _use_vllm_norms(stack)
            yield
    finally:
        patches.restore()


def _copy_rows(patches: PatchSet) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    def embedding(original: Any) -> Any:
        def copied(method: Any, layer: Any, token_ids: torch.Tensor) -> torch.Tensor:
            weight = layer.weight
            if not (weight.is_cuda and weight.is_contiguous() and weight.dim() == 2):
                found: torch.Tensor = original(method, layer, token_ids)
                return found
            return rows_of(weight, token_ids)

        return copied

    patches.wrap(UnquantizedEmbeddingMethod, "embedding", embedding)


def rows_of(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a contiguous matrix on a GPU, as ``torch.nn.functional.embedding`` gives them.

    Args:
        weight: [rows, width].
        ids: integers below the number of rows, of any shape.

    Returns:
        [*ids.shape, width], of the matrix's type.
    """
    width = weight.shape[1]
    rows = torch.empty((*ids.shape, width), dtype=weight.dtype, device=weight.device)
    if rows.numel():
        grid = (ids.numel(), -(-width // COLUMNS))
        _kernel()[grid](weight, ids.contiguous(), rows, width, COLUMNS)
    return rows


@cache
def _kernel() -> Any:
    from vllm_nfp.engine.row_kernel import copy_rows

    return copy_rows


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
