"""Claim: real steps do not bend the answers of a model with experts.

    python -m benchmarks.answers.steps_again \\
        benchmarks/results/2026-11-28-h100-at-defaults/moe-again \\
        --truth benchmarks/results/2026-11-28-h100-at-defaults/moe

Gives the pairs and real steps that a server at the defaults had at each moment to a new surface,
and compares its intervals with the truth. Real steps count with each of the deviations asked for;
the present one is ``STEP_DEVIATION_WITH_EXPERTS``. A run keeps how many pairs each shape had, not
their times: a pair takes the truth's ratio. Where the truth lacks the pair's context, that is the
one at the nearest context. Where it lacks the batch size, the pair takes what the server said at
that moment. Around it pairs scatter as recorded ones do, by draws that are the same in each call.
Modules are left out. The present deviation was chosen after a look at the run above:
that one is no test of it.

Pairs of the start read KV blocks without content. With ``--bare`` they count as such. A run does
not say which pairs read contexts, but that follows: pairs that do replace those that do not. Those
that do not take the ratios of the run that the option names, whose truth read no contexts:

    python -m benchmarks.answers.steps_again benchmarks/results/2026-11-28-h200x2-alike/moe \\
        --bare benchmarks/results/2026-11-28-h200x2-at-defaults/moe --hardware H200

For each moment there are the errors of t(N) / t(1), the intervals that hold, the draft lengths
within 2 % of the best goodput, and the worst of them; points of the truth that were not measured
are left out.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import click

from benchmarks.answers.at_defaults_score import StepScore, pairs_by_outcome, true_points
from benchmarks.hosts import records
from benchmarks.serving.shapes import SHAPES
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.server import from_samples
from vllm_nfp.draft.sources import from_profile
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results import scrape
from vllm_nfp.results.profile import Profile, load_profile
from vllm_nfp.surface import CostSurface, predicted_prior, recorded_for
from vllm_nfp.surface.noise import STEP_DEVIATION, STEP_DEVIATION_WITH_EXPERTS
from vllm_nfp.types import Module, PairResult, Shape, Timing

SCATTER = 0.0055
"""Standard deviation of a pair's log ratio: the median difference between two pairs of a shape that
read contexts, over 0.954, in the truths of 2026-11-28-h200x2-alike (0.0050) and
2026-11-28-h200x4-at-defaults (moe and moe-again, 0.0055)."""
MOMENTS = ("start", "phase-1", "phase-2", "phase-3")
TRUTH = "truth.json.gz"
LABELS = ("batch_size", "context", "positions")
Curves = Mapping[tuple[int, int], StepCurve]
NO_CURVES: Curves = {}


def curves_at(path: Path) -> tuple[scrape.Samples, Curves]:
    """What a server said at a moment."""
    samples = scrape.read_samples(gzip.decompress(path.read_bytes()).decode())
    return samples, _by_cell(from_samples(samples, path.stem).curves)


def unpacked(path: Path) -> Profile:
    """A profile that is kept compressed."""
    with records.unpacked(path.parent, path.name) as folder:
        return load_profile(folder / path.stem)


def _by_cell(curves: tuple[StepCurve, ...]) -> Curves:
    return {(c.batch_size, c.context): c for c in curves}


def counts_of(samples: scrape.Samples) -> Counter[Shape]:
    """Pairs of whole steps that a server kept of each shape."""
    found: Counter[Shape] = Counter()
    for labels, count in samples["vllm_nfp_samples"]:
        shape = _shape(labels)
        if labels["module"] == "model" and shape.positions > 1:
            found[shape] = int(count)
    return found


def _shape(labels: Mapping[str, str]) -> Shape:
    return Shape(*(int(labels[name]) for name in LABELS))


def bare_shapes(moments: Sequence[scrape.Samples]) -> Iterator[frozenset[Shape]]:
    """Shapes whose pairs read no contexts, at each moment; those of the first read none.

    All pairs of a shape leave when the first comes that reads contexts. So a shape of which fewer
    are kept than before has changed. If more pairs have left than that explains, then of shapes of
    which more are kept than before.
    """
    kept, bare, run = counts_of(moments[0]), frozenset(counts_of(moments[0])), _run(moments[0])
    yield bare
    for samples in moments[1:]:
        now, run_before, run = counts_of(samples), run, _run(samples)
        left = kept.total() + run - run_before - now.total()
        fell = {shape for shape in bare if now[shape] < kept[shape]}
        rose = {shape for shape in bare if now[shape] > kept[shape]}
        left -= sum(kept[shape] for shape in fell)
        replaced = fell | rose if 0 < sum(kept[shape] for shape in rose) <= left else fell
        kept, bare = now, bare - replaced
        yield bare


def _run(samples: scrape.Samples) -> int:
    return sum(pairs_by_outcome(samples).values())


def pairs_of(
    samples: scrape.Samples,
    truth: Curves,
    said: Curves,
    bare: frozenset[Shape] = frozenset(),
    bare_truth: Curves = NO_CURVES,
    scatter: float = SCATTER,
) -> Iterator[PairResult]:
    """A pair for each that a server had measured.

    Args:
        said: by the server at the same moment.
        bare: shapes whose pairs read KV blocks without content.
        bare_truth: of steps that read such.
        scatter: standard deviation of a pair's log ratio.
    """
    draw = random.Random(0)
    for shape, count in counts_of(samples).items():
        cell, written = (shape.batch_size, shape.context), shape not in bare
        curve = nearest(truth if written else bare_truth, shape) or said[cell]
        one = Timing(Shape(*cell, 1), 1.0, 0.0, {}, (), "full", False, written)
        for _ in range(count):
            ratio = curve.ratio(shape.positions) * math.exp(draw.gauss(0.0, scatter))
            many = Timing(shape, ratio, 0.0, {}, (), "full", False, written)
            yield PairResult(many, one, True, 0.0)


def nearest(curves: Curves, shape: Shape) -> StepCurve | None:
    """The curve of a shape's batch size that holds it, at the nearest context by its logarithm."""
    mine = [
        curve
        for (batch_size, _), curve in curves.items()
        if batch_size == shape.batch_size and curve.largest >= shape.positions
    ]
    return min(mine, key=lambda c: abs(math.log(c.context / shape.context)), default=None)


