"""What a panel's JSON says of its looks: units, names of values, legends, colours."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from panels import Answered

from dashboards.local_stack.prometheus import Series


def unit_of(answer: Answered) -> Callable[[float], str]:
    """How the panel writes a value."""
    unit = answer.panel.raw.get("fieldConfig", {"defaults": {}})["defaults"].get("unit", "short")
    options = answer.panel.raw.get("options", {})
    decimals = answer.panel.raw.get("fieldConfig", {"defaults": {}})["defaults"].get("decimals")
    return named_unit(options.get("cellValues", {}).get("unit", unit), decimals)


def named_unit(unit: str, decimals: int | None = None) -> Callable[[float], str]:
    """How Grafana's unit writes a value."""
    if unit == "percentunit" and decimals is not None:
        return lambda v: f"{round(100 * v, int(decimals)) + 0.0:.{int(decimals)}f} %"
    if unit == "percentunit":
        return lambda v: f"{100 * v:.3g} %"
    if unit == "s":
        return lambda v: scaled(v, (("s", 1), ("ms", 1e-3), ("\N{MICRO SIGN}s", 1e-6)))
    if unit == "bytes":
        return lambda v: scaled(v, (("GiB", 2**30), ("MiB", 2**20), ("B", 1)))
    return lambda v: f"{v:.4g}"


def scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    for name, size in units:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} {units[-1][0]}" if value else "0"


def mapped(answer: Answered) -> dict[str, dict[str, str]]:
    mappings = answer.panel.raw["fieldConfig"]["defaults"].get("mappings", [])
    return mappings[0]["options"] if mappings else {}


def legend(pattern: str, series: Series) -> str:
    if pattern == "__auto":
        return ", ".join(f"{k}={v}" for k, v in series.labels.items() if k != "__name__") or "value"
    return re.sub(r"{{(\w+)}}", lambda match: series.labels.get(match[1], ""), pattern)


def overrides(answer: Answered, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for override in answer.panel.raw["fieldConfig"].get("overrides", []):
        matcher, wanted = override["matcher"]["id"], override["matcher"]["options"]
        hit = name == wanted if matcher == "byName" else re.search(wanted.strip("/"), name)
        if hit:
            found |= {p["id"]: p["value"] for p in override["properties"]}
    return found


def style(answer: Answered, name: str) -> dict[str, Any]:
    """How matplotlib draws the curve."""
    found = overrides(answer, name)
    style: dict[str, Any] = {"label": name, "linewidth": 1.8}
    if "color" in found:
        style["color"] = found["color"]["fixedColor"]
    if "custom.lineStyle" in found:
        style["linestyle"] = (0, (4, 3))
    return style


def columns(answer: Answered) -> dict[str, str]:
    transforms = {t["id"]: t["options"] for t in answer.panel.raw["transformations"]}
    names: dict[str, str] = transforms["organize"]["renameByName"]
    return {target.letter: names[f"Value #{target.letter}"] for target in answer.panel.targets}
