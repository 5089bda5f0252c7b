"""What each first run and capture makes PyTorch reserve, and which piece of the pool it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from vllm_nfp.probe.capture import Capturer
from vllm_nfp.probe.device_memory import largest_free_block
from vllm_nfp.probe.shapes import PreparedShape

STAGES = ("warm_up", "capture_step", "capture_modules")
MIB = 1 << 20


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
        reserved, free = torch.cuda.memory_reserved(), _free_mib(self)
        original(self, shape, *args, **kwargs)
        found.append(
            {
                "stage": stage,
                "shape": shape.name,
                "mib": (torch.cuda.memory_reserved() - reserved) // MIB,
                "free_before": free,
                "free_after": _free_mib(self),
            }
        )

    return run


def _free_mib(capturer: Any) -> int | None:
    """Of the largest piece of vLLM's pool that a capture could use; None without that pool."""
    pool = capturer._pool
    return largest_free_block(pool.place) // MIB if pool.shared else None
