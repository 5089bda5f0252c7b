"""Without its flag the plugin changes nothing of vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import run_vllm

from vllm_nfp.config import ENV_VAR, ProbeConfig

pytestmark = pytest.mark.engine

PROGRAM = Path(__file__).with_name("untouched.py")


def inspect(*argv: str, **environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *argv],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_flag_no_attribute_of_vllm_is_replaced() -> None:
    found = inspect("serve", "some-model", "--enforce-eager")
    assert found == {"replaced": [], "loaded": [], "flags": False}


def test_a_file_of_flags_without_the_probe_leaves_no_trace(dense_model: Path) -> None:
    found = inspect("serve", str(dense_model), "--config", "flags.yaml")
    assert found["flags"], "the file may have asked for the probe"
    assert found["replaced"] == []


STALE = ProbeConfig(run_dir="/no/such/folder").to_json()


def test_settings_of_an_earlier_run_leave_no_trace_without_the_probe(dense_model: Path) -> None:
    argv = ("serve", str(dense_model), "--config", "flags.yaml")
    found = inspect(*argv, **{ENV_VAR: STALE})
    assert found["replaced"] == []


@pytest.mark.parametrize("stale", [STALE, pytest.param("1", marks=pytest.mark.thorough)])
def test_settings_of_an_earlier_run_do_not_hide_the_flags(
    monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    """The parser of a real ``vllm serve`` reads the flags, and says what is wrong with one."""
    monkeypatch.setenv(ENV_VAR, stale)
    done = run_vllm("serve", "some-model", "--nfp-probe", "--nfp-epsilon", "much")
    assert done.returncode == 2
    assert "unrecognized arguments" not in done.stderr
    assert "'much' is not a number" in done.stderr.strip().splitlines()[-1]


def test_the_inspection_would_see_a_replacement() -> None:
    found = inspect("serve", "some-model", "--nfp-probe")
    assert "vllm.engine.arg_utils.EngineArgs.add_cli_args" in found["replaced"]
    assert found["flags"]
