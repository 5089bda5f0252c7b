"""Queries, panels and variables for both dashboards, in Grafana's typed builders.

Filters, colours, units and legends are defined here once. Colours are the Okabe-Ito palette, which
is safe for colour-blind readers. Where a colour has a meaning (a state, a module), text has it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from grafana_foundation_sdk.builders import (
    barchart,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
    trend,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#999999"

MODULES = ("attention", "dense_ffn", "moe_ffn", "communication", "model")
MODULE_COLORS = dict(zip(MODULES, (BLUE, ORANGE, PURPLE, SKY, GREEN), strict=True))
STATES = {
    "warming": SKY,
    "probing": ORANGE,
    "steady": GREEN,
    "passive": GREY,
    "disabled": VERMILLION,
}
BASES = {"measured": GREEN, "inferred": BLUE, "predicted": ORANGE}
"""What an answer rests on, the best first."""
PRIORS = {"profile": GREEN, "predicted": BLUE, "generic": ORANGE}
"""What answers rest on without measurements, the best first."""
CONTEXT_FREE = ("dense_ffn", "moe_ffn", "communication")
"""Modules whose curves are exported at the smallest context alone."""

ENGINE = 'model_name="$model_name",engine=~"$engine",instance=~"$instance"'
"""Label matchers for the engines chosen by the dashboard's variables."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_IN_LIVE_CELL = "on (job, instance, model_name, engine, batch_size, context) group_left ()"
_AT_LIVE_BATCH = "on (job, instance, model_name, engine, batch_size)"
_LETTERS = "ABCDEFGHIJ"


class _Panel(Protocol):
    """The methods of the SDK's panel builders that are used here."""

    def build(self) -> models.Panel: ...
    def title(self, title: str) -> Any: ...
    def description(self, description: str) -> Any: ...
    def datasource(self, datasource: models.DataSourceRef) -> Any: ...
    def height(self, h: int) -> Any: ...
    def span(self, w: int) -> Any: ...
    def with_target(self, target: prometheus.Dataquery) -> Any: ...


P = TypeVar("P", bound=_Panel)


def metric(name: str, *more: str) -> str:
    """A selector of one metric for the chosen engines, narrowed by further label matchers."""
    return f"{name}{{{','.join((ENGINE, *more))}}}"


def live(name: str, *more: str) -> str:
    """The metric's value in the cell (batch size, context) of the last real step.

    The metric must carry the labels batch_size and context.
    """
    return f"{metric(name, *more)} * {_IN_LIVE_CELL} {metric('vllm_nfp_live_cell_info')}"


def at_live_batch(name: str, *more: str) -> str:
    """The metric's value at the probed batch size of the last real step.

    The metric must carry the label batch_size, and no context.
    """
    return f"{metric(name, *more)} * {_AT_LIVE_BATCH} {metric('vllm_nfp_live_cell_info')}"


def steady(expr: str) -> str:
    """The median of a count over the last minutes: what lasts, without single excursions."""
    return f"round(quantile_over_time(0.5, ({expr})[5m:10s]))"


def per_second(name: str, by: str = "") -> str:
    """The counter's rate, summed over the chosen engines, by the given labels."""
    return f"sum by ({by}) (rate({metric(name)}[$__rate_interval]))"


def mean(name: str, *more: str) -> str:
    """A gauge's mean over the interval, for each engine."""
    return f"avg by (instance, engine) (avg_over_time({metric(name, *more)}[$__rate_interval]))"


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; its letter follows from its position: A, B, ..."""

    expr: str
    legend: str = ""
    instant: bool = False
    """The values now, as a table; otherwise series over the dashboard's time."""
    as_heatmap: bool = False

    def build(self, letter: str) -> prometheus.Dataquery:
        """The query for the SDK."""
        query = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(self.expr)
        query = query.instant() if self.instant else query.range()
        if self.instant:
            query.format(PromQueryFormat.TABLE)
        elif self.as_heatmap:
            query.format(PromQueryFormat.HEATMAP)
        return query.legend_format(self.legend or "__auto")


