"""Draws a page from a dashboard's JSON and its queries' answers, for the docs' pictures.

This is no Grafana: it knows the few panel types that our dashboards use, and takes titles, places,
units, colours and legends from the JSON, so that the pictures show what the panels hold. The page
says so.
"""

from __future__ import annotations

import html
import io
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from panels import Answered
from PIL import Image

from dashboards.local_stack.prometheus import Series

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

COLUMN, ROW, GAP = 54, 30, 8
"""Pixels of a column and of a row of Grafana's grid, and between panels."""
NOTICE = (
    "Preview drawn from the dashboard's JSON with live answers of Prometheus to its queries. "
    "Grafana draws the same panels in its own style."
)
STYLE = """
body { margin: 0; padding: 12px; background: #f4f5f5; font: 13px/1.3 'DejaVu Sans', sans-serif; }
h1 { font-size: 18px; margin: 0 0 2px; } .notice { color: #555; margin: 0 0 8px; }
.vars { margin: 0 0 8px; } .vars b { font-weight: 600; color: #333; }
.vars span { background: #fff; border: 1px solid #ccc; padding: 2px 6px; margin-right: 8px; }
.grid { position: relative; }
.panel { position: absolute; box-sizing: border-box; background: #fff; border: 1px solid #d8d8d8;
  border-radius: 2px; overflow: hidden; }
.panel h2 { font-size: 12px; margin: 5px 8px 0; font-weight: 600; }
.row { position: absolute; font-weight: 600; padding-top: 6px; color: #333; }
.stat { font-size: 34px; text-align: center; margin-top: 12px; font-weight: 600; }
table { border-collapse: collapse; margin: 6px 8px; width: calc(100% - 16px); font-size: 12px; }
th { text-align: left; color: #555; font-weight: 600; border-bottom: 1px solid #ccc; }
td { border-bottom: 1px solid #eee; padding: 2px 6px 2px 0; }
.none { color: #777; text-align: center; margin-top: 24px; }
"""


def write_page(
    path: Path,
    dashboard: Mapping[str, Any],
    values: Mapping[str, str],
    answered: Iterable[Answered],
    seconds: float,
) -> tuple[int, int]:
    """Write the page; returns its width and height in pixels."""
    parts, height = [], 0
    for answer in answered:
        at = answer.panel.place
        box = (
            f"left:{at['x'] * COLUMN}px;top:{at['y'] * (ROW + GAP)}px;"
            f"width:{at['w'] * COLUMN - GAP}px;height:{at['h'] * (ROW + GAP) - GAP}px"
        )
        title = html.escape(_filled(answer.panel.title, values))
        height = max(height, (at["y"] + at["h"]) * (ROW + GAP))
        if answer.panel.kind == "row":
            parts.append(f'<div class="row" style="{box}">{title}</div>')
        else:
            body = _body(answer, seconds)
            parts.append(f'<div class="panel" style="{box}"><h2>{title}</h2>{body}</div>')
    chosen = "".join(
        f"<b>{html.escape(name)}</b> <span>{html.escape('All' if value == '.*' else value)}</span>"
        for name, value in values.items()
    )
    path.write_text(
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>"
        f"<h1>{html.escape(dashboard['title'])}</h1><p class=notice>{NOTICE}</p>"
        f"<p class=vars>{chosen}</p>"
        f"<div class=grid style='height:{height}px'>{''.join(parts)}</div>"
    )
    return 24 * COLUMN + 24, height + 104


