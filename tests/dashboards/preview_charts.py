"""Draws a panel's answers with matplotlib, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from panels import Answered
from preview_looks import columns, legend, mapped, overrides, scaled, style, unit_of

mpl.use("svg")
mpl.rcParams.update(
    {
        "font.family": "sans-serif", "font.size": 8, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999", "axes.grid": True,
        "grid.color": "#e4e4e4", "axes.axisbelow": True, "svg.fonttype": "none",
        "legend.frameon": False,
        "axes.prop_cycle": mpl.cycler(
            color=["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999"]
        ),
    }
)  # fmt: skip
THEMES = {
    "light": {"text": "#222", "muted": "#777", "grid": "#e4e4e4"},
    "dark": {"text": "#ccccdc", "muted": "#9a9aa5", "grid": "#33343c"},
}


def chart(answer: Answered, seconds: float, size: tuple[float, float], theme: str) -> str:
    """The panel as SVG.

    Args:
        seconds: that the answers look back on.
        size: in pixels.
    """
    draw: dict[str, Callable[[Answered, Axes], None]] = {
        "timeseries": _timeseries,
        "trend": _trend,
        "barchart": _barchart,
        "state-timeline": _states,
        "heatmap": _heatmap,
    }
    colors = THEMES[theme]
    themed = {
        **dict.fromkeys(("text.color", "axes.labelcolor"), colors["text"]),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), colors["muted"]),
        "grid.color": colors["grid"],
    }
    with mpl.rc_context(themed):
        figure, axes = plt.subplots(figsize=(size[0] / 96, size[1] / 96), layout="constrained")
        kind = answer.panel.kind
        draw[kind](answer, axes)
        if kind not in {"trend", "barchart"}:
            axes.set_xlim(-seconds, 0)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} s"))
        out = io.StringIO()
        figure.savefig(out, format="svg", dpi=96, transparent=True)
        plt.close(figure)
    return out.getvalue().split("?>", 1)[1].split(">", 1)[1]


def _timeseries(answer: Answered, axes: Axes) -> None:
    unit = unit_of(answer)
    custom = answer.panel.raw["fieldConfig"]["defaults"]["custom"]
    end = max(s.points[-1][0] for found in answer.answers.values() for s in found)
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for target in answer.panel.targets:
        for series in answer.answers[target.letter]:
            name = legend(target.legend, series)
            x = np.array([t - end for t, _ in series.points])
            y = np.array([v for _, v in series.points])
            stepped = custom.get("lineInterpolation") == "stepAfter"
            axes.plot(x, y, drawstyle="steps-post" if stepped else None, **style(answer, name))
            drawn[name] = (x, y)
    for name, (x, y) in drawn.items():
        below = drawn.get(overrides(answer, name).get("custom.fillBelowTo", ""))
        if below is not None and len(below[0]) == len(x):
            axes.fill_between(x, y, below[1], alpha=0.2, step="post")
    if "min" in answer.panel.raw["fieldConfig"]["defaults"]:
        axes.set_ylim(bottom=0, top=None)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 1.1 or 1)
    high = axes.get_ylim()[1]
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=unit(1) == "1" and high > 3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: unit(v)))
    axes.set_ylabel(custom.get("axisLabel", ""))
    _put_legend(axes, len(drawn))


def _put_legend(axes: Axes, entries: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(entries, 5), fontsize=8)


def _trend(answer: Answered, axes: Axes) -> None:
    unit, entries = unit_of(answer), 0
    for letter, name in columns(answer).items():
        points = sorted(
            (int(s.labels["positions"]), s.points[-1][1]) for s in answer.answers[letter]
        )
        if points:
            look = style(answer, name)
            marker = "" if "linestyle" in look else "o"
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, **look)
            entries += 1
    axes.set_xlabel("positions")
    axes.set_ylabel(answer.panel.raw["fieldConfig"]["defaults"]["custom"].get("axisLabel", ""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: unit(v)))
    axes.legend(ncols=entries, fontsize=8, loc="upper left")


def _barchart(answer: Answered, axes: Axes) -> None:
    groups = sorted(
        {
            (s.labels["module"], int(s.labels["batch_size"]), s.labels["cell"])
            for found in answer.answers.values()
            for s in found
        }
    )
    shown = {letter: name for letter, name in columns(answer).items() if answer.answers[letter]}
    width = 0.8 / len(shown)
    for place, (letter, name) in enumerate(shown.items()):
        by_cell = {s.labels["cell"]: s.points[-1][1] for s in answer.answers[letter]}
        look = style(answer, name)
        bars = axes.bar(
            [i + place * width for i in range(len(groups))],
            [by_cell.get(cell, math.nan) for *_, cell in groups],
            width,
            label=name,
            color=look.get("color"),
        )
        axes.bar_label(bars, fmt="%g", fontsize=8)
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=0.7)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xticks(
        [i + width * (len(shown) - 1) / 2 for i in range(len(groups))],
        [cell for *_, cell in groups],
    )
    axes.set_ylabel("positions")
    axes.legend(ncols=3, fontsize=8)
    absent = [name for letter, name in columns(answer).items() if letter not in shown]
    if absent:
        axes.set_title(f"no data: {', '.join(absent)}", fontsize=8, loc="right", color="#777")


def _states(answer: Answered, axes: Axes) -> None:
    names, (target,) = mapped(answer), answer.panel.targets
    end = max(s.points[-1][0] for s in answer.answers["A"])
    for row, series in enumerate(answer.answers["A"]):
        step = series.points[1][0] - series.points[0][0] if len(series.points) > 1 else 1.0
        previous = None
        for when, value in series.points:
            style = names[f"{value:g}"]
            color = style["color"]
            axes.barh(row, step, left=when - end - step, color=color, edgecolor=color, height=0.5)
            if value != previous:
                axes.text(when - end + step, row, style["text"], va="center", fontsize=9)
            previous = value
    legends = [legend(target.legend, series) for series in answer.answers["A"]]
    axes.set_yticks(range(len(legends)), legends)
    axes.set_ylim(-1, len(legends))
    axes.grid(visible=False)


def _heatmap(answer: Answered, axes: Axes) -> None:
    (target,) = answer.panel.targets
    buckets = "le" in answer.answers["A"][0].labels
    key = "le" if buckets else "layer"
    ordered = sorted(answer.answers["A"], key=lambda s: float(s.labels[key]))
    times = sorted({t for s in ordered for t, _ in s.points})
    grid = np.full((len(ordered), len(times)), np.nan)
    for row, series in enumerate(ordered):
        for when, value in series.points:
            grid[row, times.index(when)] = value
    if buckets:  # cumulative to single buckets, as Grafana does
        grid = np.diff(grid, axis=0, prepend=0)
        grid[grid <= 1e-9] = np.nan
    x = np.array([t - times[-1] for t in times])
    step = x[1] - x[0] if len(x) > 1 else 1.0
    mesh = axes.pcolormesh(
        np.append(x - step / 2, x[-1] + step / 2), np.arange(len(ordered) + 1), grid, cmap="viridis"
    )
    unit = unit_of(answer)
    labels = [legend(target.legend, s) for s in ordered]
    if buckets:
        labels = [
            text if text == "+Inf" else scaled(float(text), (("s", 1), ("ms", 1e-3), ("us", 1e-6)))
            for text in labels
        ]
    axes.set_yticks(np.arange(len(ordered)) + 0.5, labels)
    axes.set_ylabel("" if buckets else "layer")
    axes.grid(visible=False)
    bar = axes.figure.colorbar(mesh, ax=axes)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}" if buckets else unit(v)))