@dataclass(frozen=True, slots=True)
class Frame:
    """Title, description, action and size of a panel."""

    title: str
    shows: str
    """What the panel shows, and how to read it."""
    action: str
    """What the reader should do."""
    width: int
    """In columns; the dashboard has 24."""
    height: int = 8

    def around(self, panel: P, queries: Iterable[Query]) -> P:
        """Apply the frame and the queries to a panel."""
        panel.title(self.title).description(f"{self.shows}\n\n**What to do:** {self.action}")
        panel.datasource(SOURCE).span(self.width).height(self.height)
        for letter, query in zip(_LETTERS, queries, strict=False):
            panel.with_target(query.build(letter))
        return panel


def fixed(color: str) -> dashboard.FieldColor:
    """One colour for a whole panel."""
    return dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(color)


def _value(name: str, value: object) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)


def _color(color: str) -> models.DynamicConfigValue:
    return _value("color", {"mode": "fixed", "fixedColor": color})


def _steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
    )


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


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
        .thresholds(_steps(*steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.NONE if names else kinds.BigValueGraphMode.AREA)
        .reduce_options(_last())
        .no_value("no data")
    )
    return panel.mappings([_names(names)]) if names else panel


def _names(names: Mapping[str, str], coded: bool = True) -> models.ValueMapping:
    """Names and colours of values.

    Args:
        coded: the values are places in ``names``; otherwise the names themselves.
    """
    return models.ValueMap(
        options={
            str(place) if coded else name: models.ValueMappingResult(
                text=name, color=color, index=place
            )
            for place, (name, color) in enumerate(names.items())
        }
    )


def code(names: Iterable[str], of: Callable[[str], str], by: str = "") -> str:
    """A name as its place in ``names``, one value for each combination of labels.

    Several engines behind one combination give the maximum: the worst comes last.

    Args:
        of: the series that is 1 for a name; for the other names it is 0 or absent.
    """
    codes = " or ".join(f"{place} * {of(name)}" for place, name in enumerate(names))
    return f"max by ({by}) ({codes})"


def state_code(by: str = "") -> str:
    """The probe's state as its place in :data:`STATES`."""
    return code(STATES, lambda name: metric("vllm_nfp_state", f"state={json.dumps(name)}"), by)


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
) -> timeseries.Panel:
    """Curves over time, from zero.

    Args:
        colors: fixed colours by legend.
        dashed: legends drawn as dashed lines: limits and references.
        band: legends of an upper and a lower curve, with the area between them filled.
        decimals: of the values; None leaves it to Grafana.
        steps: values hold until the next one: counts.
        axis: what the vertical axis is, if the unit does not say it.
    """
    line = kinds.LineInterpolation.STEP_AFTER if steps else kinds.LineInterpolation.LINEAR
    panel = (
        frame.around(timeseries.Panel(), queries)
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(0 if band else 8)
        .line_interpolation(line)
        .show_points(kinds.VisibilityMode.NEVER)
        .axis_label(axis)
        .legend(_legend())
        .tooltip(_tooltip())
    )
    if decimals is not None:
        panel.decimals(decimals)
    for legend, color in (colors or {}).items():
        panel.override_by_regexp(f"/^{legend}\\b/", [_color(color)])
    for legend in dashed:
        panel.override_by_regexp(
            f"/^{legend}\\b/",
            [
                _value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                _value("custom.fillOpacity", 0),
            ],
        )
    if band is not None:
        upper, lower = band
        panel.override_by_name(
            upper,
            [_value("custom.fillBelowTo", lower), _value("custom.fillOpacity", 20)],
        )
    return panel


def states(frame: Frame, by: str, legend: str) -> statetimeline.Panel:
    """The probe's states over time."""
    return (
        frame.around(statetimeline.Panel(), [Query(state_code(by), legend)])
        .mappings([_names(STATES)])
        .color_scheme(fixed(GREY))
        .show_value(kinds.VisibilityMode.AUTO)
        .fill_opacity(80)
        .legend(_legend())
    )


