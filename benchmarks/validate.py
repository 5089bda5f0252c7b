"""Claim: the predictor finds the boundary, and better than the idle-compute rule.

    python -m benchmarks.validate benchmarks/results --out DIR [--plots DIR]

Compares predicted with measured NFP in every cell of the H100 timings: kernels alone
(``*-h100-kernels``) and whole models through the probe (``*-h100-whole-models``, ``*-h100``).
Shapes under ``reference`` fitted the constants; those under ``set-aside``, and whole models of
other shapes, did not: both are reported apart. Measured NFP is the first crossing of the medians;
predictions are read at the measured N only, so that both have the same grid.

A granularity step is: 64 rows of a tile in dense products, ceil(64 / B) positions; 64 query rows
in attention, ceil(64 / g); for experts that are all awake a block of rows in each, otherwise one
position; for a whole model that of its FFN. Writes validation.json; plots t(N) with --plots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import shapes
from benchmarks.validation_cells import Cell, Group, first_crossing
from benchmarks.validation_plots import draw
from vllm_nfp.calibrate.curves import shape_of
from vllm_nfp.calibrate.points import Curve, Kernel, KernelSamples, read_samples
from vllm_nfp.cli.common import Refusal
from vllm_nfp.principle import (
    HardwareError,
    ModelShape,
    Serving,
    Target,
    idle_compute_nfp,
    shape_from_config,
    target_of,
)
from vllm_nfp.principle.experts import Routing, awake_experts, default_config
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES
from vllm_nfp.principle.step import Step
from vllm_nfp.types import Module

EPSILONS = (0.1, 0.2)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
ROWS = 64
ALL_AWAKE = 0.95
"""Share of the experts from which on blocks, not waking experts, limit."""
UNPADDED = Serving(capture_sizes=())
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell at one tolerance."""

    group: Group
    source: str
    model: str
    module: Module
    decoding: str
    batch_size: int
    context: int
    epsilon: float
    measured: int
    at_limit: bool
    """Nothing measured is over the line: NFP is this or more."""
    predicted: int
    idle_compute: int
    """Unclipped: what the rule says."""
    step: int

    @property
    def within_step(self) -> bool:
        """Whether prediction and measurement lie within one granularity step."""
        return abs(self.predicted - self.measured) <= self.step

    @property
    def error(self) -> float:
        """Relative error."""
        return abs(self.predicted - self.measured) / self.measured

    @property
    def idle_on_grid(self) -> int:
        """The rule's answer, clipped to the measured grid's end where that was the limit."""
        return min(self.idle_compute, self.measured) if self.at_limit else self.idle_compute

    @property
    def idle_within_step(self) -> bool:
        """The same for the idle-compute rule."""
        return abs(self.idle_on_grid - self.measured) <= self.step

    @property
    def idle_error(self) -> float:
        """The same for the idle-compute rule."""
        return abs(self.idle_on_grid - self.measured) / self.measured


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
    serving = Serving(capture_sizes=tuple(capture_sizes))
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
        if awake_experts(np.array([float(batch_size)]), routing)[0] < ALL_AWAKE * shape.num_experts:
            return 1
        rows = default_config(tokens, shape.quantization, shape.local_experts).block_m[0]
        each = float(rows) * shape.num_experts / shape.experts_per_token
        return max(1, math.ceil(each / batch_size))
    return max(1, math.ceil(ROWS / batch_size))


def outcomes(cells: Sequence[Cell]) -> list[Outcome]:
    """Every cell at every tolerance."""
    return [_outcome(cell, epsilon) for cell in cells for epsilon in EPSILONS]


