"""Plots predicted curves for ``vllm-nfp predict --plot``: a panel for each module."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nfp.files import write_whole
from vllm_nfp.principle.predict import CellPrediction
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.report.page import ReportError
from vllm_nfp.text import printable
from vllm_nfp.types import Module

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""The Okabe-Ito palette, safe for colour-blind readers; one colour per batch size."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.6)))
"""One dash per context."""
ENDINGS = (".png", ".svg")
TITLES: dict[Module, str] = {
    Module.DENSE_FFN: "dense FFN, one layer",
    Module.MOE_FFN: "MoE FFN, one layer",
    Module.ATTENTION: "attention, mean layer",
    Module.LINEAR_ATTENTION: "linear attention, one layer",
    Module.COMMUNICATION: "communication, mean layer",
    Module.MODEL: "whole step",
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "vllm-nfp",
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class _Line:
    """A curve of a panel and how it is drawn."""

    cell: CellPrediction
    label: str
    color: str
    dash: Any


def check_plot(path: Path, predictions: Predictions | None = None) -> None:
    """Refuse a plot that cannot be drawn, before predicting.

    Raises:
        ReportError: for another file type, too many lines, or a missing matplotlib.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ReportError(f"--plot {path} has no known ending: use .png or .svg")
    if predictions is not None:
        for name, given, most in (
            ("batch sizes", predictions.batch_sizes, len(COLORS)),
            ("contexts", predictions.contexts, len(DASHES)),
        ):
            if len(given) > most:
                raise ReportError(
                    f"a plot can show at most {most} {name}, not {len(given)}: pass fewer"
                )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"a plot needs {error.name}, which is not installed: pip install 'vllm-nfp[report]'"
        ) from None


def write_plot(path: Path, predictions: Predictions) -> None:
    """Draw the curves at the first tolerance; an existing file is replaced as a whole.

    Raises:
        ReportError: see :func:`check_plot`.
        OSError: if it cannot be written.
    """
    check_plot(path, predictions)
    write_whole(path, draw(predictions, path.suffix.lower().removeprefix(".")))


def draw(predictions: Predictions, kind: str) -> bytes:
    """The picture's content.

    Args:
        predictions: what to draw.
        kind: png or svg.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    modules = predictions.modules
    columns = len(modules) if len(modules) <= 3 else 2
    rows = math.ceil(len(modules) / columns)
    lines = {module: _lines(predictions, module) for module in modules}
    strips = [
        max(len(lines[module]) for module in modules[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    with mpl.rc_context(_STYLE):
        heights = [2.5 + 0.17 * strip + 1.0 for strip in strips]
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
        figure = Figure(figsize=(3.9 * columns, sum(heights) + 0.85), layout=layout)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows, columns, height_ratios=heights)
        for index, module in enumerate(modules):
            row, column = divmod(index, columns)
            cell = grid[row, column].subgridspec(
                2, 1, height_ratios=(2.5, 0.1 + 0.17 * strips[row]), hspace=0.04
            )
            above = figure.add_subplot(cell[0])
            below = figure.add_subplot(cell[1], sharex=above)
            _draw_panel(above, below, lines[module], predictions, TITLES[module])
            if column == 0:
                above.set_ylabel("t(N) / t(1)")
        figure.suptitle(_title(predictions), fontsize=12.0, parse_math=False)
        figure.legend(handles=_handles(predictions), loc="outside lower center", ncols=4,
                      frameon=False, fontsize=9.0)  # fmt: skip
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=110, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _title(predictions: Predictions) -> str:
    ranks = predictions.shape.tensor_parallel_size
    split = f", {ranks} tensor-parallel ranks" if ranks > 1 else ""
    return (
        f"Predicted: {printable(predictions.model)} on {printable(predictions.hardware)}{split}, "
        f"{predictions.backend.name}"
    )


def _lines(predictions: Predictions, module: Module) -> tuple[_Line, ...]:
    """One line per batch size, and per context for modules that depend on it."""
    contexts = predictions.contexts if module in ("attention", "model") else (None,)
    return tuple(
        _Line(
            predictions.cell(
                module, batch_size, predictions.contexts[0] if context is None else context
            ),
            f"B={batch_size}" if context is None else f"B={batch_size} L={context}",
            COLORS[index],
            DASHES[dash],
        )
        for index, batch_size in enumerate(predictions.batch_sizes)
        for dash, context in enumerate(contexts)
    )


def _draw_panel(
    above: Any, below: Any, lines: Sequence[_Line], predictions: Predictions, title: str
) -> None:
    epsilon = predictions.epsilons[0]
    top = 1.0 + max(0.6, 4.0 * epsilon)
    above.set_title(title, loc="left")
    above.axhspan(0.0, 1.0 + epsilon, color="#999999", alpha=0.12, linewidth=0)
    above.axhline(1.0 + epsilon, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
    for line in lines:
        first = line.cell.seconds[0]
        ratios = [seconds / first for seconds in line.cell.seconds]
        above.plot(line.cell.positions, ratios, color=line.color, linestyle=line.dash,
                   linewidth=1.5)  # fmt: skip
        nfp = line.cell.boundaries[0].nfp
        above.plot([nfp], [ratios[nfp - 1]], marker="o", markersize=4.5, color=line.color,
                   zorder=3)  # fmt: skip
    above.set_ylim(0.95, top)
    above.grid(visible=True, axis="both")
    above.tick_params(labelbottom=False)
    _draw_boundaries(below, lines, predictions.max_positions)


def _draw_boundaries(axes: Any, lines: Sequence[_Line], most: int) -> None:
    """One row per line: predicted NFP, and the idle-compute rule."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    edge = most * 1.25
    for index, line in enumerate(lines):
        found, idle = line.cell.boundaries[0], line.cell.idle_compute_nfp
        axes.plot([found.nfp, min(idle, edge)], [index, index], color=line.color, linewidth=1.0,
                  alpha=0.5)  # fmt: skip
        axes.plot([found.nfp], [index], marker="o", markersize=5.0, color=line.color)
        beyond = idle > most
        axes.plot([min(idle, edge)], [index], marker=">" if beyond else "x", markersize=5.5,
                  color="#444444", markeredgewidth=1.4, clip_on=False, zorder=3)  # fmt: skip
        if found.at_limit:
            axes.annotate("+", (found.nfp, index), xytext=(4, 1), va="center",
                          textcoords="offset points", fontweight="bold")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.87, edge)
    powers = [1 << power for power in range(int(math.log2(max(2, most))) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(powers if len(powers) <= 8 else powers[::2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(FixedLocator(range(len(lines))))
    axes.set_yticklabels([line.label for line in lines], fontsize=7.5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("positions per sequence, N")


def _handles(predictions: Predictions) -> list[Any]:
    from matplotlib.lines import Line2D

    def line(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **style)

    handles = [
        line(f"B = {batch_size}", color=color, linewidth=1.8)
        for batch_size, color in zip(predictions.batch_sizes, COLORS, strict=False)
    ]
    if len(predictions.contexts) > 1:
        handles += [
            line(f"L = {context} tokens", color="black", linestyle=dash, linewidth=1.4)
            for context, dash in zip(predictions.contexts, DASHES, strict=False)
        ]
    none = {"linestyle": "none"}
    return [
        *handles,
        line("predicted NFP", marker="o", color="black", markersize=5, **none),
        line("idle-compute rule (arrow: beyond)", marker="x", color="#444444", markersize=5.5,
             **none),
        line(f"1 + {predictions.epsilons[0]:g}", color="#555555", linewidth=0.9,
             linestyle=(0, (4, 3))),
    ]  # fmt: skip
