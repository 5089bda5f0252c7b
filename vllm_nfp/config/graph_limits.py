"""Limits of the probe's CUDA graphs, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Limits of the probe's CUDA graphs."""

    memory_mib: int
    host_mib: int | None
    """None: no limit."""
    shared_pool: bool
    """The graphs use vLLM's graph memory pool."""
    capture_seconds: float
    """At startup."""


GRAPHS_ALONE = GraphLimits(64, 64, shared_pool=True, capture_seconds=3.0)
GRAPHS_TOGETHER = GraphLimits(2048, None, shared_pool=False, capture_seconds=20.0)
"""Several ranks capture all graphs at startup, and each shape keeps its graphs."""
