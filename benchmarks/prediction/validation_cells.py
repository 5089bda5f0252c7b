"""Cells of the kept timings: a module of a model at one batch size and context, with its measured
and its predicted curve."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import shapes
from vllm_nfp.calibrate.curves import shape_of
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples, read_samples
from vllm_nfp.principle import ModelShape, Serving, Target, idle_compute_nfp, shape_from_config
from vllm_nfp.principle.expert_tiles import default_config
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, CapturedGraphs
from vllm_nfp.principle.routing import Routing
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Module

Floats = NDArray[np.float64]
Group = Literal["reference", "set-aside"]
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
ROWS = 64
ALL_AWAKE = 0.95
"""Share of the experts from which on blocks, not waking experts, limit."""
UNPADDED = Serving(graphs=CapturedGraphs())


@dataclass(frozen=True, slots=True)
class Cell:
    """One module of one model in one cell: measured and predicted curves on the same grid."""

    group: Group
    source: str
    """kernel or whole model."""
    model: str
    module: Module
    decoding: str
    """causal or block."""
    batch_size: int
    context: int
    positions: tuple[int, ...]
    measured_ratio: tuple[float, ...]
    predicted_ratio: tuple[float, ...]
    measured_seconds: float
    predicted_seconds: float
    """Both at N = 1."""
    idle_compute_nfp: int
    step_at: Mapping[int, int]
    """Measured NFP -> positions in a granularity step there."""


def kernel_cells(folder: Path, group: Group, target: Target) -> Iterator[Cell]:
    """Cells of the kernels timed alone."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        samples = read_samples(path)
        shape = shape_of(samples)
        for curve in samples.curves:
            yield from _cells_of(samples, shape, curve, group, target)


def _cells_of(
    samples: KernelSamples, shape: ModelShape, curve: Curve, group: Group, target: Target
) -> Iterator[Cell]:
    kernel = curve.series.kernel
    if kernel is Kernel.ATTENTION:
        yield _attention_cell(samples, shape, curve, group, target)
    elif kernel in (Kernel.DENSE_FFN, Kernel.MOE_FFN):
        module = Module.DENSE_FFN if kernel is Kernel.DENSE_FFN else Module.MOE_FFN
        for batch_size in BATCH_SIZES:
            yield _ffn_cell(samples, shape, curve, group, target, module, batch_size)


def _attention_cell(
    samples: KernelSamples, shape: ModelShape, curve: Curve, group: Group, target: Target
) -> Cell:
    series = curve.series
    decoding: Any = "causal" if series.causal else "bidirectional_block"
    shape = replace(shape, decoding=decoding)
    positions = np.array(curve.positions, dtype=np.float64)
    step = Step(shape, target, Serving(), series.batch_size, series.context, positions)
    return _cell(
        group, "kernel", samples.model, Module.ATTENTION, series.causal, shape, target,
        series.batch_size, series.context, positions, np.array(curve.medians),
        step.module(Module.ATTENTION).seconds(),
    )  # fmt: skip