def _transform(name: str, **options: object) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=name, options=options)


def _as_number(field: str) -> list[models.DataTransformerConfig]:
    """Convert a label to a number and sort by it, because text sorts 1, 16, 2."""
    return [
        _transform(
            "convertFieldType",
            conversions=[{"targetField": field, "destinationType": "number"}],
            fields={},
        ),
        _transform("sortBy", fields={}, sort=[{"field": field}]),
    ]


def _named_columns(
    names: Sequence[str], without: Iterable[str] = ()
) -> models.DataTransformerConfig:
    letters = dict(zip(_LETTERS, names, strict=False))
    return _transform(
        "organize",
        excludeByName=dict.fromkeys(("Time", *without), True),
        renameByName={f"Value #{letter}": name for letter, name in letters.items()},
        indexByName={},
    )


def matrix(
    frame: Frame,
    expr: str,
    rows: str,
    columns: str,
    value: str = "Value",
    steps: Sequence[tuple[float | None, str]] = (),
    names: Mapping[str, str] | None = None,
) -> table.Panel:
    """A table of one query's values now, with one label down and a numeric one across.

    Args:
        value: the field in the cells: the value, or another label.
        steps: thresholds that colour the cells.
        names: colours of the cells by what they hold.
    """
    panel = (
        frame.around(table.Panel(), [Query(expr, instant=True)])
        .transformations(
            [
                *_as_number(columns),
                _transform(
                    "groupingToMatrix", columnField=columns, rowField=rows, valueField=value
                ),
            ]
        )
        .no_value("-")
        .align(kinds.FieldTextAlignment.LEFT)
    )
    if steps:
        panel.thresholds(_steps(*steps)).color_scheme(
            dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)
        ).cell_options(kinds.TableColorTextCellOptions())
    if names:
        panel.mappings([_names(names, coded=False)]).cell_options(kinds.TableColorTextCellOptions())
    return panel


def listing(
    frame: Frame, queries: Mapping[str, str], sort: str, labelled: str, names: Mapping[str, str]
) -> table.Panel:
    """A table with a row for each combination of labels and a column for each query.

    Args:
        labelled: a last query, of which a label is shown and not the value.
        names: colours of that label's values.
    """
    exprs = (*queries.values(), labelled)
    columns = _named_columns(list(queries), without=(f"Value #{_LETTERS[len(queries)]}",))
    return (
        frame.around(table.Panel(), [Query(expr, instant=True) for expr in exprs])
        .transformations([_transform("merge"), *_as_number(sort), columns])
        .mappings([_names(names, coded=False)])
        .no_value("-")
        .filterable(True)
        .align(kinds.FieldTextAlignment.LEFT)
    )


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
                _transform("merge"),
                *_as_number("batch_size"),
                # Sorting is stable: batch sizes stay ascending within a module.
                _transform("sortBy", fields={}, sort=[{"field": "module"}]),
                _named_columns(list(queries), without=("module", "batch_size")),
            ]
        )
        .x_field("cell")
        .unit("short")
        .show_value(kinds.VisibilityMode.ALWAYS)
        .axis_label(axis)
        .scale_distribution(
            common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(2)
        )
        .legend(_legend())
        .tooltip(_tooltip())
    )
    for name, (_, color) in queries.items():
        panel.override_by_name(name, [_color(color)])
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
        .transformations([_transform("merge"), *_as_number(x), _named_columns(list(queries))])
        .x_field(x)
        .unit(unit)
        .line_width(2)
        .point_size(6)
        .show_points(kinds.VisibilityMode.ALWAYS)
        .span_nulls(True)
        .axis_label(axis)
        .legend(_legend())
        .tooltip(_tooltip())
    )
    for name, color in colors.items():
        panel.override_by_name(name, [_color(color)])
    for name in dashed:
        panel.override_by_name(
            name,
            [
                _value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                _value("custom.showPoints", "never"),
            ],
        )
    return panel


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


