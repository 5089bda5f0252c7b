"""Sums of pieces of GPU memory by one Triton kernel, in which every word and its place count.

Triton compiles the kernel alone: it costs the host's memory 3 MiB where Triton is in use. PyTorch's
kernels for the same work (indexing, a sum, a concatenation) come in modules of 10 to 50 MiB each
(``docs/overhead.md``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from vllm_nfp.adapter.compiling import compiling_unreported

WORD_BYTES = 4
TILE = 1024
"""Words that a program of the kernel reads at a time."""


def whole_words(spans: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(address, bytes) of each span as (address, words), widened to whole words on both sides.

    An allocation on a GPU begins and ends at whole words, so that a widened span stays inside it.
    """
    first = spans[:, 0] // WORD_BYTES * WORD_BYTES
    words = -((first - spans.sum(1)) // WORD_BYTES)
    return np.stack([first, words], axis=1)


def span_sums(spans: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Sums of spans of the device's memory, int64 [spans]; enqueued on the current stream.

    A word's term is a mix of its value and its place, and a mix that gives different values for
    different words: one changed word always changes the sum, and words that change places do unless
    four terms of 32 bits happen to cancel out.

    Args:
        spans: (address, bytes) of each, int64 [spans, 2]; a span has less than 8 GiB.
    """
    sums = torch.empty(len(spans), dtype=torch.int64, device=device)
    if len(spans):
        host = torch.from_numpy(whole_words(spans))
        if device.type == "cuda":
            host = host.pin_memory()
        _sum_spans[(len(spans),)](host.to(device, non_blocking=True), sums, TILE=TILE)
    return sums


def span_sums_at_start(spans: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """As :func:`span_sums`, without the report of a compilation; for the start only.

    The first launch compiles the kernel.
    """
    with compiling_unreported():
        return span_sums(spans, device)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_spans(spans, sums, TILE: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    number = tl.program_id(0)
    start = tl.load(spans + 2 * number).to(tl.pointer_type(tl.uint32))
    words = tl.load(spans + 2 * number + 1).to(tl.int32)
    lanes = tl.arange(0, TILE)
    total = tl.zeros((TILE,), dtype=tl.int64)
    for first in range(0, words, TILE):
        place = first + lanes
        mixed = tl.load(start + place, mask=place < words, other=0)
        # The finalizer of MurmurHash3, which is a bijection.
        mixed += place.to(tl.uint32) * 0x9E3779B9
        mixed ^= mixed >> 16
        mixed *= 0x85EBCA6B
        mixed ^= mixed >> 13
        mixed *= 0xC2B2AE35
        mixed ^= mixed >> 16
        total += mixed.to(tl.int64)
    tl.store(sums + number, tl.sum(total))
