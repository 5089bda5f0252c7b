"""``vllm-nfp calibrate``: what kernels really reach on this GPU, as a hardware file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from vllm_nfp.calibrate.device import DeviceError, Gpu, gpu_at_hand
from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.memory import group, needed_bytes
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import KernelSamples, SampleError, read_samples
from vllm_nfp.calibrate.reference_models import REFERENCE, TRIAL, choose
from vllm_nfp.calibrate.run import Failure, Outcome, Progress, run_plans
from vllm_nfp.cli.common import (
    Refusal,
    check_output,
    check_parent,
    json_option,
    temporary_folder,
    write_or_keep,
)
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.calibration import Calibration, default_calibration
from vllm_nfp.principle.hardware import HardwareError, match_device
from vllm_nfp.principle.hardware_file import Target, target_of, write_hardware_file

if TYPE_CHECKING:
    from vllm_nfp.calibrate.fit import FitResult, PartFit

SCHEMA = 1
_TRIAL_WARNING = "trial: constants from tiny models on a CPU mean nothing, do not predict with them"


class NothingMeasuredError(click.ClickException):
    """No kernel could be timed; exit code 1."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples, and what there is to say of how they came about."""

    samples: tuple[KernelSamples, ...]
    notes: tuple[str, ...] = ()


@click.command("calibrate")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Hardware file to write [default: the device's name, e.g. h100-sxm.json].",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--samples",
    "keep",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder in which to keep the raw samples.",
)
@click.option(
    "--from-samples",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Fit the samples in this folder; no GPU is used.",
)
@click.option("--models", default="", help="Labels of the models to time, with commas.")
@click.option(
    "--hardware", default=None, help="Data sheet: a catalogue name or a hardware file (*.json)."
)
@click.option("--trial", is_flag=True, help="Time tiny models, to try the command without a GPU.")
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
    weights are timed, for some minutes; nothing else should use the GPU meanwhile.
    """
    if from_samples is not None and (keep is not None or trial or models):
        raise Refusal("--from-samples measures nothing: leave out --samples, --models and --trial")
    _check_scipy()
    target = None if hardware is None else _target(hardware)
    plans = _plans(models, trial)
    console = Console(stderr=True, quiet=as_json)
    path: Path | None
    if from_samples is not None:
        measured = Measured(_read_folder(from_samples))
        target = target or _matching(_device_of(measured.samples), "the samples' device")
        path = _output_path(output, target, force)
    else:
        gpu = None if trial else _gpu()
        if gpu is not None:
            target = target or _matching(gpu.name, "this GPU")
        path = None if target is None else _output_path(output, target, force)
        if path is None and output is not None:
            raise Refusal("--trial writes a file only with --hardware: give one of the catalogue")
        measured = _measure(plans, gpu, target, keep, force, console)
    if target is None or path is None:
        _print_counts(measured, as_json)
        return
    result = _fit(measured.samples, target)
    notes = (*measured.notes, *((_TRIAL_WARNING,) if trial else ()))
    if trial:
        result = _marked(result)
    _write(path, result, force)
    if as_json:
        click.echo(json.dumps(_to_json(path, target.calibration, result, notes)))
    else:
        _print(path, target.calibration, result, notes)


# What is asked for


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
            f"{whose}, {device!r:.80}, is not in the catalogue: give --hardware NAME if it is a "
            f"device of the catalogue by another name, or copy a hardware file, put this device's "
            f"data-sheet figures under 'hardware', and give it as --hardware FILE.json"
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
            "there is no GPU to calibrate: run this on one, fit samples of one with "
            "--from-samples DIR, or try the command with --trial"
        )
    return gpu


def _output_path(output: Path | None, target: Target, force: bool) -> Path:
    path = output or Path(_file_name(target.hardware.name))
    check_output(path)
    _check_free(path, force)
    return path


def _file_name(device: str) -> str:
    """The default name of the output: a hardware file's device may be called anything."""
    return f"{re.sub('[^a-z0-9._+]+', '-', device.lower()).lstrip('.-') or 'device'}.json"


