"""``vllm-nfp calibrate``: constants of vLLM's kernels on this GPU, as a hardware file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_nfp.calibrate.device import DeviceError, Gpu, gpu_at_hand
from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import KernelSamples
from vllm_nfp.calibrate.reference_models import REFERENCE, TRIAL, choose
from vllm_nfp.cli.calibrate_output import (
    Calibrated,
    Measured,
    print_counts,
    print_result,
)
from vllm_nfp.cli.calibrate_samples import measure, read
from vllm_nfp.cli.common import (
    Refusal,
    check_output,
    json_option,
    write_or_keep,
)
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.calibration import default_calibration
from vllm_nfp.principle.hardware import HardwareError, match_device
from vllm_nfp.principle.hardware_file import Target, target_of, write_hardware_file

if TYPE_CHECKING:
    from vllm_nfp.calibrate.fit import FitResult

_TRIAL_WARNING = (
    "trial: constants of tiny models on a CPU are meaningless: do not predict with them"
)


@click.command("calibrate")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Hardware file to write [default: the device's name, e.g. h100-sxm.json].",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option(
    "--samples",
    "keep",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Keep the raw samples in this directory.",
)
@click.option(
    "--from-samples",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Fit the samples in this directory; no GPU is used.",
)
@click.option(
    "--models", default="", help="Labels of the models to time, with commas [default: all]."
)
@click.option(
    "--hardware",
    default=None,
    help="Device whose data sheet is used: a catalogue name or a hardware file (*.json).",
)
@click.option(
    "--trial",
    is_flag=True,
    help="Time tiny models, to try the command without a GPU; -o then needs --hardware.",
)
@json_option
def calibrate_command(
    output: Path | None,
    force: bool,
    keep: Path | None,
    from_samples: Path | None,
    models: str,
    hardware: str | None,
    trial: bool,
    as_json: bool,
) -> None:
    """Time vLLM's kernels on this GPU, fit the predictor's constants, write a hardware file.

    `vllm-nfp predict --hardware FILE.json` reads it. A few layers of published models with dummy
    weights are timed, which takes some minutes. Nothing else should use the GPU meanwhile.
    """
    if from_samples is not None and (keep is not None or trial or models):
        raise Refusal("--from-samples measures nothing: leave out --samples, --models and --trial")
    _check_scipy()
    target = None if hardware is None else _target(hardware)
    plans = _plans(models, trial)
    console = Console(stderr=True, quiet=as_json)
    if from_samples is not None:
        measured = Measured(read(from_samples))
        target = target or _matching(_device_of(measured.samples), "the samples' device")
        path = _output_path(output, target, force)
    else:
        gpu = None if trial else _gpu()
        if gpu is not None:
            target = target or _matching(gpu.name, "this GPU")
        if target is None:
            if output is not None:
                raise Refusal(
                    "--trial writes a file only with --hardware: give a name of the catalogue"
                )
            print_counts(measure(plans, gpu, None, keep, force, console), as_json)
            return
        path = _output_path(output, target, force)
        measured = measure(plans, gpu, target, keep, force, console)
    done = _calibrated(measured, target, path, trial)
    _write(path, done.result, force)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
    else:
        print_result(done)


def _calibrated(measured: Measured, target: Target, path: Path, trial: bool) -> Calibrated:
    result = _fit(measured.samples, target)
    if not trial:
        return Calibrated(path, target.calibration, result, measured.notes)
    notes = (*measured.notes, _TRIAL_WARNING)
    return Calibrated(path, target.calibration, _marked(result), notes)


def _check_scipy() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise Refusal("fitting needs scipy: install vllm-nfp[calibrate]")


def _plans(models: str, trial: bool) -> tuple[ModelPlan, ...]:
    labels = [label.strip() for label in models.split(",") if label.strip()]
    try:
        return choose(TRIAL if trial else REFERENCE, labels)
    except ValueError as error:
        raise Refusal(f"--models: {error}") from None


def _target(hardware: str) -> Target:
    try:
        return target_of(hardware)
    except HardwareError as error:
        raise Refusal(f"--hardware: {error}") from None


def _matching(device: str, whose: str) -> Target:
    """The catalogue's entry for the device."""
    found = match_device(device)
    if found is None:
        raise Refusal(
            f"{whose}, {device!r:.80}, is not in the catalogue: give --hardware NAME if the "
            f"catalogue has it under another name, or copy a hardware file, put this device's data "
            f"sheet under 'hardware', and give it as --hardware FILE.json"
        )
    return Target(found, default_calibration(found.name))


def _gpu() -> Gpu:
    if importlib.util.find_spec("vllm") is None:
        raise Refusal("calibrating needs vLLM: install it, or give --from-samples DIR")
    try:
        gpu = gpu_at_hand()
    except DeviceError as error:
        raise Refusal(str(error)) from None
    if gpu is None:
        raise Refusal(
            "there is no GPU to calibrate: run this on a machine with one, fit samples with "
            "--from-samples DIR, or try the command with --trial"
        )
    return gpu


def _output_path(output: Path | None, target: Target, force: bool) -> Path:
    path = output or Path(_file_name(target.hardware.name))
    check_output(path)
    _check_free(path, force)
    return path


def _file_name(device: str) -> str:
    """The output's default name; safe, since a hardware file may name its device anything."""
    return f"{re.sub('[^a-z0-9._+]+', '-', device.lower()).lstrip('.-') or 'device'}.json"


def _check_free(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise Refusal(f"{path} exists: give another file with -o, or --force to replace it")


def _device_of(samples: Sequence[KernelSamples]) -> str:
    from vllm_nfp.calibrate.provenance import device_of

    try:
        return device_of(samples)
    except FitError as error:
        raise Refusal(str(error)) from None


def _fit(samples: Sequence[KernelSamples], target: Target) -> FitResult:
    from vllm_nfp.calibrate.fit import fit

    try:
        return fit(samples, target)
    except FitError as error:
        raise Refusal(str(error)) from None


def _marked(result: FitResult) -> FitResult:
    """The same result, marked as that of a trial in its file."""
    target = result.target
    source = f"TRIAL, meaningless: {target.calibration.source}"
    calibration = dataclasses.replace(target.calibration, source=source, fitted=False)
    marked = dataclasses.replace(target, calibration=calibration)
    return dataclasses.replace(result, target=marked)


def _write(path: Path, result: FitResult, force: bool) -> None:
    _check_free(path, force)
    write_or_keep(path, lambda place: write_hardware_file(place, result.target))
