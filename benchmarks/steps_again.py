"""Claim: real steps do not bend the answers of a model with experts.

    python -m benchmarks.steps_again benchmarks/results/2026-11-28-h100-at-defaults/moe-again \\
        --truth benchmarks/results/2026-11-28-h100-at-defaults/moe

Gives the pairs and real steps that a server at the defaults had at each moment to a new surface,
and compares its intervals with the truth. Real steps count with each of the deviations asked for;
the present one is ``STEP_DEVIATION_WITH_EXPERTS``. A run keeps how many pairs each shape had, not
their times: a pair takes the truth's ratio, or what the server said right after the start where the
truth lacks the shape. Modules are left out. The present deviation was chosen after a look at the
run above: that one is no test of it.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import click
import numpy as np

from benchmarks.shapes import SHAPES
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.server import from_samples
from vllm_nfp.draft.sources import from_profile
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.results import scrape
from vllm_nfp.results.profile import Profile, load_profile
from vllm_nfp.surface import CostSurface, predicted_prior, recorded_for
from vllm_nfp.surface.noise import STEP_DEVIATION, STEP_DEVIATION_WITH_EXPERTS
from vllm_nfp.types import Module, PairResult, Shape, Timing

MOMENTS = ("start", "phase-1", "phase-2", "phase-3")
Curves = Mapping[tuple[int, int], StepCurve]


def curves_at(path: Path) -> tuple[scrape.Samples, Curves]:
    """What a server said at a moment."""
    samples = scrape.read_samples(gzip.decompress(path.read_bytes()).decode())
    return samples, _by_cell(from_samples(samples, path.stem).curves)


def unpacked(path: Path) -> Profile:
    """A profile that is kept compressed."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "profile.json"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return load_profile(plain)


def _by_cell(curves: tuple[StepCurve, ...]) -> Curves:
    return {(c.batch_size, c.context): c for c in curves}


def pairs_of(samples: scrape.Samples, truth: Curves, said: Curves) -> Iterator[PairResult]:
    """A pair for each that a server had measured."""
    for labels, count in samples["vllm_nfp_samples"]:
        shape = Shape(*(int(labels[name]) for name in ("batch_size", "context", "positions")))
        if labels["module"] != "model" or shape.positions == 1:
            continue
        cell = (shape.batch_size, shape.context)
        known = [c[cell] for c in (truth, said) if cell in c and c[cell].largest >= shape.positions]
        for _ in range(int(count)):
            many = Timing(shape, known[0].ratio(shape.positions), 0.0, {}, (), "full")
            yield PairResult(many, Timing(Shape(*cell, 1), 1.0, 0.0, {}, (), "full"), True, 0.0)


def score(surface: CostSurface, truth: Curves) -> tuple[float, float, int]:
    """Median error of t(N) / t(1), fraction of intervals that hold, and the number of points."""
    errors, held = [], []
    for cell, curve in truth.items():
        last = curve.without_graph_from or curve.largest + 1
        counts = tuple(n for n, _ in curve.points if n < last)
        found = surface.answers([cell], counts)[Module.MODEL, *cell]
        true = np.array([curve.ratio(n) for n in counts])
        lower, upper = found.interval
        errors += np.abs(np.log(found.ratio / true))[1:].tolist()
        held += ((lower <= true) & (true <= upper))[1:].tolist()
    return float(np.median(errors)), float(np.mean(held)), len(held)


def surface_for(run: Path, truth: Profile, hardware: str) -> CostSurface:
    """A surface that starts as the run's server did."""
    shape = shape_from_config(SHAPES[json.loads((run / "about.json").read_text())["shape"]])
    serving = Serving(capture_sizes=truth.environment.cudagraph_capture_sizes)
    prior = predicted_prior(shape, target_of(hardware), serving, 64)
    return CostSurface(prior, recorded_for(shape))


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--truth", "true", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hardware", default="H100-SXM", help="The run's GPU.")
@click.option(
    "--deviation", "deviations", type=float, multiple=True,
    default=(STEP_DEVIATION, STEP_DEVIATION_WITH_EXPERTS), help="Of real steps; may be repeated.",
)  # fmt: skip
def main(run: Path, true: Path | None, hardware: str, deviations: tuple[float, ...]) -> None:
    """Answer again; see the module's text."""
    profile = unpacked((true or run) / "truth.json.gz")
    truth = _by_cell(from_profile(profile).curves)
    _, at_start = curves_at(run / "start.prom.gz")
    print("moment, pairs, real steps | their deviation | median error | intervals hold")
    for moment in MOMENTS:
        samples, _ = curves_at(run / f"{moment}.prom.gz")
        pairs = list(pairs_of(samples, truth, at_start))
        steps = samples.get("vllm_nfp_step_latency_seconds", [])
        for deviation in deviations:
            with mock.patch("vllm_nfp.surface.noise.STEP_DEVIATION_WITH_EXPERTS", deviation):
                surface = surface_for(run, profile, hardware)
                for pair in pairs:
                    surface.add_pair(pair, 0.0)
                for labels, seconds in steps:
                    names = ("batch_size", "context", "positions")
                    surface.add_step(Shape(*(int(labels[n]) for n in names)), seconds, 0.0)
                surface.update(0.0)
            error, held, points = score(surface, truth)
            print(
                f"{moment}, {len(pairs)}, {len(steps)} | {deviation} | {error:.2%} | "
                f"{held:.1%} of {points}"
            )


if __name__ == "__main__":
    main()
