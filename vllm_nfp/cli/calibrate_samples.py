"""The samples of a calibration: timed on this GPU, or read from a directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from vllm_nfp.calibrate.device import Gpu
from vllm_nfp.calibrate.memory import groups_on
from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import KernelSamples, SampleError, read_directory, sample_files
from vllm_nfp.calibrate.run import Failure, Outcome, run_plans
from vllm_nfp.cli.calibrate_output import Measured, progress_of
from vllm_nfp.cli.common import Refusal, check_parent, temporary_folder
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.hardware_file import Target


class NothingMeasuredError(click.ClickException):
    """No kernel could be timed; exit code 1."""


def read(directory: Path) -> tuple[KernelSamples, ...]:
    """The samples in a directory.

    Raises:
        Refusal: if it holds none, or one that cannot be read.
    """
    try:
        return read_directory(directory)
    except SampleError as error:
        raise Refusal(f"--from-samples: {error}") from None


def measure(
    plans: Sequence[ModelPlan],
    gpu: Gpu | None,
    target: Target | None,
    keep: Path | None,
    force: bool,
    console: Console,
) -> Measured:
    """Time the plans; the logs of failures are kept.

    Args:
        keep: directory in which the samples stay; None: a temporary one.

    Raises:
        Refusal: if no model can be timed on this GPU, or the directory cannot be used.
        NothingMeasuredError: if no kernel could be timed.
    """
    groups, notes = _groups(plans, gpu, target)
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
    if os.path.isdir(keep) and sample_files(keep) and not force:
        raise Refusal(f"--samples {keep} holds samples: give another directory, or --force")


def _groups(
    plans: Sequence[ModelPlan], gpu: Gpu | None, target: Target | None
) -> tuple[tuple[tuple[ModelPlan, ...], ...], list[str]]:
    """Plans that run side by side, and why others are left out."""
    if gpu is None:
        return (tuple(plans),), []
    found = groups_on(plans, gpu, None if target is None else target.hardware)
    if not found.groups:
        raise Refusal("; ".join(["no model is left to time", *found.left_out]))
    return found.groups, list(found.left_out)


def _run(groups: Sequence[Sequence[ModelPlan]], folder: Path, console: Console) -> Outcome:
    samples: list[KernelSamples] = []
    failures: list[Failure] = []
    with progress_of([plan.label for plans in groups for plan in plans], console) as show:
        for plans in groups:
            outcome = run_plans(plans, folder, lambda line: None, on_progress=show)
            samples += outcome.samples
            failures += outcome.failures
    return Outcome(tuple(samples), tuple(failures))
