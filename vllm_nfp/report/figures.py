"""The plots of modules: curves with their intervals, and below them the NFP of each batch size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vllm_nfp.report.themed_svg import COLOR, MARKERS, STYLE, themed_svg
from vllm_nfp.types import Basis, Boundary, CurvePoint, Prediction

PREDICTED_DASH = (0.0, (2.5, 2.0))
"""Dashes of what was not measured, in line widths."""
HIGHEST_RATIO = 2.0
"""Upper limit of the ratio axis, well above every tolerance in use."""


@dataclass(frozen=True, slots=True)
class Line:
    """Data of one batch size in a plot."""

    batch_size: int
    look: int
    """Number of its colour and marker, the same in each plot of a section."""
    curve: tuple[CurvePoint, ...]
    boundary: Boundary | None
    prediction: Prediction | None


def plot_cells(lines: Sequence[Line], epsilon: float, title: str, slug: str) -> str:
    """Plot t(N) / t(1) of several batch sizes, and below it the NFP of each.

    Args:
        lines: one for each batch size, all of one module and context.
        epsilon: tolerance of the boundaries.
        title: for screen readers.
        slug: letters, digits and dashes; makes the plot's ids unique on the page.

    Returns:
        An SVG element with a title and a description.
    """
    with mpl.rc_context(STYLE):
        figure, curves, strip = _new_figure(len(lines))
        _draw_curves(curves, lines, epsilon)
        _draw_boundaries(strip, lines)
        _draw_axis(curves, strip, lines)
        return themed_svg(figure, title, _description(lines, epsilon), slug)


def _new_figure(lines: int) -> tuple[Figure, Any, Any]:
    """A figure with a plot above and a strip of one row for each line below."""
    plot, strip, gap, top, bottom = 2.3, 0.15 + 0.24 * lines, 0.13, 0.07, 0.5
    width, height = 4.3, plot + strip + gap + top + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    above = figure.add_axes((0.14, (bottom + strip + gap) / height, 0.84, plot / height))
    below = figure.add_axes((0.14, bottom / height, 0.84, strip / height))
    above.tick_params(labelbottom=False)
    return figure, above, below


def _draw_curves(axes: Any, lines: Sequence[Line], epsilon: float) -> None:
    highest = max((row.ratio for line in lines for row in line.curve), default=1.0)
    top = min(HIGHEST_RATIO, max(1.0 + 3.0 * epsilon, highest + 0.05))
    bottom = min(0.9, *(max(0.5, row.ratio) - 0.05 for line in lines for row in line.curve))
    axes.set_ylim(bottom, top)
    axes.axhspan(bottom, 1.0 + epsilon, color=COLOR["free"], alpha=0.13, linewidth=0)
    axes.axhline(1.0 + epsilon, color=COLOR["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    for line in lines:
        _draw_curve(axes, line.curve, line.look)
    axes.set_ylabel("t(N) / t(1)")
    axes.grid(visible=True, axis="y")


def _draw_curve(axes: Any, curve: Sequence[CurvePoint], look: int) -> None:
    color, marker = COLOR[f"series-{look}"], MARKERS[look]
    steps = itertools.groupby(itertools.pairwise(curve), lambda step: _is_predicted(step[1]))
    for predicted, parts in steps:
        first, *_ = taken = list(parts)
        rows = [first[0], *(row for _, row in taken)]
        positions = [row.positions for row in rows]
        upper = [row.ratio if row.ratio_upper is None else row.ratio_upper for row in rows]
        lower = [row.ratio if row.ratio_upper is None else row.ratio_lower for row in rows]
        axes.fill_between(
            positions, lower, upper, color=color, alpha=0.08 if predicted else 0.18, linewidth=0
        )
        axes.plot(
            positions, [row.ratio for row in rows], color=color, linewidth=1.4,
            linestyle=PREDICTED_DASH if predicted else "-",
        )  # fmt: skip
    measured = [row for row in curve if row.basis is Basis.MEASURED]
    inferred = [row for row in curve if row.basis is Basis.INFERRED]
    elsewhere = [row for row in curve if row.execution != curve[0].execution]
    _points(axes, measured, marker=marker, color=color)
    _points(axes, inferred, marker=marker, color=color, markerfacecolor="none")
    _points(axes, elsewhere, marker="|", color=color, markersize=9.0)


def _is_predicted(row: CurvePoint | Boundary) -> bool:
    return row.basis is Basis.PREDICTED


def _points(axes: Any, rows: Sequence[CurvePoint], **style: Any) -> None:
    if rows:
        axes.plot(
            [row.positions for row in rows], [row.ratio for row in rows],
            **{"linestyle": "none", "markersize": 4.0, **style},
        )  # fmt: skip


def _draw_boundaries(axes: Any, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        if line.boundary is not None:
            _draw_boundary(axes, line.boundary, index, line.look)
        if line.prediction is not None:
            _mark(axes, line.prediction.positions, index, "^", 6.5, COLOR["text"])
            _mark(axes, line.prediction.idle_compute_positions, index, "x", 6.0, COLOR["muted"])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(range(len(lines))))
    axes.set_yticklabels([f"B={line.batch_size}" for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("positions per sequence, N")


def _draw_boundary(axes: Any, row: Boundary, index: int, look: int) -> None:
    color = COLOR[f"series-{look}"]
    bar = (
        {"linewidth": 1.4, "linestyle": PREDICTED_DASH}
        if _is_predicted(row)
        else {"linewidth": 5.0, "alpha": 0.45, "solid_capstyle": "round"}
    )
    axes.plot([row.lower, row.upper], [index, index], color=color, **bar)
    axes.plot(
        [row.positions], [index], marker=MARKERS[look], markersize=6.0,
        color=color,
        markerfacecolor=color if row.basis is Basis.MEASURED else COLOR["card"],
    )  # fmt: skip
    told = f"{'+' if row.at_limit else ''}{'?' if _is_predicted(row) else ''}"
    if told:
        axes.annotate(
            told, (row.positions, index), xytext=(6, 0), textcoords="offset points", va="center",
            color=COLOR["text"], fontweight="bold",
        )  # fmt: skip


def _mark(axes: Any, positions: int, index: int, marker: str, size: float, color: str) -> None:
    axes.plot(
        [max(1, positions)], [index], linestyle="none", marker=marker, markersize=size,
        color=color, markerfacecolor="none", markeredgewidth=1.3,
    )  # fmt: skip


def _draw_axis(curves: Any, strip: Any, lines: Sequence[Line]) -> None:
    """Set one logarithmic axis for both plots, wide enough for all marks."""
    largest = max(itertools.chain.from_iterable(map(_marked_positions, lines)))
    powers = [1 << i for i in range(math.ceil(math.log2(max(2, largest))) + 1)]
    shown = powers if len(powers) <= 8 else powers[::2]
    for axes in (curves, strip):
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.87, powers[-1] * 1.3)
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)


def _marked_positions(line: Line) -> tuple[int, ...]:
    found = [row.positions for row in line.curve]
    if line.boundary is not None:
        found.append(line.boundary.upper)
    if line.prediction is not None:
        found += [line.prediction.positions, line.prediction.idle_compute_positions]
    return tuple(found)


def _description(lines: Sequence[Line], epsilon: float) -> str:
    return " ".join(_describe(line, epsilon) for line in lines)


def _describe(line: Line, epsilon: float) -> str:
    last = line.curve[-1]
    text = f"Batch size {line.batch_size}: at {last.positions} positions {last.ratio:.2f} times"
    text += " the time of one."
    if line.boundary is not None:
        row = line.boundary
        more = " or more" if row.at_limit else ""
        text += f" Within {epsilon:.0%}: {row.positions}{more} ({row.lower} to {row.upper}), "
        text += f"{row.basis}."
    if line.prediction is not None:
        row_p = line.prediction
        text += f" Predicted {row_p.positions}, idle-compute {row_p.idle_compute_positions}."
    return text
