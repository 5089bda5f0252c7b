"""The token counts of CUDA graphs that vLLM captures for decode steps of N positions."""

from __future__ import annotations

import bisect
from functools import lru_cache

import numpy as np

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.terms import FloatArray

DEFAULT_CAPTURE_SIZES: tuple[int, ...] = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""vLLM 0.32's cudagraph_capture_sizes where max_num_seqs is 256 or more (config/vllm.py)."""


BLACKWELL_CAPTURE_SIZES: tuple[int, ...] = (*DEFAULT_CAPTURE_SIZES, *range(528, 1025, 16))
"""The same on devices of compute capability 10."""


def default_capture_sizes(hardware: Hardware) -> tuple[int, ...]:
    """What vLLM 0.32 captures on the device: up to 1024 tokens on data-center Blackwell."""
    return BLACKWELL_CAPTURE_SIZES if hardware.capability_10 else DEFAULT_CAPTURE_SIZES


@lru_cache(maxsize=4096)
def uniform_sizes(capture_sizes: tuple[int, ...], positions: int) -> tuple[int, ...]:
    """Sizes of the graphs for N positions per sequence, ascending.

    After ``CudaGraphManager._init_candidates`` of vLLM's V2 runner: every capture size is rounded
    up to a multiple of N, and sizes beyond the largest capture size are left out.
    """
    if not capture_sizes:
        return ()
    largest = max(capture_sizes)
    rounded = {-(-size // positions) * positions for size in capture_sizes}
    return tuple(sorted(size for size in rounded if size <= largest))


def padded_tokens(
    capture_sizes: tuple[int, ...], batch_size: int, positions: int, any_mix_up_to: int = 0
) -> int | None:
    """Tokens that a step of ``batch_size`` sequences runs with; None if no graph holds it.

    Args:
        any_mix_up_to: most positions of a sequence in graphs that fit any split of their tokens, as
            adaptive verification captures them; 0: there are none.
    """
    mixes = positions <= any_mix_up_to
    sizes = capture_sizes if mixes else uniform_sizes(capture_sizes, positions)
    index = bisect.bisect_left(sizes, batch_size * positions)
    return sizes[index] if index < len(sizes) else None


def run_with(
    capture_sizes: tuple[int, ...],
    batch_size: int,
    positions: FloatArray,
    any_mix_up_to: int = 0,
) -> FloatArray:
    """Tokens that each step runs with: those of its graph, or its own if no graph holds it.

    Args:
        positions: N, shape [n].
        any_mix_up_to: see :func:`padded_tokens`.
    """
    tokens = [
        padded_tokens(capture_sizes, batch_size, int(n), any_mix_up_to) or batch_size * n
        for n in positions
    ]
    return np.array(tokens, dtype=np.float64)


def largest_captured(
    capture_sizes: tuple[int, ...],
    batch_size: int,
    positions: FloatArray,
    any_mix_up_to: int = 0,
) -> int:
    """Largest N for which a CUDA graph was captured; 0 if there are none at all.

    Args:
        any_mix_up_to: see :func:`padded_tokens`.
    """
    counts = [int(n) for n in positions]
    held = (n for n in counts if padded_tokens(capture_sizes, batch_size, n, any_mix_up_to))
    return max(held, default=0)
