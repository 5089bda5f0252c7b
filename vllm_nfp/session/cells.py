"""The cells of the settings: which can be probed, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nfp.probe.engine import ProbeEngine
from vllm_nfp.results.table import Table
from vllm_nfp.session.worker import Worker
from vllm_nfp.types import CellKey, Shape, cell_name

logger = logging.getLogger("vllm.nfp")


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of the settings."""

    grids: Mapping[CellKey, tuple[int, ...]]
    """Position counts beyond 1 of each cell that can be probed."""
    skipped: Mapping[CellKey, str]
    """Why the others cannot be."""

    @property
    def largest(self) -> Shape:
        """The most sequences, tokens of a context, and positions, of any cell.

        Raises:
            ValueError: if no cell can be probed.
        """
        sequences, contexts = zip(*self.grids, strict=True)
        return Shape(max(sequences), max(contexts), max(map(max, self.grids.values())))


def cells_of(worker: Worker, engine: ProbeEngine) -> Cells:
    """Which cells can be probed here."""
    grids: dict[CellKey, tuple[int, ...]] = {}
    skipped: dict[CellKey, str] = {}
    for batch_size, context in worker.cells:
        reason = engine.refusal(batch_size, context)
        beyond_one = engine.positions(batch_size, context)[1:] if reason is None else ()
        if beyond_one:
            grids[batch_size, context] = beyond_one
        else:
            skipped[batch_size, context] = reason or "no shape has a CUDA graph"
    return Cells(grids, skipped)


def log_skipped(skipped: Mapping[CellKey, str], table: Table) -> None:
    """One line of the cells that are not probed; each by itself is for debugging."""
    if not skipped:
        return
    kinds = (
        ("left out", [c for c in skipped if c not in table.cells]),
        ("answered from the others", [c for c in skipped if c in table.cells]),
    )
    told = (
        f"{len(cells)} {what} (such as {cell_name(cells[0])}: {skipped[cells[0]]})"
        for what, cells in kinds
        if cells
    )
    logger.info("vllm-nfp: %d cells are not probed: %s", len(skipped), ", ".join(told))
    for cell, reason in skipped.items():
        logger.debug("vllm-nfp: cell %s is not probed: %s", cell_name(cell), reason)
