"""Objects for a cluster with prometheus-operator and Grafana's sidecar, made of the same files.

Rules and dashboards are written into their objects as they are, line by line. So no library for
YAML is needed, and comments stay.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

STATIC = (
    "kustomization.yaml",
    "podmonitor.yaml",
    "servicemonitor.yaml",
    "Dockerfile",
    "values-production-stack.yaml",
    "values-llm-d-modelservice.yaml",
)
"""Files that are copied, in the directory ``kubernetes`` of the source."""
SIDECAR_LABEL = 'grafana_dashboard: "1"'
"""What Grafana's sidecar looks for, in kube-prometheus-stack and in Grafana's own chart."""
FOLDER = "vLLM NFP"
_RULE = """\
# Made by vllm-nfp dashboards export --kubernetes of its rules/nfp.rules.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: vllm-nfp
spec:
"""
_CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: vllm-{name}
  labels:
    {label}
  annotations:
    grafana_folder: {folder}
data:
  {name}.json: |-
"""


def kubernetes_files(source: Path) -> dict[str, bytes]:
    """File name -> content of all that is exported for Kubernetes.

    Args:
        source: the directory of dashboards, rules and ``kubernetes``.
    """
    copied = {name: (source / "kubernetes" / name).read_bytes() for name in STATIC}
    rules = (source / "rules" / "nfp.rules.yml").read_text(encoding="utf-8")
    dashboards = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((source / "grafana").glob("*.json"))
    }
    made = {
        "prometheusrule.yaml": prometheus_rule(rules),
        "grafana-dashboards.yaml": config_maps(dashboards),
    }
    return copied | {name: text.encode() for name, text in made.items()}


def prometheus_rule(rules: str) -> str:
    """The PrometheusRule of a file of rules."""
    return _RULE + textwrap.indent(rules, "  ")


def config_maps(dashboards: Mapping[str, str]) -> str:
    """A ConfigMap for each dashboard: Kubernetes allows 1 MiB for one.

    Args:
        dashboards: name -> JSON.
    """
    maps = (
        _CONFIG_MAP.format(name=name, label=SIDECAR_LABEL, folder=FOLDER)
        + textwrap.indent(text.rstrip("\n"), "    ")
        for name, text in dashboards.items()
    )
    return "\n---\n".join(maps) + "\n"
