"""Without its flag the plugin changes nothing of vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

PROGRAM = Path(__file__).with_name("untouched.py")


def inspect(*argv: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *argv],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_flag_no_attribute_of_vllm_is_replaced() -> None:
    found = inspect("serve", "some-model", "--enforce-eager")
    assert found == {"replaced": [], "loaded": [], "flags": False}


def test_a_file_of_flags_without_the_probe_leaves_no_trace(dense_model: Path) -> None:
    found = inspect("serve", str(dense_model), "--config", "flags.yaml")
    assert found["flags"], "the file may have asked for the probe"
    assert found["replaced"] == []


def test_the_inspection_would_see_a_replacement() -> None:
    found = inspect("serve", "some-model", "--nfp-probe")
    assert "vllm.engine.arg_utils.EngineArgs.add_cli_args" in found["replaced"]
    assert found["flags"]
