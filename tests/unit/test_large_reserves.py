"""benchmarks/memory/large_reserves.py: who made PyTorch reserve large pieces."""

from __future__ import annotations

from benchmarks.memory.large_reserves import FRAMES, large_reserves, recorded


def test_large_pieces_are_told_with_the_innermost_calls() -> None:
    frames = [
        {"filename": f"/opt/site-packages/vllm/file{n}.py", "line": n, "name": f"call{n}"}
        for n in range(40)
    ]
    trace = [
        {"action": "alloc", "size": 256 << 20, "frames": frames},
        {"action": "segment_alloc", "size": 2 << 20, "frames": frames},
        {"action": "segment_alloc", "size": 256 << 20, "frames": frames, "stream": 7},
        {"action": "segment_free", "size": 256 << 20, "frames": frames},
    ]
    [found] = large_reserves([trace, []])
    assert (found["mib"], found["stream"]) == (256.0, 7)
    assert found["stack"][0] == "vllm/file0.py:0 call0"
    assert len(found["stack"]) == FRAMES


def test_without_a_gpu_nothing_is_recorded() -> None:
    with recorded() as found:
        pass
    assert found == [] or all(one["mib"] >= 16 for one in found)
