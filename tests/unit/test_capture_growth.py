"""What captures take of the pool of CUDA graphs, as PyTorch's allocator tells it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.memory.capture_growth import MIB, recorded
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.probe.capture import Capturer
from vllm_nfp.probe.cuda_graph import GraphPool


def segment(pool: tuple[int, int], stream: int, *blocks: tuple[int, str]) -> dict[str, Any]:
    made = [{"size": size * MIB, "state": state} for size, state in blocks]
    total = sum(size for size, _ in blocks) * MIB
    return {"segment_pool_id": pool, "stream": stream, "blocks": made, "total_size": total}


def test_the_largest_free_piece_of_the_pool_is_told_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in FP8: scratch of 32 MiB in a piece of 256 leaves 224."""
    others = [
        segment((0, 1), 7, (20, "inactive")),
        segment((0, 1), 8, (500, "inactive")),
        segment((0, 0), 7, (400, "inactive")),
    ]
    snapshot = [segment((0, 1), 7, (256, "inactive")), *others]
    reserved = [100 * MIB]

    def capture_step(self: Capturer, shape: Any) -> None:
        snapshot[0] = segment((0, 1), 7, (32, "active_allocated"), (224, "inactive"))
        reserved[0] += 12 * MIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved[0])
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: snapshot)
    monkeypatch.setattr(Capturer, "capture_step", capture_step)
    place = GraphPlace((0, 1), SimpleNamespace(cuda_stream=7), shared=True)
    device: Any = SimpleNamespace()
    runtime: Any = SimpleNamespace(forward=0, batches=0, prover=0, clock=0, ranks=0)
    capturer = Capturer(runtime, GraphPool(place, lambda _: place), device, 64)
    shape: Any = SimpleNamespace(name="B=1 N=1")
    with recorded() as found:
        capturer.capture_step(shape)
    assert found == [
        {"stage": "capture_step", "shape": "B=1 N=1", "mib": 12,
         "free_before": 256, "free_after": 224}
    ]  # fmt: skip
    capturer.capture_step(shape)
    assert len(found) == 1, "it is noted beyond its context"


def test_nothing_is_noted_without_a_gpu() -> None:
    with recorded() as found:
        pass
    assert found == []
