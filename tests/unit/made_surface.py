"""What a cost surface says of a Llama 8B on an H100 at the default rows, from a few made pairs.

Nine batch sizes and four contexts: some answers are measured, some inferred, some predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from benchmarks.serving.shapes import SHAPES
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results.gather import Results
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.table import plain_table
from vllm_nfp.surface import RECORDED, CostSurface, Prior, predicted_prior
from vllm_nfp.types import (
    Boundary,
    CurvePoint,
    LiveStep,
    Module,
    PairResult,
    Shape,
    State,
    Timing,
)

T = TypeVar("T", CurvePoint, Boundary)

CONFIG = SHAPES["llama-3.1-8b"]
BATCH_SIZES = tuple(1 << i for i in range(9))
CONTEXTS = (256, 1024, 4096, 16384)
POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
EPSILONS = (0.05, 0.1, 0.2)
MODULES = (Module.MODEL, Module.ATTENTION, Module.DENSE_FFN)
MEASURED = tuple(
    Shape(b, c, n) for b, c in ((1, 1024), (8, 4096), (32, 1024)) for n in POSITIONS if n > 1
)
LIVE = LiveStep(batch_size=6, context=4000, positions=1)
ERROR = 0.01
"""Log of measured over predicted ratios."""


def made_prior() -> Prior:
    """The prediction for the model."""
    sizes = (1, 2, 4, *range(8, 513, 8))
    serving = Serving(graphs=CapturedGraphs(sizes))
    return predicted_prior(shape_from_config(CONFIG), target_of("H100-SXM"), serving, 32)


def made_snapshot(measured: tuple[Shape, ...] = MEASURED) -> Snapshot:
    """The hand-over of an engine whose probe has run three pairs of each of these shapes."""
    prior = made_prior()
    config = ProbeConfig(
        batch_sizes=BATCH_SIZES, contexts=CONTEXTS, positions=POSITIONS, epsilons=EPSILONS
    )
    table = plain_table(
        BATCH_SIZES, CONTEXTS, POSITIONS, 1 << 20, 1 << 20,
        lambda b, n: "full" if prior(b, 256).in_graph[n - 1] else "none",
    )  # fmt: skip
    results = Results(config, CostSurface(prior, RECORDED), table)
    for shape in 3 * measured:
        results.add(_pair(prior, shape), 0.0)
    results.update(0.0)
    found = results.findings
    return Snapshot(
        "llama-8b", "0", State.PROBING, probes={"startup": len(measured)}, overhead_budget=0.01,
        curves=found.curves, boundaries=found.boundaries, prior="predicted",
        live=LIVE,
        live_curves=tuple(map(_at_live, _of_row(found.curves))),
        live_boundaries=tuple(map(_at_live, _of_row(found.boundaries))),
    )  # fmt: skip


def _of_row(rows: Iterable[T]) -> Iterable[T]:
    return (row for row in rows if row.cell == ("model", 8, 4096))


def _at_live(row: T) -> T:
    """What is said of the nearest reported row, as if it were the live batch size and context."""
    return replace(row, batch_size=LIVE.batch_size, context=LIVE.context)


def _pair(prior: Prior, shape: Shape) -> PairResult:
    """What the prior expects, but for the error."""
    cell = prior(shape.batch_size, shape.context)

    def run(positions: int, error: float) -> Timing:
        step, *modules = (
            math.exp(cell.log_seconds(module)[positions - 1] + error) for module in MODULES
        )
        at = Shape(shape.batch_size, shape.context, positions)
        layers = CONFIG["num_hidden_layers"]
        assert isinstance(layers, int)
        each = {m: s / layers for m, s in zip(MODULES[1:], modules, strict=True)}
        return Timing(at, step, 0.0, each, (), "full" if cell.in_graph[positions - 1] else "none")

    return PairResult(run(shape.positions, ERROR), run(1, 0.0), True, 0.01)
