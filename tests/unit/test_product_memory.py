"""The products' memory: which variables each process has, and what is read from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

# The scripts are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("aiohttp")

from benchmarks.hosts import environment
from benchmarks.memory import product_memory
from benchmarks.overhead.soak import STEADY_MEMORY


def test_every_process_walks_the_same_counts() -> None:
    counts = product_memory.token_counts(50)
    assert counts == product_memory.token_counts(50)
    assert counts[:20] == product_memory.token_counts(20)
    assert 1 <= min(counts) <= max(counts) <= product_memory.MOST_TOKENS


def test_each_setting_has_its_variables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the caller's would make the default another setting."""
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    given: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        given.append({name: env[name] for name in STEADY_MEMORY if name in env})
        rows = [{"steps": 0, "counts": 0, "resident_mib": 10.0},
                {"steps": 100, "counts": 99, "resident_mib": 30.0}]  # fmt: skip
        text = "\n".join(["INFO a line of vLLM's", *map(json.dumps, rows)])
        return subprocess.CompletedProcess(command, 0, text)

    monkeypatch.setattr(environment, "record", dict)
    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "found.json"
    done = CliRunner().invoke(product_memory.main, ["--out", str(out)])
    assert done.exit_code == 0, done.output
    assert given == [dict(one) for one in product_memory.SETTINGS.values()]
    assert given[0] == {} and given[-1] == STEADY_MEMORY
    assert "default: 20 MiB more after 99 counts of tokens" in done.output
    assert json.loads(out.read_text())["rows"]["steady"][-1]["resident_mib"] == 30.0
