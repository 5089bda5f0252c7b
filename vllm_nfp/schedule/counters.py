"""What the serving side has counted, as a value that another thread may publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_nfp.types import EngineStep


@dataclass(frozen=True, slots=True)
class Counters:
    """All counts since the start, as of one step."""

    probes: Mapping[str, int] = field(default_factory=dict)
    """By outcome."""
    probe_seconds: float = 0.0
    overhead_ratio: float = 0.0
    last_step: EngineStep | None = None
    """The latest decode step that was looked at."""
    missing_pairs: int = 0
    """Pairs that points which matter still lack."""
    idle_probe_seconds: float = 0.0
    step_ratio: float = 0.0
    budget_slack: float = 1.0
    graph_bytes: int = 0
