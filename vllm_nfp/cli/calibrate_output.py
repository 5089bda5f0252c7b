"""Progress and results of a calibration, for people and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from vllm_nfp.calibrate.points import KernelSamples
from vllm_nfp.calibrate.run import Progress
from vllm_nfp.cli.terminal import Console
from vllm_nfp.principle.calibration import Calibration

if TYPE_CHECKING:
    from vllm_nfp.calibrate.fit import FitResult, PartFit

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples, and notes on how they were taken."""

    samples: tuple[KernelSamples, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A hardware file that was written, the constants before, and the fit."""

    path: Path
    before: Calibration
    result: FitResult
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What ``vllm-nfp calibrate --json`` prints."""
        target = self.result.target
        return {
            "schema": SCHEMA,
            "output": str(self.path),
            "hardware": target.hardware.name,
            "source": target.calibration.source,
            "fitted": target.calibration.fitted,
            "parts": [
                {
                    **dataclasses.asdict(part),
                    "constants_before": _constants(self.before, part.part),
                    "constants_after": _constants(target.calibration, part.part),
                }
                for part in self.result.parts
            ],
            "notes": list(self.notes),
        }


@contextmanager
def progress_of(labels: Sequence[str], console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar for each model, and the function that moves it."""
    columns = (
        TextColumn("{task.fields[label]}", markup=False),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        tasks = {
            label: bars.add_task("waiting", label=label, total=None, start=False)
            for label in labels
        }

        def show(progress: Progress) -> None:
            task = tasks[progress.label]
            bars.start_task(task)
            counted = f" {progress.done}/{progress.total}" if progress.total else ""
            bars.update(task, description=f"{progress.stage}{counted}")
            if progress.total:
                bars.update(task, completed=progress.done, total=progress.total)

        yield show


def _constants(calibration: Calibration, part: str) -> Mapping[str, object]:
    """A part's own constants by name."""
    if part == "fp8_gemm":
        return dataclasses.asdict(calibration.gemm.fp8)
    values = dataclasses.asdict(getattr(calibration, part))
    values.pop("fp8", None)
    return values


def print_result(done: Calibrated) -> None:
    """Print the changed constants, the errors before and after, and notes."""
    result, before, after = done.result, done.before, done.result.target.calibration
    out = Console(highlight=False, markup=False)
    out.print(f"{result.target.hardware.name}: {after.source}", soft_wrap=True)
    changed = _changed(result.parts, before, after)
    if changed.row_count:
        out.print(changed)
    out.print(_errors(result.parts))
    for part in result.parts:
        for note in part.notes:
            out.print(f"{part.part}: {note}", soft_wrap=True)
    for note in done.notes:
        out.print(note, soft_wrap=True)
    out.print(f"hardware file: {done.path}", soft_wrap=True)


def _changed(parts: Sequence[PartFit], before: Calibration, after: Calibration) -> Table:
    table = Table("part", "constant", "before", "after", box=None)
    for part in parts:
        old = _constants(before, part.part)
        for name, value in _constants(after, part.part).items():
            if value != old[name]:
                table.add_row(part.part, name, _shown(old[name]), _shown(value))
    return table


def _errors(parts: Sequence[PartFit]) -> Table:
    table = Table("part", "curves", "error of t(N)/t(1)", "error of t(N)", "", box=None)
    for part in parts:
        table.add_row(part.part, str(part.curves), *_error_columns(part))
    return table


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


def print_counts(measured: Measured, as_json: bool) -> None:
    """Print how many curves a trial without a data sheet has timed: nothing is fitted."""
    counts = {samples.model: len(samples.curves) for samples in measured.samples}
    notes = [*measured.notes, "trial: nothing was fitted; to fit, give --hardware"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "curves": counts, "notes": notes}))
        return
    for model, count in counts.items():
        click.echo(f"{model}: {count} curves")
    for note in notes:
        click.echo(note)
