"""What is estimated for one cell."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types import Boundary, Cell, CurvePoint


@dataclass(frozen=True, slots=True)
class CellEstimate:
    """The curve of one cell and its boundary at each epsilon."""

    cell: Cell
    curve: tuple[CurvePoint, ...]
    """On the measured grid, ascending; the first point is N = 1 with ratio 1."""
    boundaries: tuple[Boundary, ...]
