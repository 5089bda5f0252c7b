"""A predicted cell in words and numbers: what its time consists of, and what limits its NFP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.principle.boundary import Boundary
from vllm_nfp.principle.granularity import granularity
from vllm_nfp.principle.predict import CellPrediction
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.principle.terms import Limit
from vllm_nfp.text import duration
from vllm_nfp.types import Module

MEANINGS: Mapping[Limit, str] = {
    "memory": "bytes read and written",
    "tile": "work of partly filled tiles, and the library's choice of tiles",
    "wave": "idle SMs in a partly filled wave",
    "experts": "weights of the active experts",
    "query_block": "query rows padded to whole blocks",
    "graph_padding": "tokens padded to the next captured CUDA graph",
    "compute": "arithmetic that memory traffic does not hide",
    "lm_head": "logits of every position",
    "communication": "transfers between ranks",
}
NEGLIGIBLE = 1e-4
"""Terms below this fraction of the time at every shown N get no line."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of one term or part at each of the explanation's N."""

    name: str
    meaning: str
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One module in one cell.

    Attributes:
        positions: N = 1, NFP, and the first N above the tolerance; fewer if they coincide.
        terms: seconds by limit; they add up to ``total``.
        parts: the same by part of the step; empty for a module.
        sentences: what the numbers mean.
    """

    module: Module
    batch_size: int
    context: int
    positions: tuple[int, ...]
    terms: tuple[Line, ...]
    parts: tuple[Line, ...]
    total: Line
    sentences: tuple[str, ...]


def explain(predictions: Predictions, module: Module, batch_size: int, context: int) -> Explanation:
    """Explain a cell at the first tolerance of the predictions.

    Raises:
        PredictionError: if the model has no such module, or for a value out of bounds.
    """
    cell = predictions.cell(module, batch_size, context)
    found = cell.boundaries[0]
    last = found.nfp if found.at_limit else found.nfp + 1
    positions = tuple(sorted({1, found.nfp, last}))
    total = _line("all", "", cell.seconds, positions)
    fixed = Line(
        "fixed", "launches, starts and ends of kernels", (cell.fixed_seconds,) * len(positions)
    )
    terms = [_line(limit, MEANINGS[limit], cell.terms[limit], positions) for limit in cell.terms]
    parts = [_line(name, "", seconds, positions) for name, seconds in cell.parts.items()]
    sentences = (
        _first(cell, found),
        _growth(cell, found, last),
        *granularity(predictions, cell, positions),
        _idle_compute(predictions, cell, found),
    )
    return Explanation(
        module=cell.module,
        batch_size=batch_size,
        context=context,
        positions=positions,
        terms=tuple(_worth_showing([fixed, *terms], total)),
        parts=tuple(parts),
        total=total,
        sentences=sentences,
    )


def _line(name: str, meaning: str, seconds: Sequence[float], positions: Sequence[int]) -> Line:
    return Line(name, meaning, tuple(seconds[n - 1] for n in positions))


def _worth_showing(lines: Iterable[Line], total: Line) -> list[Line]:
    return [
        line
        for line in lines
        if any(
            abs(part) > NEGLIGIBLE * whole
            for part, whole in zip(line.seconds, total.seconds, strict=True)
        )
    ]


def _first(cell: CellPrediction, found: Boundary) -> str:
    one = cell.seconds[0]
    text = (
        f"One position per sequence takes {duration(one)}"
        f"{'' if cell.module == 'model' else ' in a layer'}, "
        f"{duration(cell.fixed_seconds)} of it fixed."
    )
    if found.at_limit:
        return (
            f"{text} No N up to {found.nfp}, the largest evaluated, exceeds the tolerance of "
            f"{found.epsilon:.3g}: NFP is {found.nfp} or more."
        )
    over = cell.seconds[found.nfp] / one - 1
    text += (
        f" N = {found.nfp + 1} is the first above the tolerance of {found.epsilon:.3g}: it takes "
        f"{over:.2%} longer, so NFP is {found.nfp}."
    )
    if found.largest_free > found.nfp:
        text += (
            f" The curve is not monotone: N = {found.largest_free} is within the tolerance again."
        )
    return text


def _growth(cell: CellPrediction, found: Boundary, last: int) -> str:
    if last == 1:
        return "Only N = 1 was evaluated, so nothing grew."
    grown = cell.terms.get(found.limited_by, (0.0,) * last)
    rise, whole = grown[last - 1] - grown[0], cell.seconds[last - 1] - cell.seconds[0]
    return (
        f"Up to N = {last} the term {found.limited_by} ({MEANINGS[found.limited_by]}) grew most: "
        f"by {duration(rise)} of {duration(whole)} in total."
    )


def _idle_compute(predictions: Predictions, cell: CellPrediction, found: Boundary) -> str:
    idle, hardware = cell.idle_compute_nfp, predictions.target.hardware
    if found.at_limit:
        verdict = f"{found.nfp} or more are predicted"
    elif idle == found.nfp:
        verdict = "as predicted"
    else:
        verdict = f"{idle / found.nfp:.3g} times the predicted {found.nfp}"
    fp8 = predictions.shape.attention.fp8 if cell.module == "attention" else predictions.shape.fp8
    why = {
        "dense_ffn": "It compares arithmetic at full rate with one read of the weights, and "
        "ignores activations, tiles, waves, padding and launches.",
        "moe_ffn": "It ignores that more tokens activate more experts, and the padding to blocks "
        "of rows.",
        "attention": "It ignores query blocks, splits, waves and launches, and gives the same N "
        "for every batch size and context.",
        "linear_attention": "It compares the arithmetic of the projections with one read of their "
        "weights, and ignores that N positions write N states.",
        "communication": "It compares arithmetic with memory traffic, and transfers are neither.",
        "model": "It compares the arithmetic of all matrices at full rate with one read of "
        "weights and cache, and ignores all of the above.",
    }[cell.module]
    return (
        f"The idle-compute rule gives {idle} ({verdict}), from the data sheet's "
        f"{hardware.ridge(fp8):.0f} FLOP per byte of {hardware.name}. {why}"
    )
