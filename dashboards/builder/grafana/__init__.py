"""Queries, panels and variables for all dashboards, in Grafana's typed builders.

Filters, colours, units and legends are defined here once; each file has one group of panels.
"""

from dashboards.builder.grafana.charts import bars, curves
from dashboards.builder.grafana.colors import (
    BASES,
    BLUE,
    CONTEXT_FREE,
    GAIN_STEPS,
    GREEN,
    GREY,
    MODULE_COLORS,
    MODULES,
    ORANGE,
    PRIORS,
    PURPLE,
    SKY,
    STATES,
    VERMILLION,
)
from dashboards.builder.grafana.numbers import number, warning
from dashboards.builder.grafana.page import (
    batch_size_variable,
    finished,
    frame_of,
    page,
    row,
    tolerance,
    variable,
)
from dashboards.builder.grafana.queries import (
    ONE_ENGINE,
    PLACE,
    Query,
    code,
    in_live_cell,
    lasting,
    live,
    mean,
    metric,
    of_most_gain,
    per_second,
    state_code,
    steady,
)
from dashboards.builder.grafana.style import Frame
from dashboards.builder.grafana.tables import Column, listing, matrix, servers
from dashboards.builder.grafana.timelines import heat, series, states

__all__ = [
    "BASES",
    "BLUE",
    "CONTEXT_FREE",
    "GAIN_STEPS",
    "GREEN",
    "GREY",
    "MODULES",
    "MODULE_COLORS",
    "ONE_ENGINE",
    "ORANGE",
    "PLACE",
    "PRIORS",
    "PURPLE",
    "SKY",
    "STATES",
    "VERMILLION",
    "Column",
    "Frame",
    "Query",
    "bars",
    "batch_size_variable",
    "code",
    "curves",
    "finished",
    "frame_of",
    "heat",
    "in_live_cell",
    "lasting",
    "listing",
    "live",
    "matrix",
    "mean",
    "metric",
    "number",
    "of_most_gain",
    "page",
    "per_second",
    "row",
    "series",
    "servers",
    "state_code",
    "states",
    "steady",
    "tolerance",
    "variable",
    "warning",
]
