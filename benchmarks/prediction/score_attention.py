"""Claim: the attention model predicts NFP of shapes that its constants were not fitted to.

    python -m benchmarks.prediction.score_attention RESULTS/reference
    python -m benchmarks.prediction.score_attention RESULTS/set-aside

Scores the shipped constants on the kernel timings of a directory: for each model and epsilon the
fraction of cells within one granularity step, the median relative error of NFP, and both for the
idle-compute rule. ``--fit`` fits the constants to the directory's timings and prints them too;
``--leave-out`` fits for each model with a 16-bit cache to all others and scores it by that.
"""

from __future__ import annotations

import dataclasses
import gzip
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from vllm_nfp.calibrate.fit_attention import (
    TOLERANCES,
    AttentionCurve,
    attention_curves,
    fit_attention,
    predicted_seconds,
)
from vllm_nfp.calibrate.points import KernelSamples, read_samples
from vllm_nfp.crossing import count_free
from vllm_nfp.principle import ShapeError, hardware_by_name
from vllm_nfp.principle.attention import H100_ATTENTION, AttentionConstants, granularity
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import AttentionHeads
from vllm_nfp.principle.terms import FloatArray

H100 = hardware_by_name("H100-SXM")
Curves = Mapping[str, tuple[AttentionCurve, ...]]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Measured and predicted NFP of one cell, each clipped to the measured points.

    Attributes:
        measured, predicted, idle_compute: largest N under the line by each.
        step: positions of one granularity step.
    """

    measured: int
    predicted: int
    idle_compute: int
    step: int


@dataclass(frozen=True, slots=True)
class Score:
    """How well predictions and the roofline rule agree with measured boundaries.

    Fractions and errors are dimensionless; errors are |predicted - measured| / measured.
    """

    cells: int
    within_step: float
    median_error: float
    idle_within_step: float
    idle_median_error: float


def boundary(
    curve: AttentionCurve,
    hardware: Hardware,
    epsilon: float,
    predict: Callable[[AttentionCurve], FloatArray],
) -> Boundary:
    """The boundaries of one cell; the idle-compute rule gives N = rho b / (g f)."""
    heads = curve.heads
    idle = hardware.ridge(heads.fp8) * heads.token_bytes / (heads.group * heads.flops_per_pair)
    return Boundary(
        measured=int(curve.positions[count_free(curve.seconds, epsilon) - 1]),
        predicted=int(curve.positions[count_free(predict(curve), epsilon) - 1]),
        idle_compute=int(curve.positions[curve.positions <= max(1.0, idle)][-1]),
        step=granularity(heads.group),
    )


def score(boundaries: Sequence[Boundary]) -> Score:
    """Score cells of one tolerance or several.

    Raises:
        ValueError: without cells.
    """
    if not boundaries:
        raise ValueError("there are no cells to score")

    def within(values: Iterable[int]) -> float:
        pairs = zip(boundaries, values, strict=True)
        return statistics.fmean(abs(value - b.measured) <= b.step for b, value in pairs)

    def error(values: Iterable[int]) -> float:
        pairs = zip(boundaries, values, strict=True)
        return statistics.median(abs(value - b.measured) / b.measured for b, value in pairs)

    predicted = [b.predicted for b in boundaries]
    idle = [b.idle_compute for b in boundaries]
    return Score(len(boundaries), within(predicted), error(predicted), within(idle), error(idle))


def read_folder(folder: Path) -> Curves:
    """Attention curves of each model that has a ``*.jsonl.gz`` in a directory."""
    curves = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch, "samples.jsonl")
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            samples = read_samples(plain)
        found = _curves(samples)
        if found:
            curves[path.name.removesuffix(".jsonl.gz")] = found
    return curves


def _curves(samples: KernelSamples) -> tuple[AttentionCurve, ...]:
    try:
        return attention_curves(samples)
    except ShapeError:  # a family that shapes do not know: its heads are plain all the same
        config = samples.config
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        plain = AttentionHeads(kv_heads, heads // kv_heads, size, size, 4.0 * size, False)
        return attention_curves(samples, plain)


def boundaries(
    curves: tuple[AttentionCurve, ...], constants: AttentionConstants, epsilon: float
) -> list[Boundary]:
    """Measured and predicted NFP of cells."""
    return [
        boundary(curve, H100, epsilon, lambda c: predicted_seconds(c, H100, constants))
        for curve in curves
    ]


def tabulate(models: Curves, constants_of: Callable[[str], AttentionConstants]) -> Table:
    """A row for each model and epsilon, and one for all models."""
    table = Table(
        "model", "epsilon", "cells", "within step", "median", "idle within", "idle median"
    )
    for epsilon in TOLERANCES:
        everything: list[Boundary] = []
        for model, curves in models.items():
            found = boundaries(curves, constants_of(model), epsilon)
            everything += found
            table.add_row(*_cells(model, epsilon, score(found)))
        table.add_row(*_cells("all", epsilon, score(everything)), style="bold")
    return table


def _cells(model: str, epsilon: float, result: Score) -> tuple[str, ...]:
    return (
        model,
        str(epsilon),
        str(result.cells),
        f"{result.within_step:.1%}",
        f"{result.median_error:.1%}",
        f"{result.idle_within_step:.1%}",
        f"{result.idle_median_error:.0%}",
    )


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--fit", is_flag=True, help="Fit to the folder and score that.")
@click.option("--leave-out", is_flag=True, help="Leave each model out of the fit that scores it.")
def main(folder: Path, fit: bool, leave_out: bool) -> None:
    """Print the scores of a folder."""
    models = read_folder(folder)
    if not models:
        raise click.UsageError(f"{folder} has no *.jsonl.gz with attention timings")
    console = Console(width=120)
    if leave_out:
        plain = {m: c for m, c in models.items() if not c[0].heads.fp8}
        fitted = {
            left: fit_attention([c for m in plain if m != left for c in plain[m]], H100).constants
            for left in plain
        }
        console.print(tabulate(plain, fitted.__getitem__))
        return
    constants = H100_ATTENTION
    if fit:
        result = fit_attention([c for curves in models.values() for c in curves], H100)
        constants = result.constants
        console.print(dataclasses.asdict(result))
    console.print(tabulate(models, lambda _: constants))


if __name__ == "__main__":
    main()
