"""Without its flag the plugin changes nothing of vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of, run_vllm

from vllm_nfp.config import ENV_VAR, ProbeConfig

pytestmark = pytest.mark.engine

PROGRAM = Path(__file__).with_name("untouched.py")


Found = dict[str, dict[str, object]]
STALE = ProbeConfig(run_dir="/no/such/folder").to_json()


@pytest.fixture(scope="module")
def found(dense_model: Path) -> Found:
    """What each case leaves of vLLM, by its name."""
    in_a_file = ["serve", str(dense_model), "--config", "flags.yaml"]
    cases: dict[str, tuple[list[str], dict[str, str]]] = {
        "without": (["serve", "some-model", "--enforce-eager"], {}),
        "in a file": (in_a_file, {}),
        "stale": (in_a_file, {ENV_VAR: STALE}),
        "with": (["serve", "some-model", "--nfp-probe"], {}),
    }
    return {
        name: result_of(PROGRAM, *words, environment=environment)
        for name, (words, environment) in cases.items()
    }


def test_without_the_flag_no_attribute_of_vllm_is_replaced(found: Found) -> None:
    assert found["without"] == {"replaced": [], "loaded": [], "flags": False}


def test_a_file_of_flags_without_the_probe_leaves_no_trace(found: Found) -> None:
    assert found["in a file"]["flags"], "the file may have asked for the probe"
    assert found["in a file"]["replaced"] == []


def test_settings_of_an_earlier_run_leave_no_trace_without_the_probe(found: Found) -> None:
    assert found["stale"]["replaced"] == []


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


def test_the_inspection_would_see_a_replacement(found: Found) -> None:
    replaced = found["with"]["replaced"]
    assert isinstance(replaced, list)
    assert "vllm.engine.arg_utils.EngineArgs.add_cli_args" in replaced
    assert found["with"]["flags"]
