"""Panels over something else than time: a label with a number in it, or groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grafana_foundation_sdk.builders import barchart, common, trend
from grafana_foundation_sdk.models import common as kinds

from dashboards.builder.grafana.queries import Query
from dashboards.builder.grafana.style import Frame, color_of, legend_below, property_of, tooltip
from dashboards.builder.grafana.tables import as_number, named_columns, transform


def bars(frame: Frame, queries: Mapping[str, tuple[str, str]], axis: str) -> barchart.Panel:
    """Grouped bars on a logarithmic axis, one group for each module and batch size.

    Args:
        queries: name of the bar -> (query, colour); a query gives the labels module, batch_size,
            and cell, which names the group.
    """
    panel = (
        frame.around(barchart.Panel(), [Query(q, instant=True) for q, _ in queries.values()])
        .transformations(
            [
                transform("merge"),
                *as_number("batch_size"),
                # Sorting is stable: batch sizes stay ascending within a module.
                transform("sortBy", fields={}, sort=[{"field": "module"}]),
                named_columns(list(queries), without=("module", "batch_size")),
            ]
        )
        .x_field("cell")
        .unit("short")
        .show_value(kinds.VisibilityMode.ALWAYS)
        .axis_label(axis)
        .scale_distribution(
            common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(2)
        )
        .legend(legend_below())
        .tooltip(tooltip())
    )
    for name, (_, color) in queries.items():
        panel.override_by_name(name, [color_of(color)])
    return panel


def curves(
    frame: Frame,
    queries: Mapping[str, str],
    x: str,
    unit: str,
    colors: Mapping[str, str],
    dashed: Iterable[str] = (),
    axis: str = "",
) -> trend.Panel:
    """Curves over a numeric label ``x`` instead of time: the values now, one query for each."""
    panel = (
        frame.around(trend.Panel(), [Query(expr, instant=True) for expr in queries.values()])
        .transformations([transform("merge"), *as_number(x), named_columns(list(queries))])
        .x_field(x)
        .unit(unit)
        .line_width(2)
        .point_size(6)
        .show_points(kinds.VisibilityMode.ALWAYS)
        .span_nulls(True)
        .axis_label(axis)
        .legend(legend_below())
        .tooltip(tooltip())
    )
    for name, color in colors.items():
        panel.override_by_name(name, [color_of(color)])
    for name in dashed:
        panel.override_by_name(
            name,
            [
                property_of("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                property_of("custom.showPoints", "never"),
            ],
        )
    return panel
