"""Predicted against measured NFP, cell by cell and by group of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.prediction.validation_cells import Cell, Group
from vllm_nfp.crossing import count_free
from vllm_nfp.types import Module

EPSILONS = (0.1, 0.2)


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
        """Whether prediction and measurement differ by at most one granularity step."""
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


def first_crossing(
    positions: Sequence[int], ratios: Sequence[float], epsilon: float
) -> tuple[int, bool]:
    """Largest N whose ratio, and that of every N before it, is at most 1 + epsilon."""
    free = count_free(ratios, epsilon)
    return positions[free - 1], free == len(positions)


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


def can_miss(one: Outcome) -> bool:
    """Whether a prediction can miss it: it lies inside the data, above 1 and above a step."""
    return not one.at_limit and one.measured > max(1, one.step)


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
