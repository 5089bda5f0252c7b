"""The committed files: as generated, complete, documented, and consistent with the exporter."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from panels import dashboards, metrics_in, panels, rules, variables
from recorded import Recorded, recorded_snapshot

from dashboards.builder import __main__ as build
from vllm_nfp.dashboards import source_folder
from vllm_nfp.dashboards.runbook import runbook_url

ROOT = Path(__file__).parents[2]
DASHBOARDS = dashboards()
VLLM_METRICS = {
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
    "vllm:generation_tokens_total",
    "process_start_time_seconds",
    "up",
}
"""Not ours; the engine test finds each of them on a real server (up is Prometheus' own)."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all samples that the collector can export, from a snapshot that has everything."""
    folder = tmp_path_factory.mktemp("recorded")
    snapshot = recorded_snapshot("dense", folder)
    missing = [f.name for f in dataclasses.fields(snapshot) if getattr(snapshot, f.name) is None]
    assert not missing, "a snapshot with everything is wanted"
    text = Recorded(snapshot, folder).text().decode()
    names = re.findall(r"^(vllm_nfp_\w+)", text, re.MULTILINE)
    return set(names)


def test_the_dashboards_are_those_that_the_code_generates() -> None:
    committed = {p.name: p.read_text() for p in (source_folder() / "grafana").iterdir()}
    assert committed == build.texts(), "run python -m dashboards.builder"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_types_read_the_dashboard_and_lose_nothing(name: str) -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARDS[name])
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == DASHBOARDS[name]
    assert read.uid == name


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    found = panels(DASHBOARDS[name])
    assert len({panel.title for panel in found}) == len(found)
    assert sorted(p.raw["id"] for p in found) == list(range(1, len(found) + 1))
    for panel in found:
        if panel.kind == "row":
            continue
        shows, action = panel.description.split("\n\n**What to do:** ")
        assert len(shows) > 30, panel.title
        assert len(action) > 20, panel.title
        assert panel.targets, panel.title
        assert panel.raw["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_fill_the_grid_without_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(DASHBOARDS[name]):
        at = panel.place
        assert at["x"] + at["w"] <= 24, panel.title
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, f"{panel.title} lies over another panel"
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) == 24 * height, "there is a hole between the panels"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_come_before_those_that_use_them(name: str) -> None:
    known: set[str] = {"__rate_interval"}
    for variable in variables(DASHBOARDS[name]):
        assert set(re.findall(r"\$(\w+)", variable.query)) <= known
        known.add(variable.name)
    fleet = name == "nfp-fleet"
    wanted = {"cluster", "namespace", "model_name"}
    wanted |= {"device"} if fleet else {"pod", "engine", "instance"}
    assert wanted | {"datasource"} <= known
    for panel in panels(DASHBOARDS[name]):
        for text in (panel.title, *(t.expr for t in panel.targets)):
            assert set(re.findall(r"\$(\w+)", text)) <= known, panel.title
        for target in panel.targets:
            for variable in wanted - {"device"}:
                assert f"${variable}" in target.expr, f"{panel.title} ignores {variable}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_all_may_be_chosen_where_a_store_lacks_the_labels_of_kubernetes(name: str) -> None:
    kubernetes = {"cluster", "namespace", "pod"}
    for raw in DASHBOARDS[name]["templating"]["list"]:
        if raw["name"] in kubernetes:
            assert raw["includeAll"]
            assert raw["allValue"] == ".*", "which matches a label that is absent"
            assert raw["current"]["value"] == ["$__all"]
    for panel in panels(DASHBOARDS[name]):
        for target in panel.targets:
            assert not re.search(r'\b(cluster|namespace|pod)="', target.expr), panel.title


@pytest.mark.parametrize("name", DASHBOARDS)
def test_queries_join_on_all_that_tells_servers_apart(name: str) -> None:
    """In a store of several clusters, a join on fewer labels finds two series, and fails."""
    for panel in panels(DASHBOARDS[name]):
        for target in panel.targets:
            for labels in re.findall(r"\bon \(([^)]*)\)", target.expr):
                kept = {label.strip() for label in labels.split(",")} - {""}
                assert not kept or {"cluster", "namespace", "pod", "instance"} <= kept, panel.title


