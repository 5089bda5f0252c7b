"""How often the estimator's 95 % intervals hold the truth, by simulation; see docs/estimation.md.

    python -m benchmarks.coverage --trials 4000 --out benchmarks/results/DATE-coverage

Needs no GPU and no vLLM. Each trial draws a staircase, pairs of times over it with one kind of
disturbance, and asks :func:`vllm_nfp.estimate.estimate_cell`. A row of the table is one kind of
disturbance, a column one number of pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from vllm_nfp.estimate import Cell, Module, Pair, estimate_cell
from vllm_nfp.typed_json import write_whole

Floats = NDArray[np.float64]
GRID = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
CELL = Cell(Module.MODEL, 8, 1024)
EPSILON = 0.1
SAMPLES = (6, 7, 8, 12, 20, 32, 100)
"""Pairs at a point: min_samples, a few on the way, max_samples, and a longer ring."""
NOISE = 0.01
"""Relative spread of a time about its median, in most kinds of disturbance."""


@dataclass(frozen=True, slots=True)
class Times:
    """Factors by which times differ from their medians, all of shape [pairs].

    Attributes:
        many, one: of the member at N and at one position.
        drift: of both members of a pair alike, with a mean over time of 1.
    """

    many: Floats
    one: Floats
    drift: Floats


Disturbance = Callable[[np.random.Generator, int], Times]


def lognormal(rng: np.random.Generator, samples: int) -> Times:
    """Noise of many small causes."""
    many, one = np.exp(NOISE * rng.standard_normal((2, samples)))
    return Times(many, one, np.ones(samples))


def heavy_tails(rng: np.random.Generator, samples: int) -> Times:
    """Student's t with two degrees of freedom, whose variance is infinite."""
    many, one = np.exp(NOISE * rng.standard_t(2, (2, samples)))
    return Times(many, one, np.ones(samples))


def skewed(rng: np.random.Generator, samples: int) -> Times:
    """Delays only, never a head start: a time has a floor."""
    many, one = np.exp(2 * NOISE * (rng.exponential(1.0, (2, samples)) - math.log(2.0)))
    return Times(many, one, np.ones(samples))


def outliers(rng: np.random.Generator, samples: int) -> Times:
    """One time in twenty is two to six times too slow."""
    times = lognormal(rng, samples)
    slow = np.where(rng.random((2, samples)) < 0.05, rng.uniform(2.0, 6.0, (2, samples)), 1.0)
    return Times(times.many * slow[0], times.one * slow[1], times.drift)


def drift(rng: np.random.Generator, samples: int) -> Times:
    """A clock that falls by a tenth and swings besides while the pairs are taken."""
    times = lognormal(rng, samples)
    at = np.sort(rng.random(samples))
    swing = 0.03 * np.sin(2 * math.pi * (3 * at + rng.random()))
    return Times(times.many, times.one, np.exp(0.1 * (at - 0.5) + swing))


def everything(rng: np.random.Generator, samples: int) -> Times:
    """Skew, outliers and drift together."""
    delayed, slow, drifting = skewed(rng, samples), outliers(rng, samples), drift(rng, samples)
    return Times(delayed.many * slow.many, delayed.one * slow.one, drifting.drift)


def one_sided(rng: np.random.Generator, samples: int) -> Times:
    """Beyond what is assumed: N is delayed, and its pair's baseline is not."""
    times = lognormal(rng, samples)
    delays = np.exp(3 * NOISE * (rng.exponential(1.0, samples) - math.log(2.0)))
    return Times(delays, times.one, times.drift)


DISTURBANCES: Mapping[str, Disturbance] = {
    "lognormal": lognormal,
    "heavy tails": heavy_tails,
    "skewed": skewed,
    "outliers": outliers,
    "drift": drift,
    "skew, outliers, drift": everything,
}
"""What the intervals are made for; :func:`one_sided` is what they are not."""


def random_staircase(rng: np.random.Generator) -> Floats:
    """t(n) / t(1) on the grid: steps of random width and height, slopes, dips that are free again.

    Shape [len(GRID)].
    """
    step = rng.random(len(GRID)) < rng.uniform(0.1, 0.7)
    height = np.where(step, rng.uniform(0.02, 0.4, len(GRID)), 0.0)
    ratios = np.cumprod(1.0 + height) * (1.0 + rng.uniform(0.0, 0.01) * np.arange(len(GRID)))
    dips = np.where(rng.random(len(GRID)) < 0.15, rng.uniform(0.85, 1.0, len(GRID)), 1.0)
    found: Floats = np.maximum(ratios * dips, 0.9)
    return found


