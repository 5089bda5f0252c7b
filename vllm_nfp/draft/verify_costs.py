"""What a decode step costs at the contexts of one moment, as ranks hand it to one another.

vLLM's adaptive verification asks, at every step, what so many tokens cost, and trims drafts by the
answer. The answer here is that of the surface for the number of requests that run and for their
contexts. docs/adaptive-verification.md describes it. :mod:`vllm_nfp.draft.cost_rows` makes the rows
of the surface's answers, and :mod:`vllm_nfp.draft.cost_tables` the tables that steps look up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.results.snapshot import hand_over_file, read_hand_over
from vllm_nfp.types.shapes import Above0, Count, NotBelow0, Size

SCHEMA = 2
NEXT_ROW = 2.0
"""Batch sizes of two rows between which a step is priced: the reported ones are powers of two."""
SAME_ROW = 0.005
"""Change of a time, as a fraction, that no choice of drafts depends on: half the error of a median
of real steps (:data:`vllm_nfp.surface.noise.STEP_DEVIATION`)."""
SAME_REST = 0.02
"""Change of the time beside a step's work, as a fraction of the shortest step of its batch size,
that no choice depends on. All of 1.4 ms beside 5 ms loses 0.5 % of goodput where it is not priced
(2026-11-28, recorded drafts; docs/adaptive-verification.md)."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """Steps of one batch size, at the context of the costs."""

    batch_size: Size
    seconds: tuple[Above0, ...]
    """With 1, 2, 3, ... positions per sequence."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What bounds a step apart from the device's work on the model and drafts."""

    seconds: NotBelow0 = 0.0
    """Time that is added to this work: sampling, and what else does not run beside it."""
    least: NotBelow0 = 0.0
    """Seconds of a step without its drafting below which it cannot be: the host works as long."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is beside the work of steps of one batch size."""

    batch_size: Size
    whole: Beside
    """Of steps that verify all their drafts."""
    cut: Beside
    """Of steps that verify some."""


@dataclass(frozen=True, slots=True)
class VerifyCosts:
    """What decode steps cost at the contexts of one moment; replaced whole, alike on all ranks."""

    engine: str
    version: Count
    context: Count
    """Mean over the sequences, in tokens."""
    rows: tuple[CostRow, ...]
    """By batch size, ascending."""
    rests: tuple[Rest, ...] = ()
    """The same."""
    schema: int = SCHEMA


def rest_at(rests: Sequence[Rest], batch_size: int) -> tuple[Beside, Beside]:
    """What is beside whole and cut steps, at the nearest batch size that is known.

    None is known beyond the distance of two rows.
    """
    near = min(rests, key=lambda rest: abs(math.log(rest.batch_size / batch_size)), default=None)
    if near is None or not 1 / NEXT_ROW <= near.batch_size / batch_size <= NEXT_ROW:
        return Beside(), Beside()
    return near.whole, near.cut


def same_rows(rows: Sequence[CostRow], others: Sequence[CostRow]) -> bool:
    """Whether no choice depends on which of the two is in force."""
    if [row.batch_size for row in rows] != [row.batch_size for row in others]:
        return False
    return all(
        abs(a / b - 1.0) <= SAME_ROW
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row.seconds, other.seconds, strict=True)
    )


def same_rests(rows: Iterable[CostRow], rests: Sequence[Rest], others: Sequence[Rest]) -> bool:
    """Whether no choice depends on which of the two is in force."""
    return all(
        abs(a - b) <= SAME_REST * min(row.seconds)
        for row in rows
        for one, other in zip(
            rest_at(rests, row.batch_size), rest_at(others, row.batch_size), strict=True
        )
        for a, b in ((one.seconds, other.seconds), (one.least, other.least))
    )


def cost_file(run_dir: str, engine: str) -> Path:
    """The file that takes the costs from the rank that leads to the others.

    Raises:
        SnapshotError: for an engine index that is not a number.
    """
    return hand_over_file(run_dir, "costs", engine)


def read_costs(path: Path) -> VerifyCosts:
    """Read such a file, trusting nothing in it.

    Raises:
        SnapshotError: if it holds no costs, or none that could be used.
        OSError: if it cannot be read, or is a link.
    """
    return read_hand_over(path, VerifyCosts, SCHEMA)