def _check_free(path: Path, force: bool) -> None:
    if os.path.lexists(path) and not force:
        raise Refusal(f"{path} exists: give another file with -o, or --force to replace it")


# Samples


def _sample_files(folder: Path) -> list[Path]:
    return sorted(path for end in ("jsonl", "jsonl.gz") for path in folder.glob(f"*.{end}"))


def _read_folder(folder: Path) -> tuple[KernelSamples, ...]:
    if not os.path.isdir(folder):
        raise Refusal(f"--from-samples: there is no folder {folder}")
    files = _sample_files(folder)
    if not files:
        raise Refusal(f"--from-samples: {folder} holds no .jsonl or .jsonl.gz file")
    try:
        return tuple(map(read_samples, files))
    except SampleError as error:
        raise Refusal(str(error)) from None


def _device_of(samples: Sequence[KernelSamples]) -> str:
    from vllm_nfp.calibrate.provenance import device_of

    try:
        return device_of(samples)
    except FitError as error:
        raise Refusal(str(error)) from None


def _measure(
    plans: Sequence[ModelPlan],
    gpu: Gpu | None,
    target: Target | None,
    keep: Path | None,
    force: bool,
    console: Console,
) -> Measured:
    """Time the plans; logs of failures stay where they are named."""
    groups, notes = _grouped(plans, gpu, target)
    if keep is not None:
        _check_keep(keep, force)
    folder = keep or temporary_folder("vllm-nfp-calibrate-")
    failures: tuple[Failure, ...] = ()
    try:
        outcome = _run(groups, folder, console)
        failures = outcome.failures
    finally:
        if keep is None and not failures:
            shutil.rmtree(folder, ignore_errors=True)
    notes += [f"{f.label} could not be timed to the end: see {f.log}" for f in failures]
    if not any(samples.curves for samples in outcome.samples):
        raise NothingMeasuredError("; ".join(["nothing was measured", *notes]))
    return Measured(outcome.samples, tuple(notes))


def _check_keep(keep: Path, force: bool) -> None:
    check_parent(keep)
    if os.path.isdir(keep) and _sample_files(keep) and not force:
        raise Refusal(f"--samples {keep} holds samples: give another folder, or --force")


def _grouped(
    plans: Sequence[ModelPlan], gpu: Gpu | None, target: Target | None
) -> tuple[tuple[tuple[ModelPlan, ...], ...], list[str]]:
    """Plans that run side by side, and lines about those left out."""
    if gpu is None:
        return (tuple(plans),), []
    notes = []
    if not gpu.has_fp8 or (target is not None and target.hardware.fp8_flops is None):
        left_out = [plan.label for plan in plans if plan.fp8]
        plans = [plan for plan in plans if not plan.fp8]
        notes += [f"{label} is left out: {gpu.name} has no FP8" for label in left_out]
    groups = group(plans, gpu.free_bytes)
    notes += [
        f"{plan.label} is left out: it needs about {needed_bytes(plan) / 2**30:.1f} GiB of GPU "
        f"memory, {gpu.free_bytes / 2**30:.1f} GiB are free"
        for plan in groups.too_large
    ]
    if not groups.groups:
        raise Refusal("; ".join(["no model is left to time", *notes]))
    return groups.groups, notes


