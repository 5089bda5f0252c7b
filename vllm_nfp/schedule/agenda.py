"""What to probe next, as the background thread has chosen it last."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types import Shape


@dataclass(frozen=True, slots=True)
class Agenda:
    """Targets in the order in which they should run; replaced whole, never changed."""

    shapes: tuple[Shape, ...] = ()
    """Each with more than one position: its pair runs it against one position. Best first."""
    settled: bool = False
    """Nothing urgent is left: pairs only refresh what is known."""
    missing_pairs: int = 0
    """Cells of the reported table whose whole step was neither measured nor inferred yet, or, where
    each point must get some pairs, the pairs that are lacking."""


NO_AGENDA = Agenda()
"""Before anything was chosen."""
