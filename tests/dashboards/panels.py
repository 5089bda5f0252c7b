"""Reads the dashboards as committed and runs their queries against a Prometheus."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from dashboards.local_stack.prometheus import Prometheus, Series
from vllm_nfp.dashboards import source_folder

RULES = source_folder() / "rules" / "nfp.rules.yml"
_METRIC = re.compile(r"\b(?:vllm_nfp_\w+|vllm:\w+|process_start_time_seconds|up)\b")
_RECORDED = re.compile(r"\b(?:engine|model):vllm_\w+:\w+\b")


@dataclass(frozen=True)
class Target:
    """One query of a panel, with the dashboard's variables still in it."""

    letter: str
    expr: str
    legend: str
    instant: bool


@dataclass(frozen=True)
class Panel:
    dashboard: str
    title: str
    kind: str
    description: str
    place: Mapping[str, int]
    targets: tuple[Target, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Variable:
    name: str
    query: str
    """As label_values(metric, label); empty for the data source."""
    many: bool
    first: str


def dashboards() -> dict[str, dict[str, Any]]:
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((source_folder() / "grafana").glob("*.json"))
    }


def panels(dashboard: Mapping[str, Any]) -> list[Panel]:
    """All panels of a dashboard, rows among them, in order."""
    return [
        Panel(
            dashboard["uid"],
            raw.get("title", ""),
            raw["type"],
            raw.get("description", ""),
            raw["gridPos"],
            tuple(
                Target(t["refId"], t["expr"], t.get("legendFormat", ""), t.get("instant", False))
                for t in raw.get("targets", [])
            ),
            raw,
        )
        for raw in dashboard["panels"]
    ]


def variables(dashboard: Mapping[str, Any]) -> list[Variable]:
    return [
        Variable(
            raw["name"],
            raw["query"]["query"] if raw["type"] == "query" else "",
            raw.get("multi", False),
            raw.get("current", {}).get("value", ""),
        )
        for raw in dashboard["templating"]["list"]
    ]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_in(expr: str) -> set[str]:
    """Names of scraped metrics in a query; recorded ones are left out."""
    return set(_METRIC.findall(_RECORDED.sub(" ", re.sub(r'"[^"]*"', '""', expr))))


def fill(expr: str, values: Mapping[str, str], window: str = "10s") -> str:
    """Put the variables' values in, as Grafana does."""
    for name, value in {**values, "__rate_interval": window, "__interval": "5s"}.items():
        expr = re.sub(rf"\${name}\b", lambda _, value=value: value, expr)
    assert "$" not in expr, f"a variable is left in {expr}"
    return expr


def choose(dashboard: Mapping[str, Any], prometheus: Prometheus, **chosen: str) -> dict[str, str]:
    """Values for the dashboard's variables: those chosen, else as Grafana would start."""
    values: dict[str, str] = {}
    for variable in variables(dashboard):
        if not variable.query:
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.query)
        assert match, variable.query
        found = prometheus.label_values(fill(match[1], values), match[2])
        if variable.many:  # "All", which a store without the label has too
            values[variable.name] = chosen.get(variable.name, ".*")
        else:
            assert found, f"the variable {variable.name} has no value"
            wanted = chosen.get(variable.name, variable.first)
            values[variable.name] = wanted if wanted in found else sorted(found)[0]
    return values


@dataclass(frozen=True)
class Answered:
    """A panel with its queries' answers, by letter."""

    panel: Panel
    answers: Mapping[str, list[Series]]

    @property
    def empty(self) -> list[str]:
        """Letters of the queries without an answer; a single value shows one of its queries."""
        if self.panel.kind == "stat" and any(self.answers.values()):
            return []
        return [letter for letter, series in self.answers.items() if not series]


def ask(
    dashboard: Mapping[str, Any],
    prometheus: Prometheus,
    values: Mapping[str, str],
    seconds: float = 60.0,
    step: float = 1.0,
) -> Iterator[Answered]:
    """Run every query of every panel as Grafana would: instant or over the last seconds."""
    end = time.time()
    for panel in panels(dashboard):
        answers = {}
        for target in panel.targets:
            expr = fill(target.expr, values)
            answers[target.letter] = (
                prometheus.now(expr)
                if target.instant
                else prometheus.range(expr, end - seconds, end, step)
            )
        yield Answered(panel, answers)