def test_the_restart_marks_are_those_of_the_chosen_servers() -> None:
    for name in ("nfp-overview", "nfp-deep-dive"):
        marks = {mark["name"]: mark for mark in DASHBOARDS[name]["annotations"]["list"]}
        expr = marks["Server restarts"]["expr"]
        assert "and on (cluster, namespace, pod, job, instance) vllm_nfp_state{" in expr
        for variable in ("cluster", "namespace", "pod", "instance", "model_name"):
            assert f"${variable}" in expr


def test_every_metric_of_panels_and_rules_exists(exported: set[str]) -> None:
    exprs = {
        f"{panel.title} {target.letter}": target.expr
        for dashboard in DASHBOARDS.values()
        for panel in panels(dashboard)
        for target in panel.targets
    }
    exprs |= {rule.get("alert", rule.get("record")): rule["expr"] for rule in rules()}
    for name, expr in exprs.items():
        assert metrics_in(expr) or "engine:" in expr or "model:" in expr, name
        unknown = metrics_in(expr) - exported - VLLM_METRICS
        assert not unknown, f"{name} uses {unknown}"


def test_every_rule_keeps_the_labels_that_tell_servers_apart() -> None:
    """In a store of several clusters, servers may share job, instance, model and engine."""
    grouped = re.compile(r"\b(?:by|on) \(([^)]*)\)")
    for rule in rules():
        name = rule.get("alert", rule.get("record"))
        for labels in grouped.findall(rule["expr"]):
            kept = [label.strip() for label in labels.split(",")]
            assert kept[:2] == ["cluster", "namespace"], name
            assert "pod" in kept or "instance" not in kept, name


def test_every_rule_has_a_test() -> None:
    files = (Path(__file__).parent / "alerts").glob("*.test.yml")
    text = "".join(file.read_text() for file in files)
    for rule in rules():
        name = rule.get("alert", rule.get("record"))
        assert re.search(rf"(alertname|expr): {name}\b", text), name


def test_recorded_series_that_alerts_use_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    all_used: set[str] = set()
    for rule in rules():
        used = set(re.findall(r"\b(?:engine|model):vllm_\w+:\w+\b", rule["expr"]))
        assert used <= recorded, rule
        all_used |= used
    assert len(all_used) > 1, "none is found, or none is used"


def test_every_exported_metric_is_in_the_table_of_metrics(exported: set[str]) -> None:
    table = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(vllm_nfp_\w+)`", table, re.MULTILINE))
    plain = {re.sub(r"(seconds)_(bucket|sum|count)$", r"\1", name) for name in exported}
    assert plain - documented == set()


def test_every_alert_has_its_line_its_page_and_its_tests() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    files = (Path(__file__).parent / "alerts").glob("*.test.yml")
    tests = [test for file in files for test in yaml.safe_load(file.read_text())["tests"]]
    cases: dict[str, list[bool]] = {}
    for test in tests:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], []).append(bool(case["exp_alerts"]))
    alerts = [rule for rule in rules() if "alert" in rule]
    for rule in alerts:
        name = rule["alert"]
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "description", "runbook_url"}
        assert len(annotations["description"]) > 60
        assert annotations["runbook_url"] == runbook_url(name)
        assert f"\n## {name}\n" in runbook
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert True in cases[name], f"{name} is not shown to fire"
    assert re.findall(r"^## (Nfp\w+)$", runbook, re.MULTILINE) == [r["alert"] for r in alerts]


def test_the_compose_file_mounts_what_is_there() -> None:
    folder = source_folder()
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    services: dict[str, Any] = compose["services"]
    for service in services.values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), "open on this host alone"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (folder / source).exists(), volume
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false", "else admin:admin may edit"
    provider = yaml.safe_load((folder / "provisioning/dashboards/nfp.yml").read_text())
    mounted = provider["providers"][0]["options"]["path"]
    assert f"./grafana:{mounted}:ro" in services["grafana"]["volumes"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{mounted}/nfp-overview.json"
    sources = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())
    assert sources["datasources"][0]["url"] == "${NFP_PROMETHEUS_URL}"
    assert environment["NFP_PROMETHEUS_URL"] == "http://prometheus:9090"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    interval = config["global"]["scrape_interval"]
    assert sources["datasources"][0]["jsonData"]["timeInterval"] == interval
