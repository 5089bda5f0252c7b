"""Draws a page from a dashboard's JSON and its queries' answers, for the docs' pictures.

This is no Grafana: it knows the few panel types that our dashboards use, and takes titles, places,
units, colours and legends from the JSON, so that the pictures show what the panels hold. The page
says so.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panels import Answered
from PIL import Image
from preview_charts import chart
from preview_looks import mapped, named_unit, overrides, unit_of

PICTURES = Path(__file__).parents[2] / "docs" / "dashboards"
COLUMN, ROW, GAP = 65, 30, 8
"""Pixels of a column and of a row of Grafana's grid, and between panels."""
WIDTH = 24 * COLUMN + 40
NOTICE = (
    "Preview drawn from the dashboard's JSON with live answers of Prometheus to its queries. "
    "Grafana draws the same panels in its own style."
)
STYLE = """
:root { --page: #f4f5f5; --panel: #fff; --line: #d8d8d8; --text: #222; --muted: #555; }
:root.dark {
  --page: #111217; --panel: #181b1f; --line: #2e3036; --text: #ccccdc; --muted: #9a9aa5; }
body { margin: 0; padding: 16px; background: var(--page); color: var(--text);
  font: 13px/1.3 'DejaVu Sans', sans-serif; }
h1 { font-size: 18px; margin: 0 0 2px; } .notice { color: var(--muted); margin: 0 0 8px; }
.vars { margin: 0 0 8px; } .vars b { font-weight: 600; }
.vars span { background: var(--panel); border: 1px solid var(--line); padding: 2px 6px;
  margin-right: 8px; }
.grid { position: relative; }
.panel { position: absolute; box-sizing: border-box; background: var(--panel);
  border: 1px solid var(--line); border-radius: 2px; overflow: hidden; }
.panel h2 { font-size: 12px; margin: 5px 8px 0; font-weight: 600; }
.row { position: absolute; font-weight: 600; padding-top: 6px; }
.stat { font-size: 34px; text-align: center; margin-top: 12px; font-weight: 600; }
table { border-collapse: collapse; margin: 6px 8px; width: calc(100% - 16px); font-size: 12px; }
th { text-align: left; color: var(--muted); font-weight: 600; }
th, td { border-bottom: 1px solid var(--line); padding: 2px 6px 2px 0; }
.none { color: var(--muted); text-align: center; margin-top: 24px; }
"""


def draw(
    folder: Path,
    dashboard: Mapping[str, Any],
    values: Mapping[str, str],
    answers: Sequence[Answered],
    seconds: float,
) -> None:
    """Draw the picture in both themes; with NFP_WRITE_PICTURES they replace those of the docs."""
    drawn = sum(answer.panel.kind != "row" for answer in answers)
    for theme, ending in (("light", ""), ("dark", "-dark")):
        page, picture = folder / f"{theme}.html", folder / f"{dashboard['uid']}{ending}.png"
        size = write_page(page, dashboard, values, answers, seconds, theme)
        text = page.read_text()
        assert text.count('class="panel"') == drawn
        assert "No data" not in text
        screenshot(page, size, picture, folder / "profile")
        assert 10_000 < picture.stat().st_size < 150_000
        if os.environ.get("NFP_WRITE_PICTURES"):
            shutil.copy(picture, PICTURES / picture.name)


def write_page(
    path: Path,
    dashboard: Mapping[str, Any],
    values: Mapping[str, str],
    answered: Iterable[Answered],
    seconds: float,
    theme: str = "light",
) -> tuple[int, int]:
    """Write the page; returns its width and height in pixels.

    Args:
        theme: light or dark.
    """
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
            body = _body(answer, seconds, theme)
            parts.append(f'<div class="panel" style="{box}"><h2>{title}</h2>{body}</div>')
    chosen = "".join(
        f"<b>{html.escape(name)}</b> <span>{html.escape('All' if value == '.*' else value)}</span>"
        for name, value in values.items()
    )
    path.write_text(
        f"<!doctype html><html class={theme}><meta charset=utf-8><style>{STYLE}</style>"
        f"<h1>{html.escape(dashboard['title'])}</h1><p class=notice>{NOTICE}</p>"
        f"<p class=vars>{chosen}</p>"
        f"<div class=grid style='height:{height}px'>{''.join(parts)}</div>"
    )
    return WIDTH, height + 112


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


