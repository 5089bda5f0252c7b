"""The catalogue: figures that fit together, and names that match one device only."""

from __future__ import annotations

import dataclasses

import pytest

from vllm_nfp.principle import CATALOGUE, HardwareError, hardware_by_name, match_device
from vllm_nfp.principle.calibration import MAIN_PARTS, PARTS
from vllm_nfp.principle.hardware import BASES
from vllm_nfp.principle.hardware_file import target_of


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
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H20-3e", "H20-141GB"),
        ("NVIDIA GH200 480GB", "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", "GH200-144GB"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA B300", "B300"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA GB10", "GB10"),
        ("NVIDIA L20", "L20"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-Server"),
        ("AMD Instinct MI325X", "MI325X"),
        ("AMD Instinct MI355X", "MI355X"),
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
        "NVIDIA A100-SXM-64GB",
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
    with pytest.raises(HardwareError, match=r"'V100' .* A100-SXM4-80GB, .* H100-SXM, .* MI355X$"):
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
        ("A100-PCIe-40GB", 201),
        ("A10G", 117),
        ("RTX-3090", 76),
        ("H20", 37),
        ("RTX-5090", 117),
        ("RTX-PRO-6000", 281),
        ("MI355X", 315),
    ],
)
def test_ridge_points(name: str, ridge: float) -> None:
    assert hardware_by_name(name).ridge(fp8=False) == pytest.approx(ridge, abs=1)


def test_fp8_doubles_the_peak_or_falls_back() -> None:
    for hardware in CATALOGUE:
        # GB10's tensor cores multiply FP8 no faster than BF16 (aiconfigurator, systems/gb10.yaml).
        factor = 1 if hardware.fp8_flops is None or hardware.name == "GB10" else 2
        assert hardware.peak_flops(True) == pytest.approx(factor * hardware.bf16_flops, rel=0.02)


@pytest.mark.parametrize(
    ("field", "value"), [("num_sms", 0), ("fp8_flops", -1.0), ("bf16_flops", float("nan"))]
)
def test_impossible_figures_are_refused(field: str, value: float) -> None:
    with pytest.raises(HardwareError, match=rf"^{field} of 'H200' must be above 0, not {value}"):
        dataclasses.replace(hardware_by_name("H200"), **{field: value})


# MiB as nvidia-smi lists them: memory.total.
@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("A100-SXM4-40GB", 40960),
        ("A10G", 23028),
        ("A40", 46068),
        ("H100-SXM", 81559),
        ("H100-NVL", 95830),
        ("H200", 143771),
        ("H20", 97871),
        ("H20-141GB", 143771),
        ("GH200-144GB", 146831),
        ("B200", 183359),
        ("B300", 275040),
        ("GB200", 189471),
        ("GB300", 284208),
        ("L4", 23034),
        ("L20", 46068),
        ("L40S", 46068),
        ("RTX-5090", 32607),
        ("RTX-PRO-6000-Server", 97887),
    ],
)
def test_capacity_is_what_drivers_report(name: str, mib: int) -> None:
    assert hardware_by_name(name).memory_bytes == pytest.approx(mib * 2**20, rel=3e-3)


def test_whole_words_that_begin_one_device_alone_name_it() -> None:
    assert hardware_by_name("RTX 6000").name == "RTX-6000-Ada"
    with pytest.raises(HardwareError, match="'h100' may be H100-SXM, H100-PCIe or H100-NVL: give"):
        hardware_by_name("h100")
    with pytest.raises(HardwareError, match="did you mean L40S"):
        hardware_by_name("L40")  # another device


def test_every_device_names_its_source_and_what_its_constants_rest_on() -> None:
    for hardware in CATALOGUE:
        assert hardware.source, hardware.name
        assert hardware.memory_bytes, hardware.name
        assert hardware.generation, hardware.name
        calibration = target_of(hardware.name).calibration
        assert {*MAIN_PARTS, "link"} <= set(calibration.origins) <= set(PARTS), hardware.name
        weakest = max((calibration.origins[part] for part in MAIN_PARTS), key=BASES.index)
        assert target_of(hardware.name).basis == weakest
    with pytest.raises(HardwareError, match="basis of 'H200' must be one of own runs, "):
        dataclasses.replace(hardware_by_name("H200"), basis="hearsay")


def test_what_was_fitted_to_public_kernels_says_so() -> None:
    assert target_of("A100-SXM4-80GB").basis == "public kernels"
    assert "public kernels" in target_of("A100-SXM4-80GB").calibration.source
    assert (target_of("A100-PCIe-40GB").basis, target_of("H200").basis) == ("assumption",) * 2
    h200, a100 = target_of("H200").calibration.origins, target_of("A100-PCIe-40GB").calibration
    assert (h200["attention"], h200["gemm"]) == ("public kernels", "assumption")
    assert (h200["gemm.fp8"], h200["experts"]) == ("own runs",) * 2
    assert a100.gemm == target_of("A100-SXM4-80GB").calibration.gemm, "of the same generation"
    assumed = {name: target_of(name).calibration.assumed for name in ("H100-SXM", "H200", "L4")}
    assert assumed == {"H100-SXM": False, "H200": False, "L4": True}
    assert not dataclasses.replace(target_of("L4").calibration, fitted=True).assumed
    assert a100.link == dataclasses.replace(target_of("L40S").calibration.link, fitted=False)


def test_constants_of_another_device_are_an_assumption() -> None:
    h100 = target_of("H100-SXM")
    carried = dataclasses.replace(h100.calibration, fitted=False, source="carried over", origins={})
    assert h100.basis == "own runs"
    assert dataclasses.replace(h100, calibration=carried).basis == "assumption"
