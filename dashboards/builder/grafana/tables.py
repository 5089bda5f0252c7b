"""Tables, and the transformations that make them of queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, table
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models

from dashboards.builder.grafana.queries import LETTERS, Query
from dashboards.builder.grafana.style import Frame, names_of, property_of, thresholds


def transform(name: str, **options: object) -> models.DataTransformerConfig:
    """A transformation, with its options."""
    return models.DataTransformerConfig(id_val=name, options=options)


def as_number(field: str) -> list[models.DataTransformerConfig]:
    """Convert a label to a number and sort by it, because text sorts 1, 16, 2."""
    return [
        transform(
            "convertFieldType",
            conversions=[{"targetField": field, "destinationType": "number"}],
            fields={},
        ),
        transform("sortBy", fields={}, sort=[{"field": field}]),
    ]


def named_columns(
    names: Sequence[str], without: Iterable[str] = (), labels: Mapping[str, str] | None = None
) -> models.DataTransformerConfig:
    """Name the queries' values, and further labels; drop the time and further columns."""
    letters = dict(zip(LETTERS, names, strict=False))
    return transform(
        "organize",
        excludeByName=dict.fromkeys(("Time", *without), True),
        renameByName={f"Value #{letter}": name for letter, name in letters.items()}
        | dict(labels or {}),
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
                *as_number(columns),
                transform("groupingToMatrix", columnField=columns, rowField=rows, valueField=value),
            ]
        )
        .no_value("-")
        .align(kinds.FieldTextAlignment.LEFT)
    )
    if steps:
        panel.thresholds(thresholds(*steps)).color_scheme(
            dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)
        ).cell_options(kinds.TableColorTextCellOptions())
    if names:
        panel.mappings([names_of(names, coded=False)]).cell_options(
            kinds.TableColorTextCellOptions()
        )
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
    columns = named_columns(list(queries), without=(f"Value #{LETTERS[len(queries)]}",))
    return (
        frame.around(table.Panel(), [Query(expr, instant=True) for expr in exprs])
        .transformations([transform("merge"), *as_number(sort), columns])
        .mappings([names_of(names, coded=False)])
        .no_value("-")
        .filterable(True)
        .align(kinds.FieldTextAlignment.LEFT)
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of :func:`servers`."""

    expr: str
    """Gives one value for each row, with the rows' labels."""
    unit: str = "short"
    names: Mapping[str, str] | None = None
    """Names and colours of the values 0, 1, ..., see :func:`~.queries.code`."""
    steps: Sequence[tuple[float | None, str]] = ()
    """Thresholds that colour the cells."""


def servers(
    frame: Frame, columns: Mapping[str, Column], labels: str, renamed: Mapping[str, str], sort: str
) -> table.Panel:
    """A table with a row for each server or group of servers, the largest of ``sort`` first.

    Args:
        labels: a last query, of which only the labels are shown.
        renamed: label -> what it is called at the top of its column.
    """
    exprs = (*(column.expr for column in columns.values()), labels)
    without = (f"Value #{LETTERS[len(columns)]}",)
    organized = named_columns(list(columns), without, renamed)
    panel = (
        frame.around(table.Panel(), [Query(expr, instant=True) for expr in exprs])
        .transformations([transform("merge"), organized])
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
        .no_value("-")
        .filterable(True)
        .align(kinds.FieldTextAlignment.LEFT)
    )
    for name, column in columns.items():
        panel.override_by_name(name, _looks(column))
    return panel


def _looks(column: Column) -> list[models.DynamicConfigValue]:
    found = [property_of("unit", column.unit), property_of("decimals", 0)]
    colored = property_of("custom.cellOptions", {"type": "color-text"})
    if column.names:
        found += [property_of("mappings", [names_of(column.names)]), colored]
    if column.steps:
        steps = [{"value": value, "color": color} for value, color in column.steps]
        found += [
            property_of("thresholds", {"mode": "absolute", "steps": steps}),
            property_of("color", {"mode": "thresholds"}),
            colored,
        ]
    return found
