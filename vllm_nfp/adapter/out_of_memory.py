"""Lack of GPU memory: told from other errors, and turned into the refusal of a shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vllm_nfp.adapter.attention_groups import CellDoesNotFitError
from vllm_nfp.faults import out_of_memory
from vllm_nfp.types import RefusedForNowError, ShapeRefusedError

_STABLE_ABI_ALLOCATIONS = ("aten::new_empty", "aten::empty")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation on the GPU failed.

    Kernels behind torch's stable ABI, FlashAttention 3 among them, report it as a plain
    RuntimeError that names the allocating call (seen with vLLM 0.32 on an H100).
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "API call failed" in text and any(name in text for name in _STABLE_ABI_ALLOCATIONS)


def maybe_out_of_memory() -> None:
    """Fail as an allocation does, where a test asks for it."""
    if out_of_memory():
        raise torch.OutOfMemoryError("fault injected: CUDA out of memory")


@contextmanager
def refused_without_memory() -> Iterator[None]:
    """Turn a lack of GPU memory, or of KV blocks, into the refusal of a shape.

    GPU memory may be there again later, since others use it as well. KV blocks never are: the
    cache keeps its size.

    Raises:
        RefusedForNowError: where GPU memory was lacking.
        ShapeRefusedError: where KV blocks were lacking.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CellDoesNotFitError):
            raise ShapeRefusedError(str(error)) from error
        if is_out_of_memory(error):
            raise RefusedForNowError(str(error)) from error
        raise
