"""Single values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import dashboard, stat
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder.grafana.colors import BLUE, VERMILLION
from dashboards.builder.grafana.queries import Query
from dashboards.builder.grafana.style import (
    Frame,
    color_of,
    fixed,
    last_value,
    names_of,
    thresholds,
)


def warning(frame: Frame, expr: str, fault: str, ok: str, bad: str) -> stat.Panel:
    """A single value now, red while a condition holds, whatever the value.

    Args:
        fault: a query without labels that returns something while the value is bad.
        ok: legend of the value without the fault.
        bad: legend with it.
    """
    queries = (
        Query(f"{expr} unless on () ({fault})", ok, now=True),
        Query(f"{expr} and on () ({fault})", bad, now=True),
    )
    panel = (
        frame.around(stat.Panel(), queries)
        .unit("short")
        .decimals(0)
        .color_scheme(fixed(BLUE))
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.NONE)
        .text_mode(kinds.BigValueTextMode.VALUE)
        .reduce_options(last_value())
        .no_value("no data")
    )
    return panel.override_by_name(bad, [color_of(VERMILLION)])


def number(
    frame: Frame,
    expr: str,
    unit: str = "short",
    decimals: int = 0,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    names: Mapping[str, str] | None = None,
) -> stat.Panel:
    """A single value, with its curve over the dashboard's time range behind it.

    Args:
        names: names and colours of the values 0, 1, ..., see :func:`code`; such a value has no
            curve.
    """
    panel = (
        frame.around(stat.Panel(), [Query(expr)])
        .unit(unit)
        .decimals(decimals)
        .thresholds(thresholds(*steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.NONE if names else kinds.BigValueGraphMode.AREA)
        .reduce_options(last_value())
        .no_value("no data")
    )
    return panel.mappings([names_of(names)]) if names else panel
