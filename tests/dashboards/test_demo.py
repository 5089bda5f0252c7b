"""The local stack: what it starts, how it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dashboards.local_stack import __main__ as stack
from dashboards.local_stack import prometheus
from vllm_nfp import demo

ROOT = Path(__file__).parents[2]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt: prometheus)"
)


def test_the_server_drafts_and_keeps_layer_histograms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.shutil, "which", lambda *_, **__: "/bin/vllm")
    command = stack.server_command(demo.Settings(tmp_path, 1), tmp_path / "model", 8000)
    probe = json.loads(command[command.index("--nfp-config") + 1])
    assert probe["layer_histograms"] is True
    assert probe["batch_sizes"] == [1, 4]
    assert json.loads(command[command.index("--speculative-config") + 1])["method"] == "ngram"
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_without_prometheus_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus.shutil, "which", lambda _: None)
    with (
        pytest.raises(prometheus.PrometheusError, match="apt install prometheus"),
        prometheus.running_prometheus(tmp_path, [], None),
    ):
        pass
    done = CliRunner().invoke(stack.main, ["--no-keep"])
    assert done.exit_code == 2
    assert "the prometheus command is not installed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs_prometheus
def test_a_prometheus_that_does_not_start_is_named(tmp_path: Path) -> None:
    rules = tmp_path / "bad.rules.yml"
    rules.write_text("groups: nonsense")
    with (
        pytest.raises(prometheus.PrometheusError, match="Prometheus exited with code"),
        prometheus.running_prometheus(tmp_path / "run", [], rules),
    ):
        pass


@needs_prometheus
def test_rules_are_found_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Prometheus takes their path for a pattern."""
    folder = tmp_path / "a [v1] ? folder"
    folder.mkdir()
    shutil.copy(ROOT / "dashboards" / "rules" / "nfp.rules.yml", folder)
    rules = folder / "nfp.rules.yml"
    with prometheus.running_prometheus(folder / "run", [], rules) as running:
        assert running.rules()


@needs_prometheus
def test_prometheus_ends_with_its_block(tmp_path: Path) -> None:
    with prometheus.running_prometheus(tmp_path, ["127.0.0.1:1"], None) as running:
        assert running.url.startswith("http://127.0.0.1:")
        assert running.now("vector(1)")[0].points[0][1] == 1.0
    with pytest.raises(OSError, match="refused"):
        running.now("up")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of vLLM's sockets, 107 bytes in all."""
    with tempfile.TemporaryDirectory(prefix="nfp-demo-test-") as folder:
        yield Path(folder)


@needs_prometheus
@pytest.mark.engine
@pytest.mark.thorough
def test_the_demo_runs_and_leaves_nothing_behind(short_folder: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "dashboards" / "demo"), "--seconds", "15", "--no-keep"],
        capture_output=True, text=True, timeout=400, check=False,
        env={
            **os.environ, "TMPDIR": str(short_folder), "COLUMNS": "120",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    groups = yaml.safe_load((ROOT / "dashboards" / "rules" / "nfp.rules.yml").read_text())["groups"]
    rules = sum(len(group["rules"]) for group in groups)
    assert f"{rules} rules evaluated, 0 with errors" in done.stdout
    assert "/alerts" in done.stdout
    assert "vllm_nfp_overhead_ratio" in done.stdout
    left = [path.name for path in short_folder.iterdir() if path.name.startswith("vllm-nfp")]
    assert left == []
    commands = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert str(short_folder) not in commands, "a process was left"
