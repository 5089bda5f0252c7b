"""What all panels have in common: title, description, size, colours of values, legends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder.grafana.queries import LETTERS, SOURCE, Query


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
        for letter, query in zip(LETTERS, queries, strict=False):
            panel.with_target(query.build(letter))
        return panel


def fixed(color: str) -> dashboard.FieldColor:
    """One colour for a whole panel."""
    return dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(color)


def property_of(name: str, value: object) -> models.DynamicConfigValue:
    """One property of an override."""
    return models.DynamicConfigValue(id_val=name, value=value)


def color_of(color: str) -> models.DynamicConfigValue:
    """One colour for the values that an override matches."""
    return property_of("color", {"mode": "fixed", "fixedColor": color})


def thresholds(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from a value on; None is the colour below the first value."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def legend_below() -> common.VizLegendOptions:
    """Names of the curves below a panel."""
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
    )


def tooltip() -> common.VizTooltipOptions:
    """A tooltip with all curves."""
    return common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI)


def last_value() -> common.ReduceDataOptions:
    """A panel shows the last value of its query."""
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def names_of(names: Mapping[str, str], coded: bool = True) -> models.ValueMapping:
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
