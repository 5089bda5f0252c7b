"""The blocks, experts and CUDA graphs that a cell's tokens are rounded up to, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vllm_nfp.principle.attention import AttentionStep
from vllm_nfp.principle.predict import CellPrediction
from vllm_nfp.principle.routing import Routing, skewed_shares

if TYPE_CHECKING:
    from vllm_nfp.principle.predictions import Predictions

UNPREDICTED = "the host's launch time is not predicted"


def granularity(
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
            predictions.serving.graphs.largest,
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
    graphs = predictions.serving.graphs
    if not graphs.sizes:
        return f"Without CUDA graphs nothing is padded, and {UNPREDICTED}."
    told = []
    outside = ""
    for n in positions:
        padded = graphs.padded_tokens(cell.batch_size, n)
        tokens = cell.batch_size * n
        told.append(
            f"{_count(tokens, 'token')} at N = {n} in no graph"
            if padded is None
            else f"{_count(tokens, 'token')} at N = {n} in a graph of {padded}"
        )
        if padded is None:
            outside = f" Outside graphs the host launches each kernel: {UNPREDICTED}."
    return f"CUDA graphs: {', '.join(told)}.{outside}"