def _run(groups: Sequence[Sequence[ModelPlan]], folder: Path, console: Console) -> Outcome:
    columns = (
        TextColumn("{task.fields[label]}", markup=False),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    samples: list[KernelSamples] = []
    failures: list[Failure] = []
    with Bars(*columns, console=console) as bars:
        tasks = {
            plan.label: bars.add_task("waiting", label=plan.label, total=None, start=False)
            for plans in groups
            for plan in plans
        }

        def show(progress: Progress) -> None:
            task = tasks[progress.label]
            bars.start_task(task)
            counted = f" {progress.done}/{progress.total}" if progress.total else ""
            bars.update(task, description=f"{progress.stage}{counted}")
            if progress.total:
                bars.update(task, completed=progress.done, total=progress.total)

        for plans in groups:
            outcome = run_plans(plans, folder, lambda line: None, on_progress=show)
            samples += outcome.samples
            failures += outcome.failures
    return Outcome(tuple(samples), tuple(failures))


# Results


def _fit(samples: Sequence[KernelSamples], target: Target) -> FitResult:
    from vllm_nfp.calibrate.fit import fit

    try:
        return fit(samples, target)
    except FitError as error:
        raise Refusal(str(error)) from None


def _marked(result: FitResult) -> FitResult:
    """The same, with its file saying that it came from a trial."""
    target = result.target
    source = f"TRIAL, means nothing: {target.calibration.source}"
    calibration = dataclasses.replace(target.calibration, source=source, fitted=False)
    marked = dataclasses.replace(target, calibration=calibration)
    return dataclasses.replace(result, target=marked)


def _write(path: Path, result: FitResult, force: bool) -> None:
    _check_free(path, force)
    write_or_keep(path, lambda place: write_hardware_file(place, result.target))


def _constants(calibration: Calibration, part: str) -> Mapping[str, object]:
    """Name -> value of a part's own constants."""
    if part == "fp8_gemm":
        return dataclasses.asdict(calibration.gemm.fp8)
    values = dataclasses.asdict(getattr(calibration, part))
    values.pop("fp8", None)
    return values


def _to_json(
    path: Path, before: Calibration, result: FitResult, notes: Sequence[str]
) -> dict[str, Any]:
    after = result.target.calibration
    return {
        "schema": SCHEMA,
        "output": str(path),
        "hardware": result.target.hardware.name,
        "source": after.source,
        "fitted": after.fitted,
        "parts": [
            {
                **dataclasses.asdict(part),
                "constants_before": _constants(before, part.part),
                "constants_after": _constants(after, part.part),
            }
            for part in result.parts
        ],
        "notes": list(notes),
    }


def _print(path: Path, before: Calibration, result: FitResult, notes: Sequence[str]) -> None:
    after = result.target.calibration
    out = Console(highlight=False, markup=False)
    out.print(f"{result.target.hardware.name}: {after.source}", soft_wrap=True)
    table = Table("part", "constant", "before", "after", box=None)
    for part in result.parts:
        old = _constants(before, part.part)
        for name, value in _constants(after, part.part).items():
            if value != old[name]:
                table.add_row(part.part, name, _shown(old[name]), _shown(value))
    if table.row_count:
        out.print(table)
    errors = Table("part", "curves", "error of t(N)/t(1)", "error of t(N)", "", box=None)
    for part in result.parts:
        errors.add_row(part.part, str(part.curves), *_error_columns(part))
    out.print(errors)
    for part in result.parts:
        for note in part.notes:
            out.print(f"{part.part}: {note}", soft_wrap=True)
    for note in notes:
        out.print(note, soft_wrap=True)
    out.print(f"hardware file: {path}", soft_wrap=True)


def _error_columns(part: PartFit) -> tuple[str, str, str]:
    state = "fitted" if part.fitted else "kept"
    if part.before is None or part.after is None:
        return "", "", state
    ratio = f"{part.before.rms_log_ratio_error:.1%} -> {part.after.rms_log_ratio_error:.1%}"
    return ratio, f"{part.before.rms_log_error:.1%} -> {part.after.rms_log_error:.1%}", state


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_counts(measured: Measured, as_json: bool) -> None:
    """A trial without a data sheet: nothing is fitted."""
    counts = {samples.model: len(samples.curves) for samples in measured.samples}
    notes = [*measured.notes, "trial: nothing was fitted; give --hardware for that"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "curves": counts, "notes": notes}))
        return
    for model, count in counts.items():
        click.echo(f"{model}: {count} curves")
    for note in notes:
        click.echo(note)