def score(surface: CostSurface, truth: Curves) -> StepScore:
    """Compare the surface with the points of the truth that were measured in CUDA graphs."""
    found = StepScore()
    for cell, curve in truth.items():
        counts = (1, *(n for n, _ in true_points(curve)))
        if len(counts) < 2:
            continue
        answer = surface.answers([cell], counts)[Module.MODEL, *cell]
        ratios = zip(counts, answer.ratio.tolist(), strict=True)
        lower, upper = answer.interval
        intervals = zip(lower.tolist(), upper.tolist(), strict=True)
        said = StepCurve(*cell, 1.0, tuple(ratios), intervals=tuple(intervals))
        found.count(said, curve)
    return found


def surface_for(run: Path, truth: Profile, hardware: str) -> CostSurface:
    """A surface that starts as the run's server did."""
    shape = shape_from_config(SHAPES[json.loads((run / "about.json").read_text())["shape"]])
    serving = Serving(graphs=CapturedGraphs(truth.environment.cudagraph_capture_sizes))
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
@click.option(
    "--bare", "without", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pairs of the start read no contexts, and take the ratios of this run.",
)  # fmt: skip
def main(
    run: Path,
    true: Path | None,
    hardware: str,
    deviations: tuple[float, ...],
    without: Path | None,
) -> None:
    """Answer again; see the module's text."""
    profile = unpacked((true or run) / TRUTH)
    truth = _by_cell(from_profile(profile).curves)
    bare_truth = _by_cell(from_profile(unpacked(without / TRUTH)).curves) if without else NO_CURVES
    print(
        "moment, pairs, real steps | their deviation | median error | 90 % of errors | "
        "intervals hold | drafts within 2 % | worst draft"
    )
    moments = [curves_at(run / f"{moment}.prom.gz") for moment in MOMENTS]
    bare_then = bare_shapes([samples for samples, _ in moments])
    for moment, (samples, said), bare in zip(MOMENTS, moments, bare_then, strict=True):
        pairs = list(pairs_of(samples, truth, said, bare if without else frozenset(), bare_truth))
        steps = samples.get("vllm_nfp_step_latency_seconds", [])
        for deviation in deviations:
            with mock.patch("vllm_nfp.surface.noise.STEP_DEVIATION_WITH_EXPERTS", deviation):
                surface = surface_for(run, profile, hardware)
                for pair in pairs:
                    surface.add_pair(pair, 0.0)
                for labels, seconds in steps:
                    surface.add_step(_shape(labels), seconds, 0.0)
                surface.update(0.0)
            scored = score(surface, truth)
            what = f"{moment}, {len(pairs)}, {len(steps)}"
            print(f"{what} | {deviation} | {' | '.join(scored.texts())}")


if __name__ == "__main__":
    main()
