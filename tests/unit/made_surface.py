"""What a cost surface says of a Llama 8B on an H100 at the default rows, from a few made pairs.

Nine batch sizes and four contexts: some answers are measured, some inferred, some predicted.
"""

from __future__ import annotations

from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.surface import (
    RECORDED,
    CellAnswer,
    Observations,
    Prior,
    Ratio,
    answers,
    block_of,
    boundary,
    condition,
    predicted_prior,
    questions,
)
from vllm_nfp.types import Boundary, CurvePoint, LiveStep, Module, Shape, State

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
BATCH_SIZES = tuple(1 << i for i in range(9))
CONTEXTS = (256, 1024, 4096, 16384)
POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
EPSILONS = (0.05, 0.1, 0.2)
MODULES = (Module.MODEL, Module.ATTENTION, Module.DENSE_FFN)
MEASURED = tuple(
    Shape(b, c, n) for b, c in ((1, 1024), (8, 4096), (32, 1024)) for n in POSITIONS if n > 1
)
ERROR = 0.01
"""Log of measured over predicted ratios."""


def made_prior() -> Prior:
    """The prediction for the model."""
    sizes = (1, 2, 4, *range(8, 513, 8))
    serving = Serving(capture_sizes=sizes)
    return predicted_prior(shape_from_config(CONFIG), target_of("H100-SXM"), serving, 32)


def made_snapshot(measured: tuple[Shape, ...] = MEASURED) -> Snapshot:
    """The hand-over of an engine whose probe has run a pair of each of these shapes."""
    prior = made_prior()
    posterior = condition(prior, RECORDED, _seen(prior, measured))
    cells = [(m, b, c) for m in MODULES for b in BATCH_SIZES for c in CONTEXTS]
    found = answers(posterior, questions(prior, posterior.hyper, cells, POSITIONS))
    curves: list[CurvePoint] = []
    boundaries: list[Boundary] = []
    for cell in cells:
        answer = found[block_of(*cell)]
        curves += _curve(answer, *cell, prior, measured)
        boundaries += [_boundary(answer, *cell, epsilon) for epsilon in EPSILONS]
    return Snapshot(
        "llama-8b", "0", State.PROBING, probes={"startup": len(measured)}, overhead_budget=0.01,
        curves=tuple(curves), boundaries=tuple(boundaries), prior="predicted",
        live=LiveStep(6, 4000, 1),
        live_boundaries=tuple(row for row in boundaries if row.cell == ("model", 8, 4096)),
    )  # fmt: skip


def _seen(prior: Prior, measured: tuple[Shape, ...]) -> Observations:
    def expected(module: Module, shape: Shape) -> float:
        curve = prior(shape.batch_size, shape.context).log_seconds(module)
        return float(curve[shape.positions - 1] - curve[0])

    return Observations(
        tuple(Ratio(m, s, expected(m, s) + ERROR, 1e-5, 3) for s in measured for m in MODULES)
    )


def _curve(
    answer: CellAnswer, module: Module, batch_size: int, context: int, prior: Prior,
    measured: tuple[Shape, ...],
) -> list[CurvePoint]:  # fmt: skip
    lower, upper = answer.interval
    cell = prior(batch_size, context)
    first = float(cell.seconds[0:].sum(axis=0)[0])
    return [
        CurvePoint(
            module, batch_size, context, n,
            3 * (Shape(batch_size, context, n) in measured),
            first * answer.ratio[i], float(answer.ratio[i]), float(lower[i]), float(upper[i]),
            "full" if cell.in_graph[n - 1] else "none", basis=answer.basis[i],
        )
        for i, n in enumerate(POSITIONS)
    ]  # fmt: skip


def _boundary(
    answer: CellAnswer, module: Module, batch_size: int, context: int, epsilon: float
) -> Boundary:
    found = boundary(answer, epsilon)
    return Boundary(
        module, batch_size, context, epsilon, found.positions, found.lower, found.upper,
        found.at_limit, found.positions, found.basis,
    )  # fmt: skip
