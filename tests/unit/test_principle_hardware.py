"""The catalogue: figures that fit together, and names that match one device only."""

from __future__ import annotations

import dataclasses

import pytest

from vllm_nfp.principle import CATALOGUE, HardwareError, hardware_by_name, match_device


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("AMD Instinct MI300X", "MI300X"),
        (" nvidia  h200 ", "H200"),
    ],
)
def test_device_names(device_name: str, name: str) -> None:
    hardware = match_device(device_name)
    assert hardware is not None
    assert hardware.name == name


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H200 NVL",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "",
    ],
)
def test_other_devices_do_not_match(device_name: str) -> None:
    assert match_device(device_name) is None


@pytest.mark.parametrize("name", ["H100 SXM", "h100-sxm", "H100SXM"])
def test_catalogue_names_ignore_case_and_separators(name: str) -> None:
    assert hardware_by_name(name).name == "H100-SXM"


def test_unknown_name_lists_those_known() -> None:
    with pytest.raises(HardwareError, match=r"'V100' .* A100-SXM4-80GB, H100-SXM, .* MI300X$"):
        hardware_by_name("V100")


# FLOPs per byte in BF16, by hand from the data sheets' dense figures: a sparse figure would
# double them.
@pytest.mark.parametrize(
    ("name", "ridge"),
    [
        ("A100-SXM4-80GB", 153),
        ("H100-SXM", 295),
        ("H100-PCIe", 378),
        ("H200", 206),
        ("B200", 281),
        ("L4", 403),
        ("L40S", 419),
        ("RTX-4090", 164),
        ("MI300X", 247),
    ],
)
def test_ridge_points(name: str, ridge: float) -> None:
    assert hardware_by_name(name).ridge(fp8=False) == pytest.approx(ridge, abs=1)


def test_fp8_doubles_the_peak_or_falls_back() -> None:
    for hardware in CATALOGUE:
        factor = 1 if hardware.fp8_flops is None else 2
        assert hardware.peak_flops(True) == pytest.approx(factor * hardware.bf16_flops, rel=0.02)


@pytest.mark.parametrize(
    ("field", "value"), [("num_sms", 0), ("fp8_flops", -1.0), ("bf16_flops", float("nan"))]
)
def test_impossible_figures_are_refused(field: str, value: float) -> None:
    with pytest.raises(HardwareError, match=rf"^{field} of 'H200' must be above 0, not {value}"):
        dataclasses.replace(hardware_by_name("H200"), **{field: value})
