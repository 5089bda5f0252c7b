"""What is said of models with recurrent state before they are loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from test_engine import config as accepted

from vllm_nfp.adapter import support, versions
from vllm_nfp.adapter.feature_list import features_of
from vllm_nfp.adapter.versions import Mode


def hybrid(architecture: str = "Qwen3NextForCausalLM", **cache: Any) -> Any:
    kept = {"mamba_cache_mode": "align", "use_replayssm": False, "use_kda_recoverssm": False}
    return accepted(
        model_config__is_hybrid=True,
        model_config__hf_config=SimpleNamespace(architectures=[architecture]),
        cache_config=SimpleNamespace(**{**kept, **cache}),
    )


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.33.0")


@pytest.mark.parametrize(
    "architecture",
    ["Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM", "NemotronHForCausalLM", "Lfm2ForCausalLM",
     "KimiLinearForCausalLM", "GraniteMoeHybridForCausalLM", "FalconH1ForCausalLM"],
)  # fmt: skip
def test_known_kinds_are_probed_and_predicted(architecture: str) -> None:
    assert support.decide(hybrid(architecture)).mode is Mode.ACTIVE
    assert support.unpredicted(hybrid(architecture)) is None
    names = {feature.name for feature in features_of(hybrid(architecture))}
    assert any("beside attention" in name for name in names)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (hybrid("JambaForCausalLM"), "the model JambaForCausalLM keeps recurrent"),
        (hybrid(mamba_cache_mode="all"), "--mamba-cache-mode all"),
        (hybrid(use_replayssm=True), "replayed"),
        (hybrid(use_kda_recoverssm=True), "replayed"),
    ],
)
def test_others_are_timed_and_say_why(made: Any, reason: str) -> None:
    found = support.decide(made)
    assert found.mode is Mode.PASSIVE and reason in found.reason


def test_before_0_32_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.31.0")
    found = support.decide(hybrid())
    assert found.mode is Mode.PASSIVE and "0.32 or later" in found.reason
