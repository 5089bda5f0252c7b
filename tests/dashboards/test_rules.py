"""The rules, checked and tested by Prometheus' own tool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from panels import RULES

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)"
)
TESTS = sorted((Path(__file__).parent / "alerts").glob("*.test.yml"))
_KUBERNETES = re.compile(r'(cluster|namespace|pod)="[^"]*",')


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_rules_are_valid() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name.split(".")[0])
def test_alerts_fire_when_they_must_and_only_then(file: Path) -> None:
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name.split(".")[0])
def test_alerts_are_the_same_in_a_store_without_kubernetes_labels(
    file: Path, tmp_path: Path
) -> None:
    """One cluster of the same tests, as a plain Prometheus labels its series."""
    content = yaml.safe_load(file.read_text())
    content["rule_files"] = [str(RULES)]
    for test in content["tests"]:
        test["input_series"] = [
            {**entry, "series": _KUBERNETES.sub("", entry["series"])}
            for entry in test["input_series"]
            if 'cluster="east"' in entry["series"]
        ]
        test["promql_expr_test"] = [_plain_query(case) for case in test.get("promql_expr_test", [])]
        for case in test["alert_rule_test"]:
            case["exp_alerts"] = [
                {**alert, "exp_labels": _without_kubernetes(alert["exp_labels"])}
                for alert in case["exp_alerts"]
                if alert["exp_labels"]["cluster"] == "east"
            ]
    plain = tmp_path / "plain.test.yml"
    plain.write_text(yaml.safe_dump(content))
    done = promtool("test", "rules", str(plain))
    assert done.returncode == 0, done.stdout + done.stderr


def _plain_query(case: dict[str, Any]) -> dict[str, Any]:
    """The query without its selection, and the samples of the one cluster."""
    expr = re.sub(r"\{.*\}", "", case["expr"])
    samples = [s for s in case["exp_samples"] if 'cluster="east"' in s["labels"]]
    plain = [{**s, "labels": _KUBERNETES.sub("", s["labels"])} for s in samples]
    # The selection may have left samples out: each expected one is asked for by itself.
    wanted = [f"({expr} and {s['labels']})" for s in plain]
    return {**case, "expr": " or ".join(wanted), "exp_samples": plain}


def _without_kubernetes(labels: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in labels.items() if k not in {"cluster", "namespace", "pod"}}


def test_the_exported_configuration_is_valid(tmp_path: Path) -> None:
    from vllm_nfp.dashboards import export

    export(tmp_path)
    done = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "23 rules found" in done.stdout
