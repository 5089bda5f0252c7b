"""Which code makes PyTorch reserve a large piece of a GPU's memory, from its own history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

LEAST_MIB = 16
"""Of a piece that is told."""
FRAMES = 14
"""Innermost calls that are kept of a stack."""
MOST_EVENTS = 200_000
RESERVED = "segment_alloc", "segment_map"
"""Events of PyTorch's history in which it takes memory from the driver."""


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Keep PyTorch's history, and fill the list at the end; it stays empty without a GPU."""
    found: list[dict[str, Any]] = []
    if not torch.cuda.is_available():
        yield found
        return
    torch.cuda.memory._record_memory_history(  # no public call keeps stacks
        enabled="all", context="alloc", stacks="python", max_entries=MOST_EVENTS
    )
    try:
        yield found
    finally:
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(enabled=None)
        found += large_reserves(snapshot["device_traces"])


def large_reserves(traces: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The large pieces in the order in which they were taken.

    Args:
        traces: of each device, events with ``action``, ``size`` in bytes, and ``frames``, the
            innermost first.
    """
    return [
        {
            "mib": round(event["size"] / (1 << 20), 1),
            "stream": event.get("stream", 0),
            "stack": [
                f"{frame['filename'].rpartition('site-packages/')[2]}:{frame['line']} "
                f"{frame['name']}"
                for frame in event.get("frames", ())[:FRAMES]
            ],
        }
        for trace in traces
        for event in trace
        if event["action"] in RESERVED and event["size"] >= LEAST_MIB << 20
    ]