def variable(
    name: str,
    label: str,
    description: str,
    query: str,
    many: bool = False,
    numeric: bool = False,
    first: str | Sequence[str] = "",
) -> dashboard.QueryVariable:
    """A variable whose values are those of a label.

    Args:
        query: as label_values(metric, label).
        many: several values may be chosen; without ``first`` all are.
        first: what is chosen at first, as far as there is such a value; several if ``many``.
    """
    sort = models.VariableSort.NUMERICAL_ASC if numeric else models.VariableSort.ALPHABETICAL_ASC
    built = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query(
            {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"}
        )
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sort)
        .multi(many)
        .include_all(many)
    )
    if many:
        built.all_value(".*")
    if first:
        chosen = first if isinstance(first, str) else list(first)
        built.current(models.VariableOption(selected=True, text=chosen, value=chosen))
    elif many:
        built.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return built


@dataclass(frozen=True, slots=True)
class _Marks(Builder[models.AnnotationQuery]):
    """Marks events on all curves; the SDK's own builder cannot carry a Prometheus query."""

    name: str
    expr: str
    """Above 0 where the event is."""
    color: str

    def build(self) -> models.AnnotationQuery:
        return models.AnnotationQuery(
            name=self.name, datasource=SOURCE, enable=True, icon_color=self.color, expr=self.expr
        )


_RESTARTS = _Marks(
    "Server restarts",
    'changes(process_start_time_seconds{instance=~"$instance"}[2m]) > 0',
    PURPLE,
)
_JUMPS = _Marks(
    "Step times jumped", f"changes({metric('vllm_nfp_surface_jumps_total')}[2m]) > 0", VERMILLION
)


def page(uid: str, title: str, description: str, other: tuple[str, str]) -> dashboard.Dashboard:
    """A dashboard with everything but its panels.

    Args:
        other: title and uid of the dashboard that it links to.
    """
    other_title, other_uid = other
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["vllm", "nfp"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(other_title)
            .type(models.DashboardLinkType.LINK)
            .url(f"/d/{other_uid}")
            .icon("dashboard")
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(_RESTARTS)
        .annotation(_JUMPS)
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Data source")
            .description("The Prometheus that scrapes the servers.")
            .type("prometheus")
        )
        .with_variable(
            variable(
                "model_name",
                "Model",
                "The served model.",
                "label_values(vllm_nfp_state, model_name)",
            )
        )
        .with_variable(
            variable(
                "engine",
                "Engine",
                "vLLM engines (data-parallel ranks) of the server.",
                'label_values(vllm_nfp_state{model_name="$model_name"}, engine)',
                many=True,
            )
        )
        .with_variable(
            variable(
                "instance",
                "Instance",
                "Servers, by Prometheus' instance label.",
                'label_values(vllm_nfp_state{model_name="$model_name"}, instance)',
                many=True,
            )
        )
        .with_variable(
            variable(
                "epsilon",
                "Tolerance",
                "Extra step time that still counts as free, as a fraction of t(1) (0.1 = 10 %).",
                'label_values(vllm_nfp_positions{model_name="$model_name"}, epsilon)',
                numeric=True,
                first="0.1",
            )
        )
        .with_variable(
            variable(
                "context",
                "Context",
                "Reported context in tokens, a power of four by default.",
                'label_values(vllm_nfp_positions{model_name="$model_name"}, context)',
                numeric=True,
                first="1024",
            )
        )
    )


def row(builder: dashboard.Dashboard, title: str, *panels: Builder[models.Panel]) -> None:
    """A titled row of panels."""
    builder.with_row(dashboard.Row(title))
    for panel in panels:
        builder.with_panel(panel)


def finished(builder: dashboard.Dashboard) -> models.Dashboard:
    """The dashboard with its panels numbered: provisioning wants fixed numbers."""
    built = builder.build()
    for index, panel in enumerate(built.panels or (), start=1):
        panel.id_val = index
    return built
