"""The token counts of CUDA graphs that vLLM captures for decode steps of N positions."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class RunSteps:
    """Steps of one batch size as they run, for an array of N."""

    tokens: FloatArray
    """Those of the step's graph, or its own if no graph holds it; shape [n]."""
    in_graph: NDArray[np.bool_]
    """Whether a graph holds the step, shape [n]."""


@dataclass(frozen=True, slots=True)
class CapturedGraphs:
    """The CUDA graphs that vLLM captures for steps."""

    sizes: tuple[int, ...] = ()
    """Their tokens before any rounding (``cudagraph_capture_sizes``), ascending; empty: there are
    no graphs."""
    any_mix_up_to: int = 0
    """Most positions of a sequence in graphs that fit any split of their tokens among sequences, as
    adaptive verification captures them; 0: there are none."""

    @property
    def largest(self) -> int:
        """The largest capture size in tokens; 0 if there are no graphs."""
        return max(self.sizes, default=0)

    def size_for(self, tokens: int) -> int | None:
        """Smallest capture size that holds so many tokens in any split; None if none does."""
        return _first_at_least(self.sizes, tokens)

    def padded_tokens(self, batch_size: int, positions: int) -> int | None:
        """Tokens that a step of ``batch_size`` sequences runs with; None if no graph holds it."""
        tokens = batch_size * positions
        if positions <= self.any_mix_up_to:
            return self.size_for(tokens)
        return _first_at_least(uniform_sizes(self.sizes, positions), tokens)

    def run_steps(self, batch_size: int, positions: FloatArray) -> RunSteps:
        """Steps of ``batch_size`` sequences.

        Args:
            positions: N, shape [n].
        """
        held = [self.padded_tokens(batch_size, int(n)) for n in positions]
        in_graph = np.array([size is not None for size in held], dtype=np.bool_)
        graph = np.array([size or 0 for size in held], dtype=np.float64)
        return RunSteps(np.where(in_graph, graph, batch_size * positions), in_graph)


DEFAULT_GRAPHS = CapturedGraphs(DEFAULT_CAPTURE_SIZES)


def _first_at_least(sizes: tuple[int, ...], tokens: int) -> int | None:
    index = bisect.bisect_left(sizes, tokens)
    return sizes[index] if index < len(sizes) else None
