"""Panels over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grafana_foundation_sdk.builders import heatmap, statetimeline, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import heatmap as heatmap_models

from dashboards.builder.grafana.colors import GREY, STATES
from dashboards.builder.grafana.queries import Query, state_code
from dashboards.builder.grafana.style import (
    Frame,
    color_of,
    fixed,
    legend_below,
    names_of,
    property_of,
    tooltip,
)


def series(
    frame: Frame,
    *queries: Query,
    unit: str = "short",
    colors: Mapping[str, str] | None = None,
    dashed: Iterable[str] = (),
    band: tuple[str, str] | None = None,
    decimals: int | None = None,
    steps: bool = False,
    axis: str = "",
    minimum: float | None = 0,
) -> timeseries.Panel:
    """Curves over time.

    Args:
        colors: fixed colours by legend.
        dashed: legends drawn as dashed lines: limits and references.
        band: legends of an upper and a lower curve, with the area between them filled.
        decimals: of the values; None leaves it to Grafana.
        steps: values hold until the next one: counts.
        axis: what the vertical axis is, if the unit does not say it.
        minimum: where the vertical axis begins; None leaves it to Grafana.
    """
    line = kinds.LineInterpolation.STEP_AFTER if steps else kinds.LineInterpolation.LINEAR
    panel = (
        frame.around(timeseries.Panel(), queries)
        .unit(unit)
        .line_width(2)
        .fill_opacity(0 if band else 8)
        .line_interpolation(line)
        .show_points(kinds.VisibilityMode.NEVER)
        .axis_label(axis)
        .legend(legend_below())
        .tooltip(tooltip())
    )
    if minimum is not None:
        panel.min(minimum)
    if decimals is not None:
        panel.decimals(decimals)
    for legend, color in (colors or {}).items():
        panel.override_by_regexp(f"/^{legend}\\b/", [color_of(color)])
    for legend in dashed:
        panel.override_by_regexp(
            f"/^{legend}\\b/",
            [
                property_of("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                property_of("custom.fillOpacity", 0),
            ],
        )
    if band is not None:
        upper, lower = band
        panel.override_by_name(
            upper,
            [property_of("custom.fillBelowTo", lower), property_of("custom.fillOpacity", 20)],
        )
    return panel


def states(frame: Frame, by: str, legend: str) -> statetimeline.Panel:
    """The probe's states over time."""
    return (
        frame.around(statetimeline.Panel(), [Query(state_code(by), legend)])
        .mappings([names_of(STATES)])
        .color_scheme(fixed(GREY))
        .show_value(kinds.VisibilityMode.AUTO)
        .fill_opacity(80)
        .legend(legend_below())
    )


def heat(frame: Frame, query: Query, unit: str, buckets: bool) -> heatmap.Panel:
    """A heat map over time, in a palette that also works in grey.

    Args:
        buckets: the query gives a histogram's buckets and ``unit`` is theirs; otherwise each
            series is a row and ``unit`` is its values'.
    """
    panel = (
        frame.around(heatmap.Panel(), [query])
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .steps(64)
        )
        .cell_gap(1)
        .show_legend()
    )
    if buckets:
        return panel.y_axis(heatmap.YAxisConfig().unit(unit)).filter_values(
            heatmap.FilterValueRange().le(1e-9)
        )
    return panel.cell_values(heatmap.CellValues().unit(unit))
