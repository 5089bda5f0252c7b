"""What a snapshot of PyTorch's allocator says of the pool of CUDA graphs."""

from __future__ import annotations

from typing import Any

from benchmarks.capture_growth import MIB, Pool, pool_of, recorded


def segment(pool: tuple[int, int], stream: int, *blocks: tuple[int, str]) -> dict[str, Any]:
    made = [{"size": size * MIB, "state": state} for size, state in blocks]
    total = sum(size for size, _ in blocks) * MIB
    return {"segment_pool_id": pool, "stream": stream, "blocks": made, "total_size": total}


def test_the_free_pieces_of_a_pool_on_its_stream_are_told() -> None:
    """As in FP8: scratch of 32 MiB in a piece of 256 leaves 224."""
    snapshot = [
        segment((0, 1), 7, (32, "active_allocated"), (224, "inactive")),
        segment((0, 1), 7, (20, "inactive")),
        segment((0, 1), 8, (500, "inactive")),
        segment((0, 0), 7, (400, "inactive")),
    ]
    assert pool_of(snapshot, (0, 1), 7) == Pool((20, 256, 500), (20, 224), 776)


def test_nothing_is_noted_without_a_gpu() -> None:
    with recorded() as found:
        pass
    assert found == []
