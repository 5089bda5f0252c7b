"""Near-free parallelism without a measurement: NFP and the curve behind it, for each cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vllm_nfp.principle.boundary import Boundary, boundary
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.idle_compute import idle_compute_nfp
from vllm_nfp.principle.modules import check_cell, modules_of
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import FloatArray, Limit
from vllm_nfp.types import Module

DEFAULT_MAX_POSITIONS = 512
MAX_POSITIONS = 8192
DEFAULT_SERVING = Serving()


@dataclass(frozen=True, slots=True)
class CellPrediction:
    """One module in one cell.

    Attributes:
        positions: N = 1, 2, ...
        seconds: t(N): of a layer's module, or of the whole step.
        fixed_seconds: the part of it that depends on nothing.
        terms: the rest by limit; with the fixed part they add up to ``seconds``.
        parts: for the whole step, seconds by part; empty for a module.
        idle_compute_nfp: by the idle-compute rule, without a cap.
        in_graphs: largest N that runs in a CUDA graph, 0 without graphs.
        boundaries: one for each tolerance.
    """

    module: Module
    batch_size: int
    context: int
    positions: tuple[int, ...]
    seconds: tuple[float, ...]
    fixed_seconds: float
    terms: Mapping[Limit, tuple[float, ...]]
    parts: Mapping[str, tuple[float, ...]]
    idle_compute_nfp: int
    in_graphs: int
    boundaries: tuple[Boundary, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``vllm-nfp predict --json``; the contract's fields come first."""

    module: Module
    batch_size: int
    context: int
    epsilon: float
    nfp: int
    idle_compute_nfp: int
    limited_by: Limit
    at_limit: bool
    largest_free: int

    def to_dict(self) -> dict[str, object]:
        """JSON-serializable."""
        return asdict(self)


def predict_cell(
    shape: ModelShape,
    target: Target,
    module: Module,
    batch_size: int,
    context: int,
    epsilons: Sequence[float],
    serving: Serving = DEFAULT_SERVING,
    max_positions: int = DEFAULT_MAX_POSITIONS,
) -> CellPrediction:
    """Predict t(N) of one module and where it leaves (1 + epsilon) t(1).

    Args:
        shape: the model.
        target: the device of each rank, and what its kernels reach.
        module: which part; a module's times are those of one layer, the mean for attention.
        batch_size: sequences in the step.
        context: tokens in the cache of each sequence before the step.
        epsilons: tolerances.
        serving: how the server runs its steps.
        max_positions: last N of the scan.

    Raises:
        PredictionError: if the model has no such module, or for a value out of bounds.
    """
    check_cell(shape, batch_size, context, module)
    step = Step(shape, target, serving, batch_size, context, _scan(max_positions))
    return _cell(step, shape, target, module, batch_size, context, epsilons)


def _cell(
    step: Step,
    shape: ModelShape,
    target: Target,
    module: Module,
    batch_size: int,
    context: int,
    epsilons: Sequence[float],
) -> CellPrediction:
    # A hardware file of strange figures may overflow: that is refused, not warned of.
    with np.errstate(all="ignore"):
        parts = step.parts() if module == "model" else {}
        cost = step.module(module)
        seconds = cost.seconds()
    if not np.isfinite(seconds).all() or seconds[0] <= 0:
        raise PredictionError(
            f"{module} at batch_size {batch_size} and context {context} has no time above 0 and "
            f"finite on {target.hardware.name}: check the figures of its hardware file"
        )
    return CellPrediction(
        module=module,
        batch_size=batch_size,
        context=context,
        positions=tuple(range(1, len(seconds) + 1)),
        seconds=tuple(seconds.tolist()),
        fixed_seconds=cost.fixed,
        terms={limit: tuple(term.tolist()) for limit, term in cost.terms.items()},
        parts={name: tuple(part.seconds().tolist()) for name, part in parts.items()},
        idle_compute_nfp=idle_compute_nfp(shape, target.hardware, batch_size, context, module),
        in_graphs=step.in_graphs,
        boundaries=tuple(boundary(cost, epsilon) for epsilon in epsilons),
    )


def predict_cells(
    shape: ModelShape,
    target: Target,
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    epsilons: Sequence[float],
    serving: Serving = DEFAULT_SERVING,
    max_positions: int = DEFAULT_MAX_POSITIONS,
) -> tuple[Row, ...]:
    """Predictions for every module that the model has, in every cell, at every epsilon.

    Raises:
        PredictionError: for a value out of bounds.
    """
    cells = predict_grid(shape, target, batch_sizes, contexts, epsilons, serving, max_positions)
    return rows_in_order(shape, (row for cell in cells for row in rows_of(cell)))


def predict_grid(
    shape: ModelShape,
    target: Target,
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    epsilons: Sequence[float],
    serving: Serving = DEFAULT_SERVING,
    max_positions: int = DEFAULT_MAX_POSITIONS,
) -> Iterator[CellPrediction]:
    """Every module in every cell, one after the other: all curves together may fill a memory.

    The modules of a cell share what the whole step has of them.

    Raises:
        PredictionError: for a value out of bounds.
    """
    scan = _scan(max_positions)
    for batch_size in batch_sizes:
        for context in contexts:
            step = Step(shape, target, serving, batch_size, context, scan)
            for module in modules_of(shape):
                check_cell(shape, batch_size, context, module)
                yield _cell(step, shape, target, module, batch_size, context, epsilons)


def rows_in_order(shape: ModelShape, rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows module by module, otherwise in the order in which they come."""
    places = {module: place for place, module in enumerate(modules_of(shape))}
    return tuple(sorted(rows, key=lambda row: places[row.module]))


def rows_of(cell: CellPrediction) -> tuple[Row, ...]:
    """The cell's boundaries as rows."""
    return tuple(
        Row(
            cell.module,
            cell.batch_size,
            cell.context,
            found.epsilon,
            found.nfp,
            cell.idle_compute_nfp,
            found.limited_by,
            found.at_limit,
            found.largest_free,
        )
        for found in cell.boundaries
    )


def _scan(max_positions: int) -> FloatArray:
    if not 1 <= max_positions <= MAX_POSITIONS:
        raise PredictionError(
            f"max_positions must lie from 1 to {MAX_POSITIONS}, not {max_positions}"
        )
    return np.arange(1, max_positions + 1, dtype=np.float64)
