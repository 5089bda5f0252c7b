"""A predicted cell in words and numbers: what its time consists of, and what limits its NFP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.attention import AttentionStep
from vllm_nfp.principle.graphs import padded_tokens
from vllm_nfp.principle.predict import Boundary, CellPrediction
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.principle.routing import Routing, skewed_shares
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
UNPREDICTED = "the host's launch time is not predicted"
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
        *_granularity(predictions, cell, positions),
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


def _granularity(
    predictions: Predictions, cell: CellPrediction, positions: Sequence[int]
) -> list[str]:
    """The blocks, experts and CUDA graphs that the module's tokens are rounded up to."""
    sentences = []
    if cell.module in ("attention", "model") and predictions.shape.attention_layers:
        sentences.append(_query_blocks(predictions, cell, positions))
    if predictions.shape.num_moe_layers and cell.module in ("moe_ffn", "model"):
        sentences.append(_experts(predictions, cell, positions))
    if cell.module in ("dense_ffn", "model"):
        sentences.append(_graphs(predictions, cell, positions))
    return sentences


def _query_blocks(predictions: Predictions, cell: CellPrediction, positions: Sequence[int]) -> str:
    shape = predictions.shape
    if shape.attentions[0][1].sparse:
        most = shape.attentions[0][1].read(cell.context + 1)
        return f"Attention reads up to {most:.0f} cached entries for each position."
    counts = np.array(positions, dtype=np.float64)
    windowed = shape.num_sliding_layers == shape.attention_layers
    cached = cell.context + counts
    if windowed and shape.sliding_window is not None:
        cached = np.minimum(cached, shape.sliding_window + counts - 1)
    schedule = predictions.backend.schedule(
        AttentionStep(
            shape.attention,
            cell.batch_size,
            cached,
            counts,
            predictions.target.hardware.num_sms,
            windowed,
            not shape.bidirectional,
            max(predictions.serving.capture_sizes, default=0),
        )
    )
    tiles = schedule.tiles
    told = [
        f"at N = {n} {_count(rows, 'row')} in {_count(blocks, 'block')} of {size:.0f}, "
        f"{_count(splits, 'split')} of the cache, {_count(waves, 'wave')}"
        for n, rows, blocks, size, splits, waves in zip(
            positions,
            tiles.rows,
            tiles.query_blocks,
            tiles.tile_rows,
            schedule.splits,
            schedule.waves,
            strict=True,
        )
    ]
    return (
        f"{predictions.backend.name} cuts the query rows of a KV head "
        f"(query heads per KV head: {shape.attention.group}) into blocks: {'; '.join(told)}."
    )


def _count(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}{'' if number == 1 else 's'}"


def _experts(predictions: Predictions, cell: CellPrediction, positions: Sequence[int]) -> str:
    shape = predictions.shape
    experts, chosen = shape.local_experts, shape.local_experts_per_token
    skew = predictions.serving.routing_skew
    routing = Routing(experts, chosen, skewed_shares(experts, chosen, skew))
    tokens = np.array(positions, dtype=np.float64) * cell.batch_size * shape.data_parallel_size
    awake = routing.awake(tokens)
    told = [f"{u:.3g} at N = {n}" for n, u in zip(positions, awake, strict=True)]
    return (
        f"Of a layer's {shape.local_experts} experts on a rank, on average {', '.join(told)} are "
        f"active; each is read once. Routing is assumed to be {'skewed' if skew else 'uniform'}."
    )


def _graphs(predictions: Predictions, cell: CellPrediction, positions: Sequence[int]) -> str:
    sizes = predictions.serving.capture_sizes
    if not sizes:
        return f"Without CUDA graphs nothing is padded, and {UNPREDICTED}."
    told = []
    outside = ""
    for n in positions:
        padded = padded_tokens(sizes, cell.batch_size, n)
        tokens = cell.batch_size * n
        told.append(
            f"{_count(tokens, 'token')} at N = {n} in no graph"
            if padded is None
            else f"{_count(tokens, 'token')} at N = {n} in a graph of {padded}"
        )
        if padded is None:
            outside = f" Outside graphs the host launches each kernel: {UNPREDICTED}."
    return f"CUDA graphs: {', '.join(told)}.{outside}"


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
