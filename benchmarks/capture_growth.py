"""What each first run and capture makes PyTorch reserve, and which pieces of the pool it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from vllm_nfp.probe.capture import Capturer
from vllm_nfp.probe.shapes import PreparedShape

STAGES = ("warm_up", "capture_step", "capture_modules")
MOST_PIECES = 8
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Pool:
    """MiB of a memory pool of CUDA graphs.

    Attributes:
        segments: the largest ones, ascending.
        free: the largest pieces that a capture on the pool's stream could use, ascending.
        total: of all segments.
    """

    segments: tuple[int, ...]
    free: tuple[int, ...]
    total: int


def pool_of(snapshot: Iterable[Mapping[str, Any]], pool: tuple[int, ...], stream: int) -> Pool:
    """A pool in a snapshot of PyTorch's allocator."""
    mine = [one for one in snapshot if tuple(one.get("segment_pool_id", ())) == pool]
    sizes = sorted(segment["total_size"] // MIB for segment in mine)
    free = sorted(
        block["size"] // MIB
        for segment in mine
        if segment["stream"] == stream
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return Pool(tuple(sizes[-MOST_PIECES:]), tuple(free[-MOST_PIECES:]), sum(sizes))


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Note the stages of every shape while the context lasts; nothing without a GPU."""
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if torch.cuda.is_available():
            for stage in STAGES:
                original = getattr(Capturer, stage)
                watched = _watched(stage, original, found)
                stack.enter_context(mock.patch.object(Capturer, stage, watched))
        yield found


def _watched(stage: str, original: Any, found: list[dict[str, Any]]) -> Any:
    def run(self: Any, shape: PreparedShape, *args: Any, **kwargs: Any) -> None:
        reserved, before = torch.cuda.memory_reserved(), _pool_now(self)
        original(self, shape, *args, **kwargs)
        grown = (torch.cuda.memory_reserved() - reserved) // MIB
        after = _pool_now(self)
        found.append(
            {
                "stage": stage,
                "shape": shape.name,
                "mib": grown,
                "free_before": before and before.free,
                "free_after": after and after.free,
                "pool_mib": after and after.total,
            }
        )

    return run


def _pool_now(capturer: Any) -> Pool | None:
    pool = capturer._pool
    if not pool.shared:
        return None
    stream = int(pool.place.stream.cuda_stream)
    return pool_of(torch.cuda.memory_snapshot(), tuple(pool.place.pool), stream)
