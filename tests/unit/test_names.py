"""Names in any spelling: devices as torch and nvidia-smi print them, backends, types, methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vllm_nfp.calibrate.reference_models import REFERENCE, choose
from vllm_nfp.cli import main
from vllm_nfp.draft import Demand, StepCurve, constant, make_schedule
from vllm_nfp.draft.speculative_config import speculative_config
from vllm_nfp.principle import (
    CATALOGUE,
    HardwareError,
    PredictionError,
    default_calibration,
    hardware_by_name,
    match_device,
)
from vllm_nfp.principle.explain import explain
from vllm_nfp.principle.hardware_file import Target, target_of, write_hardware_file
from vllm_nfp.principle.prediction import predict

SMALL = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip
LIST = ", ".join(hardware.name for hardware in CATALOGUE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


@pytest.mark.parametrize(
    "device_name", [name for hardware in CATALOGUE for name in hardware.device_names]
)
def test_every_detected_device_is_taken_by_the_name_that_detects_it(device_name: str) -> None:
    wanted = match_device(device_name)
    assert wanted is not None
    for spelled in (device_name, device_name.upper(), device_name.lower(), f" {device_name} "):
        assert hardware_by_name(spelled) is wanted
        assert target_of(spelled) == Target(wanted, default_calibration(wanted.name))
    assert hardware_by_name(device_name.split(maxsplit=1)[1]) is wanted, "without the maker"


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("NVIDIA A100-SXM-64GB", "A100-SXM4-40GB"),
        ("NVIDIA H200 NVL", "H200"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100-SXM"),
        ("NVIDIA L40", "L40S"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX-4090"),
        ("MI300", "MI300X"),
        ("A6000", "RTX-A6000"),
        ("H2O0", "H200"),
    ],
)
def test_another_device_is_refused_with_the_nearest_names(name: str, suggestions: str) -> None:
    with pytest.raises(HardwareError) as refusal:
        hardware_by_name(name)
    text = str(refusal.value)
    assert text.startswith(f"hardware {name!r} is not in the catalogue (did you mean ")
    assert suggestions in text
    assert text.endswith("): give a name of the catalogue, or a hardware file with its figures")
    assert sum(f" {hardware.name}" in text for hardware in CATALOGUE) <= 5


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("h100", "H100-SXM, H100-PCIe or H100-NVL"),
        ("NVIDIA H100", "H100-SXM, H100-PCIe or H100-NVL"),
        ("GH200", "GH200-96GB or GH200-144GB"),
        ("a100", "A100-SXM4-80GB, A100-SXM4-40GB, A100-PCIe-80GB or A100-PCIe-40GB"),
    ],
)
def test_a_name_that_fits_several_devices_is_asked_about(name: str, devices: str) -> None:
    with pytest.raises(HardwareError) as refusal:
        hardware_by_name(name)
    assert str(refusal.value) == f"hardware {name!r} may be {devices}: give one of these"


@pytest.mark.parametrize("name", ["", " ", "NVIDIA", "-", "qqq", "x" * 100_000])
def test_what_is_like_no_device_is_refused_with_all_names(name: str) -> None:
    with pytest.raises(HardwareError) as refusal:
        hardware_by_name(name)
    assert "did you mean" not in str(refusal.value)
    assert str(refusal.value).endswith(f"is not in the catalogue: use one of {LIST}")
    assert len(str(refusal.value)) < 600


def test_all_that_take_a_device_take_its_printed_name(model: Path) -> None:
    printed, ours = "nvidia h100 80GB HBM3", "H100-SXM"
    assert predict(SMALL, printed) == predict(SMALL, ours)
    for flags in (
        ("predict", model, "--json", "--hardware"),
        ("recommend", "--predicted", model, "--acceptance", "0.7", "--json", "--hardware"),
    ):
        found, wanted = run(*flags, printed), run(*flags, ours)
        assert found.exit_code == 0, found.output
        assert found.stdout == wanted.stdout
        refused = run(*flags, "NVIDIA H200 NVL")
        assert refused.exit_code == 2
        assert "hardware 'NVIDIA H200 NVL' is not in the catalogue (did you mean" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    none = model / "no-samples"
    none.mkdir()
    for name, sentence in ((printed, "no-samples"), ("H100", "may be H100-SXM, H100-PCIe or ")):
        refused = run("calibrate", "--from-samples", none, "--hardware", name)
        assert refused.exit_code == 2
        assert sentence in refused.stderr
        assert ("catalogue" in refused.stderr) is False


def test_a_hardware_file_may_be_a_path_and_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    write_hardware_file(path, target_of("H200"))
    assert predict(SMALL, path) == predict(SMALL, str(path))
    for wrong in (None, 7, b"H200"):
        with pytest.raises(
            HardwareError, match=r"is no name: give one as in 'H100-SXM', or a file"
        ):
            predict(SMALL, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "documented", "spellings"),
    [
        (
            "attention_backend",
            "FLASH_ATTN",
            ("flash_attn", "flash-attn", "FlashAttn", "Flash Attn"),
        ),
        ("attention_backend", "TRITON_ATTN", ("triton-attn",)),
        ("dtype", "bfloat16", ("BFloat16", "torch.bfloat16", "bf16")),
        ("dtype", "float16", ("half", "FP16", "torch.float16")),
        ("quantization", "fp8", ("FP8",)),
        ("quantization", "int4", ("INT4", "int-4")),
        ("kv_cache_dtype", "fp8_e4m3", ("fp8-e4m3", "FP8_E4M3")),
        ("kv_cache_dtype", "bfloat16", ("bf16",)),
    ],
)
def test_settings_of_predict(
    setting: str, documented: str, spellings: tuple[str, ...], model: Path
) -> None:
    wanted = predict(SMALL, "H100-SXM", **{setting: documented}).rows  # type: ignore[arg-type]
    flag = f"--{setting.replace('_', '-')}"
    flags = ("predict", model, "--hardware", "H100-SXM", "--json", flag)
    shown = run(*flags, documented).stdout
    for spelled in spellings:
        assert predict(SMALL, "H100-SXM", **{setting: spelled}).rows == wanted  # type: ignore[arg-type]
        done = run(*flags, spelled)
        assert done.exit_code == 0, done.output
        assert done.stdout == shown


@pytest.mark.parametrize(
    ("setting", "wrong", "sentence"),
    [
        ("attention_backend", "FLASH_ATN", "(did you mean FLASH_ATTN?): known are FLASH_ATTN, "),
        ("dtype", "bfloat61", "dtype must be one of auto, bfloat16, float16, not 'bfloat61'"),
        ("kv_cache_dtype", "fp8_e4m4", "not 'fp8_e4m4' (did you mean fp8_e4m3?)"),
        ("quantization", "int", "one of fp8, int4, not 'int' (did you mean int4?)"),
        ("dtype", 16, "dtype must be one of auto, bfloat16, float16, not 16"),
    ],
)
def test_unknown_settings_of_predict(setting: str, wrong: Any, sentence: str) -> None:
    with pytest.raises(PredictionError) as refusal:
        predict(SMALL, "H100-SXM", **{setting: wrong})
    assert sentence in str(refusal.value)


def test_modules_to_explain(model: Path) -> None:
    flags = ("predict", model, "--hardware", "H100-SXM", "--explain")
    wanted = run(*flags, "8,1024,dense_ffn").stdout
    assert "dense_ffn" in wanted
    for spelled in ("8,1024,dense-ffn", "8,1024,Dense_FFN", "8,1024, denseffn"):
        assert run(*flags, spelled).stdout == wanted
    found = predict(SMALL, "H100-SXM")
    assert explain(found, "dense-ffn", 8, 1024) == explain(found, "dense_ffn", 8, 1024)  # type: ignore[arg-type]
    assert "--explain must be B,L" in run(*flags, "8,1024,dense").stderr


def test_draft_methods(model: Path) -> None:
    curve = StepCurve(1, 1024, 0.01, ((1, 1.0), (4, 1.0)))
    schedule = make_schedule([curve], Demand(constant(0.9)))
    assert speculative_config(schedule, "NGram-GPU")["method"] == "ngram_gpu"
    assert speculative_config(schedule, "EAGLE-3", "head")["method"] == "eagle3"
    with pytest.raises(
        ValueError, match=r"draft method 'egale' is none of .* \(did you mean eagle\?"
    ):
        speculative_config(schedule, "egale", "head")
    flags = ("recommend", "--predicted", model, "--hardware", "H100-SXM", "--acceptance", "0.7")
    given = (*flags, "--json", "--draft-share", "0.05", "--draft-method")
    assert json.loads(run(*given, "Draft-Model").stdout)["draft_method"] == "draft_model"
    refused = run(*given, "egale")
    assert refused.exit_code == 2
    assert "'egale' is not one of 'ngram'" in refused.stderr
    assert "(did you mean eagle?)" in refused.stderr


def test_models_to_calibrate_with() -> None:
    label = REFERENCE[0].label
    assert choose(REFERENCE, [label.upper().replace("-", "_")]) == (REFERENCE[0],)
    with pytest.raises(ValueError, match=rf"no model '{label}x' .*did you mean {label}\?"):
        choose(REFERENCE, [f"{label}x"])
