"""An earlier profile as the start of a surface, and which profiles are refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_surface import CONFIG as MODEL
from sessions import session_of, vllm_config
from test_principle_models import QWEN_3_30B_A3B

from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.config import ProbeConfig
from vllm_nfp.principle import (
    Serving,
    Target,
    default_calibration,
    hardware_by_name,
    shape_from_config,
)
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.live import Ground
from vllm_nfp.results.profile import Profile, profile_file, save_profile
from vllm_nfp.results.warm_start import (
    AGED_DEVIATION,
    AGED_SECONDS,
    MOST_RATIOS,
    OtherSetupError,
    check_same,
    observations_of,
)
from vllm_nfp.session import knowledge
from vllm_nfp.session.knowledge import Knowledge, knowledge_of
from vllm_nfp.session.output import Measured
from vllm_nfp.surface import RECORDED
from vllm_nfp.types import Basis, ExpertRouting, Module

MODULES = (Module.MODEL, Module.ATTENTION, Module.DENSE_FFN)


def test_measured_points_become_observations_that_age(dense_profile: Profile) -> None:
    made_at = dense_profile.environment.date_unix_seconds
    found = observations_of(dense_profile, MODULES, 32, made_at)
    rows = {(r.module, r.batch_size, r.context, r.positions): r for r in dense_profile.curves}
    assert 0 < len(found.ratios) <= MOST_RATIOS
    for ratio in found.ratios:
        row = rows[ratio.module, ratio.shape.batch_size, ratio.shape.context,
                   ratio.shape.positions]  # fmt: skip
        assert 2.718281828**ratio.log_ratio == pytest.approx(row.ratio)
        assert ratio.samples == 0, "they are no pairs of this server"
        assert ratio.variance >= 0.005**2
    assert {r.shape.positions for r in found.ratios} <= set(range(2, 33))
    assert {b.batch_size for b in found.baselines} == {1, 8, 32}
    later = observations_of(dense_profile, MODULES, 32, made_at + 100 * AGED_SECONDS)
    assert later.ratios[0].variance == pytest.approx(found.ratios[0].variance + AGED_DEVIATION**2)


def test_what_was_not_measured_or_is_not_known_is_left(dense_profile: Profile) -> None:
    inferred = tuple(replace(point, basis=Basis.INFERRED) for point in dense_profile.curves)
    nothing = observations_of(replace(dense_profile, curves=inferred), MODULES, 32, 0.0)
    assert not (nothing.ratios or nothing.baselines)
    attention = observations_of(dense_profile, (Module.ATTENTION,), 4, 0.0)
    assert {ratio.module for ratio in attention.ratios} == {Module.ATTENTION}
    assert max(ratio.shape.positions for ratio in attention.ratios) <= 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention_backends": ("FLASHINFER",)}, "attention backend is unknown, here it is FLASH"),
        ({"tensor_parallel_size": 2}, "tensor parallel size is 1, here it is 2"),
        ({"data_parallel_size": 2}, "data parallel size is 1, here it is 2"),
        ({"quantization": "fp8"}, "quantization is None, here it is fp8"),
        ({"kv_cache_dtype": "fp8"}, "KV cache dtype is , here it is fp8"),
        ({"cudagraph_capture_sizes": (1, 2, 512)}, "largest CUDA graph is 0, here it is 512"),
    ],
)
def test_a_profile_of_another_setup_is_refused_with_both_values(
    dense_profile: Profile, changes: dict[str, Any], sentence: str
) -> None:
    check_same(dense_profile, dense_profile.environment, dense_profile.model)
    here = replace(dense_profile.environment, **changes)
    with pytest.raises(OtherSetupError) as caught:
        check_same(dense_profile, here, dense_profile.model)
    assert sentence in str(caught.value)


def test_a_profile_of_another_model_or_gpu_is_refused_with_both_values(
    dense_profile: Profile,
) -> None:
    environment, model = dense_profile.environment, dense_profile.model
    renamed = replace(model, name="a fine-tuned one")
    check_same(dense_profile, environment, renamed)
    with pytest.raises(OtherSetupError, match="hidden_size is 4096, here it is 2048"):
        check_same(dense_profile, environment, replace(model, hidden_size=2048))
    other = replace(environment, device=replace(environment.device, name="NVIDIA H200"))
    with pytest.raises(OtherSetupError) as caught:
        check_same(dense_profile, other, model)
    assert str(caught.value) == "its GPU is NVIDIA H100 80GB HBM3, here it is NVIDIA H200"


@pytest.fixture
def view() -> RunnerView:
    made: Any = SimpleNamespace(device=torch.device("cpu"), runner=object())
    return made


def known(profile: Profile, view: RunnerView, **settings: Any) -> Knowledge:
    """What a server like the profile's knows at its start."""
    config = ProbeConfig(**settings)
    worker = session_of(config, vllm_config())._worker
    measured = Measured(profile.environment, profile.model, config)
    return knowledge_of(
        worker, view, measured, CapturedGraphs((1, 2, 4)), (Module.ATTENTION, Module.DENSE_FFN)
    )


