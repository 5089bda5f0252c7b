"""That a server with adaptive verification drafts more than pays, said before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_doctor import OF_MODEL, SPECULATING
from test_doctor import sound_machine as sound_machine  # noqa: PLC0414 (a fixture)
from test_recommend import QWEN3_8B

from vllm_nfp import doctor
from vllm_nfp.calibrate.device import DeviceError
from vllm_nfp.doctor import Answer, Finding, Question, Status, machine
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES

NAME = "drafts of adaptive verification"
FLAGS: dict[str, Any] = {
    **OF_MODEL, **SPECULATING,
    "speculative": "eagle3", "adaptive_verification": True, "draft_length": 15,
    "graphs": {"eager": False, "mode": "FULL_DECODE_ONLY", "largest": 512,
               "sizes": [*DEFAULT_CAPTURE_SIZES]},
}  # fmt: skip


def finding(folder: Path, config: dict[str, Any] = QWEN3_8B, **values: Any) -> Finding | None:
    (folder / "config.json").write_text(json.dumps(config))
    found = doctor.diagnose(Question(folder), lambda _: Answer({**FLAGS, **values}))
    return next((of for of in found.findings if of.name == NAME), None)


def test_more_drafts_than_pay_at_any_published_acceptance_are_told(tmp_path: Path) -> None:
    found = finding(tmp_path)
    assert found is not None
    assert found.status is Status.WARNING
    assert "each step drafts all 15 tokens" in found.found
    assert "predicted for H100-SXM at the highest published acceptance of eagle3" in found.advice
    assert finding(tmp_path, graphs={**FLAGS["graphs"], "eager": True, "sizes": []}) is not None


@pytest.mark.parametrize(
    "values",
    [
        {"draft_length": 5},
        {"adaptive_verification": False},
        {"speculative": None},
        {"speculative": "dflash"},
        {"speculative": "mtp"},
        {"quantization": "awq_marlin"},
        {"kv_cache_dtype": "turboquant"},
        {"tensor_parallel": 3},
    ],
    ids=["few", "fixed length", "no drafts", "unpublished", "no such layers", "unknown weights",
         "unknown cache", "unknown split"],
)  # fmt: skip
def test_what_is_few_or_cannot_be_predicted_is_not_told(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    assert finding(tmp_path, **values) is None


def test_flags_tell_how_weights_are_stored_if_the_config_does_not(tmp_path: Path) -> None:
    assert finding(tmp_path, quantization="fp8") is not None
    stored = {**QWEN3_8B, "quantization_config": {"quant_method": "fp8"}}
    assert finding(tmp_path, stored, quantization="fp8") is not None


def test_nothing_is_told_of_an_unknown_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_at_hand", lambda: None)
    assert finding(tmp_path) is None

    def broken() -> None:
        raise DeviceError("no driver")

    monkeypatch.setattr(machine, "gpu_at_hand", broken)
    assert finding(tmp_path) is None
