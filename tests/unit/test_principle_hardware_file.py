"""Hardware files: round trip, and files that nobody should trust."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_principle_models import LLAMA_3_8B, QWEN_3_30B_A3B

from vllm_nfp.principle import (
    CATALOGUE,
    H100_CALIBRATION,
    HardwareError,
    PredictionError,
    Target,
    modules_of,
    predict_cell,
    read_hardware_file,
    shape_from_config,
    target_of,
    write_hardware_file,
)

H100 = target_of("H100-SXM")
SHAPES = (shape_from_config(LLAMA_3_8B, weight_bits=8), shape_from_config(QWEN_3_30B_A3B))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device.json"
    write_hardware_file(path, Target(H100.hardware, H100.calibration, {"driver": "580"}))
    return path


def changed(file: Path, *keys: str, value: object) -> Path:
    values = json.loads(file.read_text())
    part = values
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    file.write_text(json.dumps(values))
    return file


@pytest.mark.parametrize("hardware", CATALOGUE, ids=lambda hardware: hardware.name)
def test_a_file_reads_back_as_it_was_written(hardware: Any, tmp_path: Path) -> None:
    constants = dataclasses.replace(
        H100_CALIBRATION,
        gemm=dataclasses.replace(H100_CALIBRATION.gemm, bandwidth=0.5),
        source="here",
    )
    target = Target(hardware, constants, {"vllm": "0.32.0", "clocks": [1980, 2619]})
    path = tmp_path / "device.json"
    write_hardware_file(path, target)
    assert read_hardware_file(path) == target
    assert target_of(str(path)) == target
    assert [found.name for found in tmp_path.iterdir()] == ["device.json"]


def test_names_and_files_are_told_apart(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert target_of("device.json").environment == {"driver": "580"}
    assert target_of("h200").hardware.name == "H200"
    with pytest.raises(HardwareError, match="'device' is not in the catalogue: use one of A100"):
        target_of("device")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema",), 2, "schema is 2 where 1 is known"),
        (("hardware",), None, "hardware: expected 'object', got 'null'"),
        (("hardware", "num_sms"), 0, "num_sms of 'H100-SXM' must be above 0, not 0"),
        (("hardware", "num_sms"), 1 << 20, "num_sms of 'H100-SXM' must be 65536 or less"),
        (("hardware", "bf16_flops"), 1e300, "bf16_flops of 'H100-SXM' must lie from 1 to 1e"),
        (("hardware", "l2_bytes"), 1.5, "hardware.l2_bytes: expected 'int', got 'float'"),
        (("hardware", "name"), "", "name must have 1 to 100 printable characters"),
        (("hardware", "name"), "x\x1b[31m", "name must have 1 to 100 printable characters"),
        (("calibration", "gemm", "flops"), 0, "calibration.gemm: flops must lie"),
        (("calibration", "gemm", "fp8", "tile_tokens"), [1], "calibration.gemm.fp8: tile_tokens"),
        (("calibration", "attention", "bandwidth"), -1, "calibration.attention: bandwidth must"),
        (("calibration", "link"), 3, "calibration.link: expected 'object', got 'int'"),
        (("calibration", "extra"), 3, "calibration has the unknown field 'extra'"),
    ],
)
def test_strange_files_are_refused(
    file: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    with pytest.raises(HardwareError, match=message) as refused:
        read_hardware_file(changed(file, *keys, value=value))
    assert "device.json cannot be used" in str(refused.value)
    assert str(refused.value).endswith("write it with vllm-nfp calibrate")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', '{"schema": NaN}', "[" * 100_000])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(HardwareError, match=r"x\.json cannot be used"):
        read_hardware_file(path)


def test_missing_files_folders_and_large_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"cannot be read .No such file"):
        target_of(str(tmp_path / "none.json"))
    with pytest.raises(HardwareError, match=r"cannot be read .Is a directory"):
        target_of(f"{tmp_path}/")
    with pytest.raises(HardwareError, match="null byte"):
        target_of("a\0b.json")
    large = tmp_path / "large.json"
    large.write_text(" " * ((1 << 20) + 1))
    with pytest.raises(HardwareError, match="larger than"):
        target_of(str(large))


numbers = st.one_of(
    st.integers(-10, 1 << 60), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1)
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return found


WRITTEN = {
    "hardware": dataclasses.asdict(H100.hardware),
    "calibration": H100.calibration.to_mapping(),
}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from(leaves(WRITTEN)), json_values), min_size=1, max_size=3))
def test_a_hostile_file_is_refused_or_predicts(
    tmp_path: Path, changes: list[tuple[tuple[str, ...], object]]
) -> None:
    path = tmp_path / "hostile.json"
    write_hardware_file(path, H100)
    for keys, value in changes:
        changed(path, *keys, value=value)
    try:
        target = read_hardware_file(path)
        cells = [
            predict_cell(shape, target, module, 8, 1024, (0.1,), max_positions=40)
            for shape in SHAPES
            for module in modules_of(shape)
        ]
    except (HardwareError, PredictionError):
        return
    for cell in cells:
        assert np.isfinite(cell.seconds).all()
        assert min(cell.seconds) > 0
        assert 1 <= cell.boundaries[0].nfp <= 40
        assert math.isfinite(cell.idle_compute_nfp)