def staircase_at_the_line(rng: np.random.Generator, samples: int, epsilon: float) -> Floats:
    """The same, moved so that one point lies at the line, a little over or under it."""
    ratios = random_staircase(rng)
    error = NOISE * math.sqrt(2.0 / samples)
    at = rng.integers(len(GRID))
    moved = (1.0 + epsilon) * math.exp(error * rng.uniform(-0.05, 0.05)) / ratios[at]
    # What comes before stays clearly under the line, so that the point decides the boundary.
    before = np.arange(len(GRID)) < at
    placed: Floats = np.where(before, np.minimum(ratios * moved, 1.0 + epsilon / 2), ratios * moved)
    return placed


def boundary_of(ratios: Sequence[float] | Floats, epsilon: float) -> int:
    """NFP by its definition, on the grid."""
    last = 1
    for n, ratio in zip(GRID, ratios, strict=True):
        if ratio > 1.0 + epsilon:
            break
        last = n
    return last


def pairs_of(
    rng: np.random.Generator, ratios: Floats, samples: int, disturb: Disturbance
) -> list[Pair]:
    """Pairs at every point of the grid, 10 ms at one position."""
    pairs = []
    for n, ratio in zip(GRID, ratios, strict=True):
        times = disturb(rng, samples)
        many = 0.01 * ratio * times.drift * times.many
        one = 0.01 * times.drift * times.one
        pairs += [Pair(n, a, b) for a, b in zip(many.tolist(), one.tolist(), strict=True)]
    return pairs


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares of trials whose interval held the truth.

    Attributes:
        ratio, median: of t(N) / t(1) and of t(N), over all points of all trials.
        boundary: of NFP on random staircases.
        boundary_at_line: of NFP on staircases with a point at the line, the hard case.
        decided_at_line: share of those whose interval is one grid point.
        exact: share of random staircases whose estimate is the truth.
    """

    samples: int
    trials: int
    ratio: float
    median: float
    boundary: float
    boundary_at_line: float
    decided_at_line: float
    exact: float


def cover(disturb: Disturbance, samples: int, trials: int, seed: int = 0) -> Coverage:
    """Simulate one cell of the table."""
    rng = np.random.default_rng((seed, samples))
    middle = _median_factor(disturb, np.random.default_rng(seed))
    ratios_held = medians_held = 0
    held = exact = held_at_line = decided = 0
    for _ in range(trials):
        truth = random_staircase(rng)
        found = estimate_cell(CELL, pairs_of(rng, truth, samples, disturb), (EPSILON,))
        assert found is not None
        for ratio, point in zip(truth, found.curve.points[1:], strict=True):
            ratios_held += point.ratio_lower <= ratio <= point.ratio_upper
            medians_held += point.seconds_lower <= 0.01 * ratio * middle <= point.seconds_upper
        line, nfp = found.boundaries[0], boundary_of(truth, EPSILON)
        held += line.lower <= nfp <= line.upper
        exact += line.positions == nfp
        truth = staircase_at_the_line(rng, samples, EPSILON)
        found = estimate_cell(CELL, pairs_of(rng, truth, samples, disturb), (EPSILON,))
        assert found is not None
        line, nfp = found.boundaries[0], boundary_of(truth, EPSILON)
        held_at_line += line.lower <= nfp <= line.upper
        decided += line.lower == line.upper
    points = trials * len(GRID)
    return Coverage(
        samples,
        trials,
        ratios_held / points,
        medians_held / points,
        held / trials,
        held_at_line / trials,
        decided / trials,
        exact / trials,
    )


def _median_factor(disturb: Disturbance, rng: np.random.Generator) -> float:
    """The median of a time over its undisturbed one, which drift and outliers move."""
    times = [disturb(rng, 100) for _ in range(2000)]
    return float(np.median(np.concatenate([t.many * t.drift for t in times])))


_MEASURES = {
    "ratio": "interval of t(N) / t(1)",
    "median": "interval of the median of t(N)",
    "boundary_at_line": "interval of NFP, a point at the line",
    "boundary": "interval of NFP, random staircases",
    "decided_at_line": "NFP's interval is one grid point, a point at the line",
    "exact": "NFP itself is the truth, random staircases",
}


@click.command()
@click.option("--trials", default=2000, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(trials: int, out: Path | None) -> None:
    """Print the tables of docs/estimation.md."""
    kinds = {**DISTURBANCES, "N alone delayed": one_sided}
    found = {
        name: [cover(disturb, samples, trials) for samples in SAMPLES]
        for name, disturb in kinds.items()
    }
    console = Console(width=110)
    for measure, title in _MEASURES.items():
        table = Table(box=box.MARKDOWN, title=title, title_justify="left")
        table.add_column("disturbance")
        for samples in SAMPLES:
            table.add_column(f"{samples} pairs", justify="right")
        for name, row in found.items():
            table.add_row(name, *(f"{getattr(c, measure):.1%}" for c in row))
        console.print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {name: [asdict(c) for c in row] for name, row in found.items()}
        write_whole(out / "coverage.json", json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