def _body(answer: Answered, seconds: float, theme: str) -> str:
    if not any(answer.answers.values()):
        return '<p class="none">No data</p>'
    kind = answer.panel.kind
    if kind == "stat":
        return _stat(answer)
    if kind == "table":
        return _table(answer)
    at = answer.panel.place
    size = at["w"] * COLUMN - GAP - 8, at["h"] * (ROW + GAP) - GAP - 30
    return chart(answer, seconds, size, theme)


def _stat(answer: Answered) -> str:
    target = next(t for t in answer.panel.targets if answer.answers[t.letter])
    (series, *_) = answer.answers[target.letter]
    value = series.points[-1][1]
    color = _color_of(answer.panel.raw["fieldConfig"]["defaults"], value)
    color = overrides(answer, target.legend).get("color", {}).get("fixedColor", color)
    named = mapped(answer).get(f"{value:g}")
    text, color = (named["text"], named["color"]) if named else (unit_of(answer)(value), color)
    return f'<div class="stat" style="color:{color}">{html.escape(text)}</div>'


def _color_of(looks: Mapping[str, Any], value: float) -> str:
    """The colour of a value by the panel's one colour or its thresholds."""
    if looks.get("color", {}).get("mode") == "fixed":
        return str(looks["color"]["fixedColor"])
    steps = looks.get("thresholds", {}).get("steps", [])
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return str(reached[-1]) if reached else "inherit"


def _table(answer: Answered) -> str:
    transforms = {t["id"]: t["options"] for t in answer.panel.raw["transformations"]}
    matrix = transforms.get("groupingToMatrix")
    if matrix is None:
        return _merged_table(answer, transforms["organize"])
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


def _merged_table(answer: Answered, organized: Mapping[str, Any]) -> str:
    """Rows of equal labels; a query whose value is left out adds its labels alone."""
    names, hidden = organized["renameByName"], organized["excludeByName"]
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    added: list[str] = []
    for letter, found in answer.answers.items():
        for series in found:
            of = dict(series.labels)
            text = of.pop("basis", None)  # a column of text, which is shown as it is
            row = rows.setdefault(tuple(sorted(of.items())), {})
            column = f"Value #{letter}"
            if text is not None:
                row["basis"] = html.escape(text)
                added = ["basis"]
            elif not hidden.get(column):
                row[names[column]] = _cell(answer, names[column], series.points[-1][1])
    labels = {label for row in rows for label, _ in row}
    order = ["module", "batch_size", "context", "model_name", "device", "cluster", "namespace"]
    shown = sorted(labels, key=lambda label: (order.index(label) if label in order else 9, label))
    columns = [name for key, name in names.items() if key.startswith("Value #")] + added
    body = [
        [*(html.escape(dict(row).get(label, "-")) for label in shown)]
        + [cells.get(column, "-") for column in columns]
        for row, cells in sorted(rows.items(), key=lambda entry: _sorted_by(dict(entry[0])))
    ]
    return _html_table([*(names.get(label, label) for label in shown), *columns], body)


def _sorted_by(row: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    return int(row.get("batch_size", 0)), tuple(row.values())


def _cell(answer: Answered, column: str, value: float) -> str:
    """A value as the overrides of its column want it."""
    looks = overrides(answer, column)
    named = looks.get("mappings", [{"options": {}}])[0]["options"].get(f"{value:g}")
    text = (
        named["text"]
        if named
        else named_unit(looks.get("unit", "short"), looks.get("decimals"))(value)
    )
    color = named["color"] if named else _color_of(looks, value)
    return f'<span style="color:{color}">{html.escape(text)}</span>'


def _html_table(head: list[str], body: list[list[str]]) -> str:
    """A table of texts; the body is HTML."""
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><tr>{heads}</tr>{rows}</table>"
