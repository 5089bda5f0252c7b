"""The plots, as SVG with the page's colours, so that both themes are readable."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from vllm_nfp.types import Boundary, CurvePoint, Prediction

SERIES = 6
"""Number of line colours; further lines repeat them with another dash."""
MARKERS = ("o", "s", "D", "p", "h", "P")
"""Without triangles and crosses, which mark predictions and the idle-compute rule."""
DASHES = ("-", "--", ":")
HIGHEST_RATIO = 2.0
"""Upper limit of the ratio axis, well above every tolerance in use."""

# matplotlib cannot write CSS variables: each gets a placeholder colour, replaced afterwards.
_ROLES = ("text", "muted", "grid", "free", *(f"series-{i}" for i in range(SERIES)))
_COLOR = {role: f"#0a0b{index:02x}" for index, role in enumerate(_ROLES, start=1)}

# Any: matplotlib's type of its own settings' names changes with each release.
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": _COLOR["muted"],
    "axes.labelcolor": _COLOR["text"],
    "axes.linewidth": 0.8,
    "text.color": _COLOR["text"],
    "xtick.color": _COLOR["muted"],
    "ytick.color": _COLOR["muted"],
    "xtick.labelcolor": _COLOR["text"],
    "ytick.labelcolor": _COLOR["text"],
    "grid.color": _COLOR["grid"],
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class Line:
    """Data of one batch size in a plot."""

    batch_size: int
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
    with mpl.rc_context(_STYLE):
        figure, curves, strip = _new_figure(len(lines))
        _draw_curves(curves, lines, epsilon)
        _draw_boundaries(strip, lines)
        _draw_axis(curves, strip, lines)
        return _svg(figure, title, _description(lines, epsilon), slug)


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
    axes.axhspan(bottom, 1.0 + epsilon, color=_COLOR["free"], alpha=0.13, linewidth=0)
    axes.axhline(1.0 + epsilon, color=_COLOR["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    for index, line in enumerate(lines):
        _draw_curve(axes, line.curve, index)
    axes.set_ylabel("t(N) / t(1)")
    axes.grid(visible=True, axis="y")


def _draw_curve(axes: Any, curve: Sequence[CurvePoint], index: int) -> None:
    color = _COLOR[f"series-{index % SERIES}"]
    positions = [row.positions for row in curve]
    upper = [row.ratio if row.ratio_upper is None else row.ratio_upper for row in curve]
    lower = [row.ratio if row.ratio_upper is None else row.ratio_lower for row in curve]
    axes.fill_between(positions, lower, upper, color=color, alpha=0.18, linewidth=0)
    marker = MARKERS[index % len(MARKERS)]
    dash = DASHES[index // SERIES % len(DASHES)]
    ratios = [row.ratio for row in curve]
    axes.plot(positions, ratios, color=color, linestyle=dash, linewidth=1.4)
    first = curve[0].execution
    for hollow in (False, True):
        rows = [row for row in curve if (row.execution != first) == hollow]
        if rows:
            axes.plot(
                [row.positions for row in rows],
                [row.ratio for row in rows],
                linestyle="none",
                marker=marker,
                markersize=4.0,
                color=color,
                markerfacecolor="none" if hollow else color,
            )


def _draw_boundaries(axes: Any, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        color = _COLOR[f"series-{index % SERIES}"]
        if line.boundary is not None:
            _draw_boundary(axes, line.boundary, index, color)
        if line.prediction is not None:
            _mark(axes, line.prediction.positions, index, "^", 6.5, _COLOR["text"])
            _mark(axes, line.prediction.idle_compute_positions, index, "x", 6.0, _COLOR["muted"])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.yaxis.set_major_locator(FixedLocator(range(len(lines))))
    axes.set_yticklabels([f"B={line.batch_size}" for line in lines])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("positions per sequence, N")


def _draw_boundary(axes: Any, row: Boundary, index: int, color: str) -> None:
    axes.plot(
        [row.lower, row.upper], [index, index], color=color, linewidth=5.0, alpha=0.45,
        solid_capstyle="round",
    )  # fmt: skip
    marker = MARKERS[index % len(MARKERS)]
    axes.plot([row.positions], [index], marker=marker, markersize=6.0, color=color)
    if row.at_limit:
        axes.annotate(
            "+", (row.positions, index), xytext=(6, 0), textcoords="offset points", va="center",
            color=_COLOR["text"], fontweight="bold",
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
        axes.set_xlim(0.87, powers[-1] * 1.15)
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
        text += f" Within {epsilon:.0%}: {row.positions}{more} ({row.lower} to {row.upper})."
    if line.prediction is not None:
        row_p = line.prediction
        text += f" Predicted {row_p.positions}, idle-compute {row_p.idle_compute_positions}."
    return text


def _svg(figure: Figure, title: str, description: str, slug: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": slug}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), title, description, slug)


def _for_page(svg: str, title: str, description: str, slug: str) -> str:
    """Reduce matplotlib's file to an SVG element for the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Older releases write one "font", newer ones its parts; the family is the page's.
    svg = re.sub(r"\bfont: ((?:bold |\d+ )?[\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = re.sub(r"\bfont-family: [^;\"]+; ", "", svg)
    svg = _own_ids(svg, slug)
    for role, color in _COLOR.items():
        svg = svg.replace(color, f"var(--{role})")
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None, "matplotlib writes a viewBox"
    opening = (
        f'<svg viewBox="{view_box[1]}" role="img" aria-labelledby="{slug}-title {slug}-desc" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{slug}-title">{escape(title)}</title>'
        f'<desc id="{slug}-desc">{escape(description)}</desc>'
    )
    return opening + re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()


def _own_ids(svg: str, slug: str) -> str:
    """Remove unused ids and prefix the others with the plot's slug."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))

    def rename(match: re.Match[str]) -> str:
        return f' id="{slug}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]*)"', rename, svg)
    return re.sub(r'(url\(|href=")#([^)"]+)', rf"\1#{slug}-\2", svg)
