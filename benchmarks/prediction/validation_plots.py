"""Draws t(N) as measured and as predicted, with both boundaries and idle-compute's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.prediction.validation_cells import Cell
from benchmarks.prediction.validation_outcomes import first_crossing
from vllm_nfp.types import Module

EPSILON = 0.1
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
"""Of Okabe and Ito's palette, which is readable with most kinds of colour blindness."""

SHOWN: tuple[tuple[str, str, Module, str, int, int], ...] = (
    ("kernel", "qwen3-14b", Module.DENSE_FFN, "causal", 1, 0),
    ("kernel", "qwen3-14b", Module.DENSE_FFN, "causal", 8, 0),
    ("kernel", "qwen3-14b-fp8", Module.DENSE_FFN, "causal", 1, 0),
    ("kernel", "qwen3-14b", Module.ATTENTION, "causal", 1, 4096),
    ("kernel", "qwen2.5-7b", Module.ATTENTION, "causal", 8, 4096),
    ("kernel", "qwen3-235b-a22b", Module.ATTENTION, "block", 8, 4096),
    ("kernel", "olmoe-1b-7b", Module.MOE_FFN, "causal", 1, 0),
    ("kernel", "olmoe-1b-7b", Module.MOE_FFN, "causal", 64, 0),
    ("kernel", "qwen3-235b-a22b", Module.MOE_FFN, "causal", 64, 0),
    ("whole model", "qwen3-14b", Module.MODEL, "causal", 8, 4096),
    ("whole model", "qwen3-14b", Module.MODEL, "block", 8, 4096),
    ("whole model", "olmoe-1b-7b", Module.MODEL, "causal", 8, 1024),
)
"""Set-aside cells that are drawn: source, model, module, decoding, B, L."""


def draw(cells: Sequence[Cell], folder: Path) -> None:
    """Write validation.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(4, 3, figsize=(12, 13), layout="constrained")
    by_key = {
        (c.source, c.model, c.module, c.decoding, c.batch_size, c.context): c
        for c in cells
        if c.group == "set-aside"
    }
    for axis, key in zip(axes.flat, SHOWN, strict=True):
        _draw_cell(axis, by_key[key])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(
        "Shapes set aside before fitting, H100, vLLM 0.32: t(N) / t(1), lines at 1.1 and 1.2"
    )
    figure.savefig(folder / "validation.png", dpi=80)
    pyplot.close(figure)


def _draw_cell(axis: Any, cell: Cell) -> None:
    measured, at_limit = first_crossing(cell.positions, cell.measured_ratio, EPSILON)
    predicted, _ = first_crossing(cell.positions, cell.predicted_ratio, EPSILON)
    largest = max(measured, predicted, min(cell.idle_compute_nfp, cell.positions[-1]))
    last = min(cell.positions[-1], max(8, round(1.6 * largest)))
    shown = [index for index, n in enumerate(cell.positions) if n <= last]
    positions = [cell.positions[i] for i in shown]
    axis.plot(positions, [cell.measured_ratio[i] for i in shown], ".", color=BLUE, label="measured")
    axis.plot(
        positions, [cell.predicted_ratio[i] for i in shown], "-", color=ORANGE, label="predicted"
    )
    for line in (1.1, 1.2):
        axis.axhline(line, color=GREY, linewidth=0.6, linestyle=":")
    axis.axvline(measured, color=BLUE, linewidth=1.2, label="measured NFP(0.1)")
    axis.axvline(predicted, color=ORANGE, linewidth=1.2, linestyle="--", label="predicted NFP(0.1)")
    if cell.idle_compute_nfp <= last:
        axis.axvline(
            cell.idle_compute_nfp, color=GREY, linewidth=1.2, linestyle="-.", label="idle-compute"
        )
    else:
        axis.plot([], [], color=GREY, linewidth=1.2, linestyle="-.", label="idle-compute")
        axis.annotate(
            f"idle-compute: {cell.idle_compute_nfp} \N{RIGHTWARDS ARROW}",
            (0.98, 0.05),
            xycoords="axes fraction",
            ha="right",
            color=GREY,
            fontsize=8,
        )
    top = max(1.3, *(min(2.0, cell.measured_ratio[i]) for i in shown))
    axis.set_ylim(0.9, top + 0.05)
    axis.set_xlim(0, last + 1)
    decoding = ", bidirectional" if cell.decoding == "block" else ""
    where = f"B={cell.batch_size}" + (f", L={cell.context}" if cell.context else "")
    more = "+" if at_limit else ""
    axis.set_title(
        f"{cell.model} {cell.module}{decoding}\n{where}: measured {measured}{more}, "
        f"predicted {predicted}",
        fontsize=9,
    )
    axis.set_xlabel("N, positions per sequence", fontsize=8)
