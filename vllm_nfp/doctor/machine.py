"""Checks of the device and of the folders that are written to."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vllm_nfp.calibrate.device import DeviceError, gpu_at_hand
from vllm_nfp.config import ConfigError, check_writable_folder
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status
from vllm_nfp.principle.hardware import match_device


def device(facts: Facts) -> Iterator[Finding]:
    """The GPU, and whether the predictor knows it."""
    try:
        gpu = gpu_at_hand()
    except DeviceError as error:
        yield Finding("device", Status.UNKNOWN, str(error))
        return
    if gpu is None:
        yield Finding(
            "device",
            Status.OK,
            f"no GPU; {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        )
        yield Finding(
            "predictions",
            Status.WARNING,
            "none on a CPU: the predictor covers GPUs only",
            "vllm-nfp predict MODEL --hardware NAME works without a GPU",
        )
        return
    driver = _driver_version()
    yield Finding(
        "device",
        Status.OK,
        f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} GiB free, compute capability "
        f"{'.'.join(map(str, gpu.capability))}" + (f", driver {driver}" if driver else ""),
    )
    yield _hardware(gpu.name)


def hardware_at_hand() -> str | None:
    """The name of this machine's GPU in the catalogue; None without one."""
    try:
        gpu = gpu_at_hand()
    except DeviceError:
        return None
    hardware = None if gpu is None else match_device(gpu.name)
    return None if hardware is None else hardware.name


def _hardware(name: str) -> Finding:
    hardware = match_device(name)
    if hardware is None:
        return Finding(
            "predictions",
            Status.WARNING,
            f"{name} is not in the hardware catalogue: no predictions on /metrics",
            "write a hardware file for vllm-nfp predict (docs/calibrate.md)",
        )
    return Finding("predictions", Status.OK, f"hardware {hardware.name}")


def _driver_version() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(errors="replace").split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)


def prometheus(facts: Facts) -> Iterator[Finding]:
    """Whether the folder of several API servers' metrics is fit for a start."""
    name = "prometheus multiprocess"
    folder = facts.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        yield Finding(name, Status.OK, "PROMETHEUS_MULTIPROC_DIR is not set: vLLM sets it")
        return
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.W_OK):
        yield Finding(
            name,
            Status.BROKEN,
            f"PROMETHEUS_MULTIPROC_DIR {folder!r} is not a writable directory",
            "unset it, or create the directory",
        )
    elif any(path.iterdir()):
        yield Finding(
            name,
            Status.WARNING,
            f"PROMETHEUS_MULTIPROC_DIR {folder!r} holds files of an earlier run",
            "empty it before each start, or unset it",
        )
    else:
        yield Finding(name, Status.OK, f"PROMETHEUS_MULTIPROC_DIR is {folder!r}")


def output_folder(facts: Facts) -> Iterator[Finding]:
    """Whether the output directory can be written."""
    if facts.question.output_dir is not None:
        yield _folder("output directory", facts.question.output_dir)


def temporary_folder(facts: Facts) -> Iterator[Finding]:
    """Whether results can be written for /metrics."""
    name = "temporary directory"
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        yield Finding(name, Status.BROKEN, str(error), "set TMPDIR to a directory with free space")
        return
    yield _folder(name, folder)


def _folder(name: str, folder: str) -> Finding:
    try:
        check_writable_folder(name, folder)
    except ConfigError as error:
        return Finding(name, Status.BROKEN, str(error))
    return Finding(name, Status.OK, f"{folder} can be written")