def screenshot(page: Path, size: tuple[int, int], picture: Path, profile: Path) -> None:
    """Let Chromium draw the page into a PNG."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed (apt: chromium)"
    subprocess.run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={profile}", "--hide-scrollbars",
            f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(
            256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
    small.save(picture, optimize=True)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), text)


def _body(answer: Answered, seconds: float) -> str:
    draw: dict[str, Callable[[Answered, Axes], None]] = {
        "timeseries": _timeseries,
        "trend": _trend,
        "barchart": _barchart,
        "state-timeline": _states,
        "heatmap": _heatmap,
    }
    kind = answer.panel.kind
    if not any(answer.answers.values()):
        return '<p class="none">No data</p>'
    if kind == "stat":
        return _stat(answer)
    if kind == "table":
        return _table(answer)
    at = answer.panel.place
    width, height = at["w"] * COLUMN - GAP - 8, at["h"] * (ROW + GAP) - GAP - 30
    figure, axes = plt.subplots(figsize=(width / 96, height / 96), layout="constrained")
    draw[kind](answer, axes)
    if kind not in {"trend", "barchart"}:
        axes.set_xlim(-seconds, 0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} s"))
    out = io.StringIO()
    figure.savefig(out, format="svg", dpi=96, transparent=True)
    plt.close(figure)
    return out.getvalue().split("?>", 1)[1].split(">", 1)[1]


def _unit(answer: Answered) -> Callable[[float], str]:
    unit = answer.panel.raw.get("fieldConfig", {"defaults": {}})["defaults"].get("unit", "short")
    options = answer.panel.raw.get("options", {})
    unit = options.get("cellValues", {}).get("unit", unit)
    if unit == "percentunit":
        return lambda v: f"{100 * v:.3g} %"
    if unit == "s":
        return lambda v: _scaled(v, (("s", 1), ("ms", 1e-3), ("\N{MICRO SIGN}s", 1e-6)))
    if unit == "bytes":
        return lambda v: _scaled(v, (("GiB", 2**30), ("MiB", 2**20), ("B", 1)))
    return lambda v: f"{v:.4g}"


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    for name, size in units:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} {units[-1][0]}" if value else "0"


def _mapped(answer: Answered) -> dict[str, dict[str, str]]:
    mappings = answer.panel.raw["fieldConfig"]["defaults"].get("mappings", [])
    return mappings[0]["options"] if mappings else {}


def _legend(pattern: str, series: Series) -> str:
    if pattern == "__auto":
        return ", ".join(f"{k}={v}" for k, v in series.labels.items() if k != "__name__") or "value"
    return re.sub(r"{{(\w+)}}", lambda match: series.labels.get(match[1], ""), pattern)


def _overrides(answer: Answered, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for override in answer.panel.raw["fieldConfig"].get("overrides", []):
        matcher, wanted = override["matcher"]["id"], override["matcher"]["options"]
        hit = name == wanted if matcher == "byName" else re.search(wanted.strip("/"), name)
        if hit:
            found |= {p["id"]: p["value"] for p in override["properties"]}
    return found


def _style(answer: Answered, name: str) -> dict[str, Any]:
    found = _overrides(answer, name)
    style: dict[str, Any] = {"label": name, "linewidth": 1.8}
    if "color" in found:
        style["color"] = found["color"]["fixedColor"]
    if "custom.lineStyle" in found:
        style["linestyle"] = (0, (4, 3))
    return style


def _stat(answer: Answered) -> str:
    (series, *_) = answer.answers["A"]
    value = series.points[-1][1]
    named = _mapped(answer).get(f"{value:g}")
    defaults = answer.panel.raw["fieldConfig"]["defaults"]
    color = "#000"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    text, color = (named["text"], named["color"]) if named else (_unit(answer)(value), color)
    return f'<div class="stat" style="color:{color}">{html.escape(text)}</div>'


def _table(answer: Answered) -> str:
    transforms = {t["id"]: t["options"] for t in answer.panel.raw["transformations"]}
    matrix = transforms.get("groupingToMatrix")
    if matrix is None:
        return _merged_table(answer, transforms["organize"]["renameByName"])
    down, across = matrix["rowField"], matrix["columnField"]
    cells = {
        (s.labels[down], int(s.labels[across])): s.labels.get(
            matrix["valueField"], f"{s.points[-1][1]:g}"
        )
        for s in answer.answers["A"]
    }
    columns = sorted({column for _, column in cells})
    rows = sorted({row for row, _ in cells}, key=lambda r: (len(r), r) if r.isdigit() else (0, r))
    body = [[row, *(cells.get((row, column), "-") for column in columns)] for row in rows]
    return _html_table([f"{down} \\ {across}", *map(str, columns)], body)


def _merged_table(answer: Answered, names: Mapping[str, str]) -> str:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    labels: list[str] = []
    for letter, found in answer.answers.items():
        for series in found:
            of = dict(series.labels)
            basis = of.pop("basis", None)  # a column of text, which is shown as it is
            labels = sorted(of, key=["module", "batch_size", "context"].index)
            column = names.get("basis", "basis") if basis else names[f"Value #{letter}"]
            row = rows.setdefault(tuple(of[label] for label in labels), {})
            row[column] = basis or f"{series.points[-1][1]:g}"
    columns = list(names.values())
    if any("basis" in row for row in rows.values()) and "basis" not in columns:
        columns.append("basis")
    order = sorted(rows, key=lambda key: (int(key[1]), key[0], int(key[2])))
    body = [[*key, *(rows[key].get(column, "-") for column in columns)] for key in order]
    return _html_table([*labels, *columns], body)


def _html_table(head: list[str], body: list[list[str]]) -> str:
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><tr>{heads}</tr>{rows}</table>"


def _timeseries(answer: Answered, axes: Axes) -> None:
    unit = _unit(answer)
    custom = answer.panel.raw["fieldConfig"]["defaults"]["custom"]
    end = max(s.points[-1][0] for found in answer.answers.values() for s in found)
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for target in answer.panel.targets:
        for series in answer.answers[target.letter]:
            name = _legend(target.legend, series)
            x = np.array([t - end for t, _ in series.points])
            y = np.array([v for _, v in series.points])
            stepped = custom.get("lineInterpolation") == "stepAfter"
            axes.plot(x, y, drawstyle="steps-post" if stepped else None, **_style(answer, name))
            drawn[name] = (x, y)
    for name, (x, y) in drawn.items():
        below = drawn.get(_overrides(answer, name).get("custom.fillBelowTo", ""))
        if below is not None and len(below[0]) == len(x):
            axes.fill_between(x, y, below[1], alpha=0.2, step="post")
    axes.set_ylim(bottom=0, top=None)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.1 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=unit(1) == "1" and high > 3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: unit(v)))
    axes.set_ylabel(custom.get("axisLabel", ""))
    _put_legend(axes, len(drawn))


def _put_legend(axes: Axes, entries: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(entries, 5), fontsize=8)


def _columns(answer: Answered) -> dict[str, str]:
    transforms = {t["id"]: t["options"] for t in answer.panel.raw["transformations"]}
    names: dict[str, str] = transforms["organize"]["renameByName"]
    return {target.letter: names[f"Value #{target.letter}"] for target in answer.panel.targets}


def _trend(answer: Answered, axes: Axes) -> None:
    unit, entries = _unit(answer), 0
    for letter, name in _columns(answer).items():
        points = sorted(
            (int(s.labels["positions"]), s.points[-1][1]) for s in answer.answers[letter]
        )
        if points:
            style = _style(answer, name)
            marker = "" if "linestyle" in style else "o"
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, **style)
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
    shown = {letter: name for letter, name in _columns(answer).items() if answer.answers[letter]}
    width = 0.8 / len(shown)
    for place, (letter, name) in enumerate(shown.items()):
        by_cell = {s.labels["cell"]: s.points[-1][1] for s in answer.answers[letter]}
        style = _style(answer, name)
        bars = axes.bar(
            [i + place * width for i in range(len(groups))],
            [by_cell.get(cell, math.nan) for *_, cell in groups],
            width,
            label=name,
            color=style.get("color"),
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
    absent = [name for letter, name in _columns(answer).items() if letter not in shown]
    if absent:
        axes.set_title(f"no data: {', '.join(absent)}", fontsize=8, loc="right", color="#777")


def _states(answer: Answered, axes: Axes) -> None:
    names, (target,) = _mapped(answer), answer.panel.targets
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
    legends = [_legend(target.legend, series) for series in answer.answers["A"]]
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
    unit = _unit(answer)
    labels = [_legend(target.legend, s) for s in ordered]
    if buckets:
        labels = [
            text if text == "+Inf" else _scaled(float(text), (("s", 1), ("ms", 1e-3), ("us", 1e-6)))
            for text in labels
        ]
    axes.set_yticks(np.arange(len(ordered)) + 0.5, labels)
    axes.set_ylabel("" if buckets else "layer")
    axes.grid(visible=False)
    bar = axes.figure.colorbar(mesh, ax=axes)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}" if buckets else unit(v)))
