"""A dashboard without its panels: variables, annotations, links, rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder.grafana.colors import PURPLE, VERMILLION
from dashboards.builder.grafana.queries import PLACE, SOURCE, TARGET, metric


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


_SAME_TARGET = f"on ({', '.join(TARGET)})"
_RESTARTS = _Marks(
    "Server restarts",
    # Of the chosen servers alone: every target of Prometheus has a start time.
    f'(changes(process_start_time_seconds{{{PLACE},pod=~"$pod",instance=~"$instance"}}[2m]) > 0)'
    f" and {_SAME_TARGET} {metric('vllm_nfp_state')}",
    PURPLE,
)
_JUMPS = _Marks(
    "Step times jumped", f"changes({metric('vllm_nfp_surface_jumps_total')}[2m]) > 0", VERMILLION
)


PROMETHEUS = "datasource"
_CHOSEN = f'{{{PLACE},model_name="$model_name"}}'
_STATES = f"vllm_nfp_state{_CHOSEN}"
_ESTIMATES = f"vllm_nfp_positions{_CHOSEN}"


def frame_of(uid: str, title: str, description: str, others: Mapping[str, str]) -> Dashboard:
    """A dashboard with its data source, and cluster and namespace.

    Args:
        others: title -> uid of the dashboards that it links to.
    """
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["vllm", "nfp"])
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    for other_title, other_uid in others.items():
        built.link(
            dashboard.DashboardLink(other_title)
            .type(models.DashboardLinkType.LINK)
            .url(f"/d/{other_uid}")
            .icon("dashboard")
            .include_vars(True)
            .keep_time(True)
        )
    built.with_variable(
        dashboard.DatasourceVariable(PROMETHEUS)
        .label("Data source")
        .description("The Prometheus that scrapes the servers.")
        .type("prometheus")
    )
    for name, label, selector in (
        ("cluster", "Cluster", ""),
        ("namespace", "Namespace", '{cluster=~"$cluster"}'),
    ):
        text = f"Kubernetes {name}; without such a label there is only All."
        query = f"label_values(vllm_nfp_state{selector}, {name})"
        built.with_variable(variable(name, label, text, query, many=True))
    return built


def page(uid: str, title: str, description: str, others: Mapping[str, str]) -> Dashboard:
    """A dashboard of one model's servers, with everything but its panels.

    Args:
        others: title -> uid of the dashboards that it links to.
    """
    built = frame_of(uid, title, description, others).annotation(_RESTARTS).annotation(_JUMPS)
    model = f"label_values(vllm_nfp_state{{{PLACE}}}, model_name)"
    built.with_variable(variable("model_name", "Model", "The served model.", model))
    for name, label, text in (
        ("pod", "Pod", "Kubernetes pods; without such a label there is only All."),
        ("engine", "Engine", "vLLM engines (data-parallel ranks) of the server."),
        ("instance", "Instance", "Servers, by the instance label of Prometheus."),
    ):
        query = f"label_values({_STATES}, {name})"
        built.with_variable(variable(name, label, text, query, many=True))
    built.with_variable(tolerance(_ESTIMATES))
    return built.with_variable(
        variable(
            "context",
            "Context",
            "Reported context in tokens, a power of four by default.",
            f"label_values({_ESTIMATES}, context)",
            numeric=True,
            first="1024",
        )
    )


def tolerance(estimates: str) -> dashboard.QueryVariable:
    """The variable epsilon.

    Args:
        estimates: selector of the estimates that have it as a label.
    """
    return variable(
        "epsilon",
        "Tolerance",
        "Extra step time that still counts as free, as a fraction of t(1) (0.1 = 10 %).",
        f"label_values({estimates}, epsilon)",
        numeric=True,
        first="0.1",
    )


def batch_size_variable(
    label: str, description: str, many: bool, first: str | Sequence[str]
) -> dashboard.QueryVariable:
    """The variable batch_size."""
    query = f"label_values({_ESTIMATES}, batch_size)"
    return variable("batch_size", label, description, query, many=many, numeric=True, first=first)


def row(builder: Dashboard, title: str, *panels: Builder[models.Panel]) -> None:
    """A titled row of panels."""
    builder.with_row(dashboard.Row(title))
    for panel in panels:
        builder.with_panel(panel)


def finished(builder: Dashboard) -> models.Dashboard:
    """The dashboard with its panels numbered: provisioning wants fixed numbers."""
    built = builder.build()
    for index, panel in enumerate(built.panels or (), start=1):
        panel.id_val = index
    return built