def _outcome(cell: Cell, epsilon: float) -> Outcome:
    measured, at_limit = first_crossing(cell.positions, cell.measured_ratio, epsilon)
    predicted, _ = first_crossing(cell.positions, cell.predicted_ratio, epsilon)
    return Outcome(
        cell.group,
        cell.source,
        cell.model,
        cell.module,
        cell.decoding,
        cell.batch_size,
        cell.context,
        epsilon,
        measured,
        at_limit,
        predicted,
        cell.idle_compute_nfp,
        cell.step_at[measured],
    )


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Scores over some outcomes."""
    over = [o.idle_compute / o.measured for o in found if not o.at_limit]
    return {
        "cells": len(found),
        "within_step": float(np.mean([o.within_step for o in found])),
        "within_10_percent": float(np.mean([o.error <= 0.1 for o in found])),
        "median_error": float(np.median([o.error for o in found])),
        "mean_error": float(np.mean([o.error for o in found])),
        "idle_within_step": float(np.mean([o.idle_within_step for o in found])),
        "idle_median_error": float(np.median([o.idle_error for o in found])),
        "idle_over_prediction_median": float(np.median(over)) if over else None,
        "idle_over_prediction_p10": float(np.percentile(over, 10)) if over else None,
        "idle_over_prediction_p90": float(np.percentile(over, 90)) if over else None,
    }


def print_summary(found: Sequence[Outcome], console: Console) -> dict[str, Any]:
    """A row for each group, source and module; the same as a mapping."""
    table = Table(box=box.SIMPLE, title="predicted against measured NFP, epsilon 0.1 and 0.2")
    for name in (
        "group", "source", "module", "cells", "within step", "within 10 %", "median error",
        "idle: step", "idle: median error", "idle / measured [p10, p90]",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name in ("group", "source", "module") else "right")
    kept: dict[str, Any] = {}
    keys = sorted({(o.group, o.source, o.module) for o in found})
    everything = [(g, "all", "all") for g in ("reference", "set-aside")]
    for group, source, module in [*keys, *everything]:
        chosen = [
            o
            for o in found
            if o.group == group and source in (o.source, "all") and module in (o.module, "all")
        ]
        if not chosen:
            continue
        score = kept[f"{group} / {source} / {module}"] = summary(chosen)
        table.add_row(
            group, source, module, str(score["cells"]), f"{score['within_step']:.0%}",
            f"{score['within_10_percent']:.0%}", f"{score['median_error']:.0%}",
            f"{score['idle_within_step']:.0%}", f"{score['idle_median_error']:.0%}",
            _over_prediction(score),
        )  # fmt: skip
    console.print(table)
    return kept


def _over_prediction(score: Mapping[str, Any]) -> str:
    middle, low, high = (
        score[f"idle_over_prediction_{which}"] for which in ("median", "p10", "p90")
    )
    return "-" if middle is None else f"{middle:.1f}x [{low:.1f}, {high:.1f}]"


def _line(o: Outcome) -> str:
    where = f"{o.source:11s} {o.model:16s} {o.module:9s} {o.decoding:6s}"
    cell = f"B={o.batch_size:<3d} L={o.context:<5d} eps={o.epsilon}"
    more = "+" if o.at_limit else ""
    figures = f"measured {o.measured}{more}, predicted {o.predicted}, idle {o.idle_compute}"
    return f"{where} {cell}: {figures}{'' if o.within_step else '  <--'}"


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


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hardware", default="H100-SXM", help="A name or a hardware file.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), default=None)
@click.option("--rows", is_flag=True, help="Print every set-aside cell.")
def main(results: Path, hardware: str, out: Path | None, plots: Path | None, rows: bool) -> None:
    """Score the predictor; see the module's text."""
    try:
        target = target_of(hardware)
    except HardwareError as error:
        raise Refusal(str(error)) from None
    cells = all_cells(results, target)
    found = outcomes(cells)
    console = Console(width=150)
    scores = print_summary(found, console)
    if rows:
        for outcome in (o for o in found if o.group == "set-aside"):
            console.print(_line(outcome), highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {"scores": scores, "outcomes": [asdict(o) for o in found]}
        (out / "validation.json").write_text(json.dumps(kept, indent=1))
    if plots is not None:
        draw(cells, plots)


if __name__ == "__main__":
    main()