def _ffn_cell(
    samples: KernelSamples,
    shape: ModelShape,
    curve: Curve,
    group: Group,
    target: Target,
    module: Module,
    batch_size: int,
) -> Cell:
    tokens, seconds = np.array(curve.positions), np.array(curve.medians)
    chosen = tokens % batch_size == 0
    positions = (tokens[chosen] // batch_size).astype(np.float64)
    step = Step(shape, target, UNPADDED, batch_size, 0, positions)
    return _cell(
        group, "kernel", samples.model, module, True, shape, target, batch_size, 0, positions,
        seconds[chosen], step.module(module).seconds(),
    )  # fmt: skip


def whole_model_cells(
    name: str,
    config: Mapping[str, Any],
    snapshot: Mapping[str, Any],
    capture_sizes: Sequence[int],
    group: Group,
    causal: bool,
    target: Target,
) -> Iterator[Cell]:
    """Cells of a model that was measured through the probe, the whole step and its modules."""
    shape = shape_from_config(config)
    if not causal:
        shape = replace(shape, decoding="bidirectional_block")
    serving = Serving(graphs=CapturedGraphs(tuple(capture_sizes)))
    curves: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in snapshot["curves"]:
        curves.setdefault((row["module"], row["batch_size"], row["context"]), []).append(row)
    for (module, batch_size, context), rows in curves.items():
        ordered = sorted(rows, key=lambda row: row["positions"])
        positions = np.array([row["positions"] for row in ordered], dtype=np.float64)
        base = ordered[0]["median_seconds"]
        seconds = np.array([base * row["ratio"] for row in ordered])
        step = Step(shape, target, serving, batch_size, context, positions)
        yield _cell(
            group, "whole model", name, module, causal, shape, target, batch_size, context,  # type: ignore[arg-type]
            positions, seconds, step.module(module).seconds(),  # type: ignore[arg-type]
        )  # fmt: skip


def _cell(
    group: Group,
    source: str,
    model: str,
    module: Module,
    causal: bool,
    shape: ModelShape,
    target: Target,
    batch_size: int,
    context: int,
    positions: Floats,
    measured: Floats,
    predicted: Floats,
) -> Cell:
    steps = {int(n): granularity(shape, module, batch_size, int(n)) for n in positions}
    return Cell(
        group,
        source,
        model,
        module,
        "causal" if causal else "block",
        batch_size,
        context,
        tuple(positions.astype(int).tolist()),
        tuple((measured / measured[0]).tolist()),
        tuple((predicted / predicted[0]).tolist()),
        float(measured[0]),
        float(predicted[0]),
        idle_compute_nfp(shape, target.hardware, batch_size, context, module),
        steps,
    )


def granularity(shape: ModelShape, module: Module, batch_size: int, positions: int) -> int:
    """Positions in one granularity step; see the module's text."""
    if module == "attention":
        return max(1, math.ceil(ROWS / shape.attention.group))
    if shape.num_moe_layers and module != "dense_ffn":
        routing = Routing(shape.local_experts, shape.local_experts_per_token)
        tokens = np.array([float(batch_size * positions)])
        if routing.awake(np.array([float(batch_size)]))[0] < ALL_AWAKE * shape.num_experts:
            return 1
        rows = default_config(tokens, shape.quantization, shape.local_experts).block_m[0]
        each = float(rows) * shape.num_experts / shape.experts_per_token
        return max(1, math.ceil(each / batch_size))
    return max(1, math.ceil(ROWS / batch_size))


def all_cells(results: Path, target: Target) -> list[Cell]:
    """Every cell of the kept results."""
    kernels = results / "2026-11-24-h100-kernels"
    cells = [*kernel_cells(kernels / "reference", "reference", target)]
    cells += kernel_cells(kernels / "set-aside", "set-aside", target)
    for folder in sorted((results / "2026-11-24-h100-whole-models").glob("*/")):
        name, kind = folder.name.rsplit("-", 1)
        snapshot = json.loads((folder / "engine-0.json").read_text())
        environment = json.loads((folder / "environment-0.json").read_text())
        config = {**shapes.SHAPES[name], "num_hidden_layers": 6}
        sizes = environment["cudagraph_capture_sizes"]
        cells += whole_model_cells(
            name, config, snapshot, sizes, "set-aside", kind == "causal", target
        )
    tables: tuple[tuple[str, str, Group], ...] = (
        ("qwen3-8b", "dense-table.json", "set-aside"),
        ("qwen3-30b-a3b", "moe-table.json", "reference"),
    )
    for name, file, group in tables:
        table = json.loads((results / "2026-11-24-h100" / file).read_text())
        config = {**shapes.SHAPES[name], "num_hidden_layers": table["layers"]}
        cells += whole_model_cells(
            name,
            config,
            table["snapshot"],
            DEFAULT_CAPTURE_SIZES,
            group,
            True,
            target,
        )
    return cells
