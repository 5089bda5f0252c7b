"""What the serving side has counted, as a value that another thread may publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_nfp.types import EngineStep, Shape


@dataclass(frozen=True, slots=True)
class Counters:
    """All counts since the start, as of one step."""

    probes: Mapping[str, int] = field(default_factory=dict)
    """By outcome."""
    probe_seconds: float = 0.0
    overhead_ratio: float = 0.0
    last_step: EngineStep | None = None
    """The latest decode step that was looked at."""
    idle_probe_seconds: float = 0.0
    step_ratio: float = 0.0
    budget_slack: float = 1.0
    """Fraction of the budget that the load has left, over the last steps."""
    graph_bytes: int = 0
    refused: frozenset[Shape] = frozenset()
    """Targets that can never be run here."""
    put_off: frozenset[Shape] = frozenset()
    """Targets that cannot be run for now; they are tried again after a while."""
    ready: frozenset[tuple[int, int]] = frozenset()
    """(batch size, positions) of the shapes that lack nothing to be run, at any context."""
    written_contexts: tuple[int, ...] | None = None
    """Tokens that a sequence may have to read a real one's context, of each, the most first; None:
    it does not matter what KV blocks hold."""
    piece_seconds: float = 0.0
    """Recent mean cost of one piece of what a shape lacks, such as a graph; 0 before the first."""
    wants_agenda: bool = False
    """All of the agenda has run, and it was not settled: the next one is wanted at once."""

    def has_content(self, shape: Shape) -> bool:
        """Whether each sequence of a run would read a real one's context, or need not."""
        known, last = self.written_contexts, shape.batch_size - 1
        return known is None or (
            last < len(known) and known[last] >= shape.context + shape.positions
        )
