"""Queries: which series are meant, and how several engines become one value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.builder.grafana.colors import STATES

TARGET = ("cluster", "namespace", "pod", "job", "instance")
"""Labels that tell targets apart. A store that lacks some treats them as empty."""
ONE_ENGINE = ", ".join((*TARGET, "model_name", "engine"))
"""Labels that tell engines apart, also where several clusters write to one store."""
PLACE = 'cluster=~"$cluster",namespace=~"$namespace"'
"""Matchers of the variables that only Kubernetes fills. "All" is ``.*``, which an absent label
matches."""
ENGINE = f'model_name="$model_name",{PLACE},pod=~"$pod",engine=~"$engine",instance=~"$instance"'
"""Matchers of the engines chosen by the dashboard's variables."""

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_IN_LIVE_CELL = f"on ({ONE_ENGINE}, batch_size, context) group_left ()"
LETTERS = "ABCDEFGHIJ"


def metric(name: str, *more: str) -> str:
    """A selector of one metric for the chosen engines, narrowed by further label matchers."""
    return f"{name}{{{','.join((ENGINE, *more))}}}"


def live(name: str, *more: str) -> str:
    """The metric's value in the cell (batch size, context) of the last real step.

    The metric must carry the labels batch_size and context.
    """
    return in_live_cell(metric(name, *more), metric("vllm_nfp_live_cell_info"))


def in_live_cell(of: str, cell: str) -> str:
    """The same for any selection: ``of`` at the cells of the metric ``cell``."""
    return f"{of} * {_IN_LIVE_CELL} {cell}"


def steady(expr: str) -> str:
    """The median of a count over the last minutes: what lasts, without single excursions."""
    return f"round({lasting(expr)})"


def lasting(expr: str) -> str:
    """The same for what is no count."""
    return f"quantile_over_time(0.5, ({expr})[5m:10s])"


def of_most_gain(expr: str, gain: str) -> str:
    """One engine's value: of the engine with the most to gain; the largest where none is known."""
    return f"max({expr} and on ({ONE_ENGINE}) topk(1, {gain})) or max({expr})"


def per_second(name: str, by: str = "") -> str:
    """The counter's rate, summed over the chosen engines, by the given labels."""
    return f"sum by ({by}) (rate({metric(name)}[$__rate_interval]))"


def mean(name: str, *more: str) -> str:
    """A gauge's mean over the interval, for each engine."""
    return f"avg by (instance, engine) (avg_over_time({metric(name, *more)}[$__rate_interval]))"


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


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel; its letter follows from its position: A, B, ..."""

    expr: str
    legend: str = ""
    instant: bool = False
    """The values now, as a table; otherwise series over the dashboard's time."""
    now: bool = False
    """The values now, as series: what was so before is not shown."""
    as_heatmap: bool = False

    def build(self, letter: str) -> prometheus.Dataquery:
        """The query for the SDK."""
        query = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(self.expr)
        query = query.instant() if self.instant or self.now else query.range()
        if self.instant:
            query.format(PromQueryFormat.TABLE)
        elif self.as_heatmap:
            query.format(PromQueryFormat.HEATMAP)
        return query.legend_format(self.legend or "__auto")