def test_an_earlier_profile_warms_the_start_and_the_log_says_so(
    dense_profile: Profile, view: RunnerView, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "earlier.json"
    save_profile(path, dense_profile)
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        found = known(dense_profile, view, start_profile=str(path))
    assert found.kind == "profile"
    assert found.warm.ratios
    assert found.guessed, "beside the profile nothing is known of a CPU"
    assert "answers start from an earlier profile" in caplog.text


def test_the_profile_in_the_output_folder_is_used_by_itself(
    dense_profile: Profile, view: RunnerView, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert known(dense_profile, view, output_dir=str(tmp_path)).kind == "generic"
    save_profile(profile_file(tmp_path, "0"), dense_profile)
    assert known(dense_profile, view, output_dir=str(tmp_path)).kind == "profile"
    other = replace(dense_profile, environment=replace(dense_profile.environment, dtype="half"))
    save_profile(profile_file(tmp_path, "0"), other)
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        found = known(dense_profile, view, output_dir=str(tmp_path))
    assert (found.kind, found.warm.ratios) == ("generic", ())
    (line,) = [r for r in caplog.records if "is not used: its dtype is half" in r.message]
    assert line.levelno == logging.INFO


def test_a_refused_profile_leaves_a_cold_start_and_its_reason(
    dense_profile: Profile, view: RunnerView, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.json"
    save_profile(path, replace(dense_profile, model=replace(dense_profile.model, hidden_size=2048)))
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        found = known(dense_profile, view, start_profile=str(path))
    sentence = (
        f"the start profile {path} is not used: its model's hidden_size is 2048, here it is 4096"
    )
    assert found.reason == f"steps run on a CPU; {sentence}"
    assert (found.kind, found.warm.ratios) == ("generic", ())
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        f"vllm-nfp: {sentence}"
    ]


def test_a_hardware_file_of_another_gpu_leaves_the_built_in_prediction(
    dense_profile: Profile,
    view: RunnerView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vllm_nfp.principle.hardware_file import write_hardware_file

    path = tmp_path / "l4.json"
    write_hardware_file(path, Target(hardware_by_name("L4"), default_calibration("L4")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    engine = vllm_config()
    engine.model_config.hf_config = SimpleNamespace(to_dict=lambda: MODEL, architectures=["L"])
    config = ProbeConfig(hardware_file=str(path))
    worker = session_of(config, engine)._worker
    on_gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), runner=SimpleNamespace(attn_groups=[])
    )
    environment = replace(dense_profile.environment, attention_backends=("FLASH_ATTN",))
    measured = Measured(environment, dense_profile.model, config)
    found = knowledge.knowledge_of(worker, on_gpu, measured, CapturedGraphs((1, 2, 4)), MODULES)
    assert found.kind == "predicted"
    assert found.hyper is RECORDED
    assert len(found.prior(1, 256).log_step) == config.max_positions
    assert "is for L4, this GPU is NVIDIA H100 80GB HBM3" in found.reason
    assert found.ground is not None and found.ground.target.hardware.name == "H100-SXM"
    assert not found.guessed
    l4 = Target(hardware_by_name("L4"), default_calibration("L4"))
    assert replace(found, ground=replace(found.ground, target=l4)).guessed
    assert "is for L4" in next(r.message for r in caplog.records if r.levelno == logging.WARNING)


def test_a_profile_that_counted_experts_gives_its_routing_to_the_prior(
    moe_profile: Profile, view: RunnerView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(hardware_by_name("H200"), default_calibration("H200"))
    ground = Ground(shape_from_config(QWEN_3_30B_A3B), target, Serving())
    monkeypatch.setattr(knowledge, "served_ground", lambda *_: ground)
    counted = ExpertRouting(128, 8, 8, 20, 16384, 0.6, ())
    path = tmp_path / "earlier.json"
    skews, steps = [], []
    for experts in (None, counted):
        save_profile(path, replace(moe_profile, experts=experts))
        found = known(moe_profile, view, start_profile=str(path))
        assert found.ground is not None
        skews.append(found.ground.serving.routing_skew)
        steps.append(found.prior(8, 1024).log_step[3] - found.prior(8, 1024).log_step[0])
    assert skews == [0.0, 0.6]
    assert steps[1] < steps[0], "skewed routers wake fewer experts"
