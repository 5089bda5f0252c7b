"""How often the estimator's 95 % intervals hold the truth, by simulation; see docs/estimation.md.

    python -m benchmarks.coverage planned --out DIR    # what runs: planner and estimator
    python -m benchmarks.coverage fixed --out DIR      # the estimator alone

Needs no GPU and no vLLM. Each trial draws a staircase, and pairs of times over it with one kind of
disturbance (:mod:`benchmarks.simulated_pairs`).

``planned`` runs the real planner and the real publisher: the planner chooses the point of each
pair, the publisher takes the pairs in, publishes, and informs the planner what to sample again.
After every publish the published intervals are compared with the truth. ``fixed`` asks
:func:`vllm_nfp.estimate.estimate_cell` with the same number of pairs at every point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from benchmarks.coverage_fixed import cover
from benchmarks.simulated_pairs import (
    CELL,
    DISTURBANCES,
    GRID,
    NOISE,
    SAMPLES,
    Disturbance,
    Floats,
    boundary_of,
    median_factor,
    one_sided,
    random_staircase,
    staircase_at_the_line,
)
from vllm_nfp.config import ProbeConfig
from vllm_nfp.files import write_whole
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.schedule import Feedback, Planner
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.output import Output
from vllm_nfp.session.publisher import Publisher
from vllm_nfp.timing import StepTimes
from vllm_nfp.types import PairResult, Shape, State, Timing


@dataclass(frozen=True, slots=True)
class Course:
    """How a simulated probe goes on.

    Attributes:
        config: the probe's settings.
        scanned: pairs of the scan at the start.
        publishes: numbers of pairs at which results are published; the last one is the end.
    """

    config: ProbeConfig
    scanned: int
    publishes: tuple[int, ...]


SCAN = 6 * len(GRID)
SERVER = Course(ProbeConfig(), SCAN, (20, 40, *range(SCAN, 400, 10), *range(400, 801, 40)))
"""From the start until all rings are full, at 320 pairs, and all of their pairs are replaced."""
SELDOM = Course(ProbeConfig(), SCAN, (*range(20, 400, 20), *range(400, 801, 80)))
"""The same, published less often; sampling does not depend on how often results are published."""
MEASURE = Course(ProbeConfig(wanted_samples=12), SCAN, tuple(range(20, 12 * len(GRID) + 1, 20)))
"""``vllm-nfp measure``, which gives each point 12 pairs and ends."""
Rule = Callable[[Snapshot, Feedback], Feedback]
"""The feedback to the planner after a publish, from what was published."""


def as_it_runs(_: Snapshot, feedback: Feedback) -> Feedback:
    """The publisher's own feedback."""
    return feedback


def published(
    rng: np.random.Generator,
    ratios: Floats,
    disturb: Disturbance,
    course: Course,
    rule: Rule = as_it_runs,
) -> Iterator[tuple[int, Snapshot]]:
    """What a probe of one cell publishes, after so many pairs; 10 ms at one position."""
    config, key = course.config, (CELL.batch_size, CELL.context)
    wanted = max(config.min_samples, config.wanted_samples)
    planner = Planner({key: GRID}, wanted, int(rng.integers(1 << 31)))
    identity = Snapshot("simulated", "0", State.WARMING)
    publisher = Publisher(config, identity, StepTimes(), Output(config))
    feedback = publisher.feedback
    times = disturb(rng, course.publishes[-1])
    many = (0.01 * times.drift * times.many).tolist()
    one = (0.01 * times.drift * times.one).tolist()
    ratio_of = dict(zip(GRID, ratios.tolist(), strict=True))
    done = 0
    for moment in course.publishes:
        for at in range(done, moment):
            target = planner.next(key, feedback=feedback)
            assert target is not None
            planner.record(target)
            n = target.positions
            publisher.put(
                PairResult(_timing(n, many[at] * ratio_of[n]), _timing(1, one[at]), True, 0.02)
            )
        done = moment
        publisher.process()
        publisher.count(Counters(missing_pairs=planner.missing_pairs(feedback)))
        snapshot = publisher.snapshot()
        feedback = rule(snapshot, publisher.feedback)
        yield done, snapshot


def _timing(positions: int, seconds: float) -> Timing:
    shape = Shape(CELL.batch_size, CELL.context, positions)
    return Timing(shape, seconds, 0.0, {}, (), "full")


@dataclass(frozen=True, slots=True)
class Planned:
    """Fractions of trials whose interval held the truth when so many pairs had been taken.

    Attributes:
        pairs: of the whole cell, when this was published.
        ratio_at_line: of t(N) / t(1) at the point at a line.
        ratio, median: the same and t(N) of all points that were published.
        boundary_at_line: of NFP at the epsilon of that line.
        boundary: of NFP at all epsilons; on random staircases if these were asked for.
        decided: fraction of the boundaries at the line whose interval is one grid point.
        width: mean of the ratio's interval at the point at the line, as a fraction of it.
    """

    pairs: int
    trials: int
    ratio_at_line: float
    ratio: float
    median: float
    boundary_at_line: float
    boundary: float
    decided: float
    width: float


def cover_planned(
    disturb: Disturbance,
    course: Course,
    trials: int,
    seed: int = 0,
    rule: Callable[[], Rule] = lambda: as_it_runs,
    off: float = 0.0,
    at_line: bool = True,
) -> list[Planned]:
    """Simulate what runs; what is found after each publish from the end of the scan on.

    Args:
        rule: makes the rule of a trial.
        off: distance of the point from the line, in standard errors of 32 pairs, over or under.
        at_line: whether one point of each staircase is put there; else all are random.
    """
    rng = np.random.default_rng((seed, 1))
    middle = median_factor(disturb, np.random.default_rng(seed))
    moments = [pairs for pairs in course.publishes if pairs >= course.scanned]
    # Of each moment: trials, ratio at the line, points, ratios, medians, NFP at the line, NFP,
    # decided, width.
    sums = np.zeros((len(moments), 9))
    epsilons = course.config.epsilons
    for _ in range(trials):
        epsilon = epsilons[rng.integers(len(epsilons))]
        truth = staircase_at_the_line(rng, 32, epsilon) if at_line else random_staircase(rng)
        at = int(np.argmin(np.abs(np.log(truth / (1.0 + epsilon)))))
        if off:
            error = NOISE * math.sqrt(2.0 / 32)
            truth[at] = (1.0 + epsilon) * math.exp(off * error * rng.choice((-1.0, 1.0)))
        nfp = {e: boundary_of(truth, e) for e in epsilons}
        for pairs, snapshot in published(rng, truth, disturb, course, rule()):
            if pairs >= course.scanned:
                sums[moments.index(pairs)] += _held(snapshot, truth, at, epsilon, nfp, middle)
    return [
        Planned(
            pairs,
            trials,
            float(row[1] / row[0]),
            float(row[3] / row[2]),
            float(row[4] / row[2]),
            float(row[5] / row[0]),
            float(row[6] / row[0] / len(epsilons)),
            float(row[7] / row[0]),
            float(row[8] / row[0]),
        )
        for pairs, row in zip(moments, sums, strict=True)
    ]


def _held(
    snapshot: Snapshot,
    truth: Floats,
    at: int,
    epsilon: float,
    nfp: Mapping[float, int],
    middle: float,
) -> list[float]:
    curve = {row.positions: row for row in snapshot.curves if row.positions > 1}
    ratios = {
        n: row.ratio_lower <= truth[GRID.index(n)] <= _finite(row.ratio_upper)
        for n, row in curve.items()
    }
    medians = sum(
        row.seconds_lower <= 0.01 * truth[GRID.index(n)] * middle <= _finite(row.seconds_upper)
        for n, row in curve.items()
    )
    lines = {row.epsilon: row.lower <= nfp[row.epsilon] <= row.upper for row in snapshot.boundaries}
    own = next(row for row in snapshot.boundaries if row.epsilon == epsilon)
    point = curve.get(GRID[at])
    width = 0.0 if point is None else _finite(point.ratio_upper) - point.ratio_lower
    return [
        1.0,
        ratios.get(GRID[at], True),  # what is not published claims nothing
        len(curve),
        sum(ratios.values()),
        medians,
        lines[epsilon],
        sum(lines.values()),
        own.lower == own.upper,
        width / truth[at],
    ]


def _finite(upper: float | None) -> float:
    return math.inf if upper is None else upper


_FIXED = {
    "ratio": "interval of t(N) / t(1)",
    "median": "interval of the median of t(N)",
    "boundary_at_line": "interval of NFP, a point at the line",
    "boundary": "interval of NFP, random staircases",
    "decided_at_line": "NFP's interval is one grid point, a point at the line",
    "exact": "NFP itself is the truth, random staircases",
}
_PLANNED = {
    "ratio_at_line": "interval of t(N) / t(1) of the point at the line",
    "ratio": "interval of t(N) / t(1), all points",
    "median": "interval of the median of t(N), all points (the clock's drift moves the truth)",
    "boundary_at_line": "interval of NFP at that line",
    "boundary": "interval of NFP at all three lines",
}
_SHOWN = (60, 100, 140, 200, 260, 320, 400, 800)
"""Pairs of a cell at which the tables show what is published."""


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a Markdown table; rows by the text of their first cell."""
    table = Table(box=box.MARKDOWN, title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *row)
    Console(width=140).print(table)


def _fixed(trials: int, seed: int) -> Mapping[str, Any]:
    kinds = {**DISTURBANCES, "N alone delayed": one_sided}
    found = {
        name: [cover(disturb, samples, trials, seed) for samples in SAMPLES]
        for name, disturb in kinds.items()
    }
    for measure, title in _FIXED.items():
        rows = {k: [f"{getattr(c, measure):.1%}" for c in row] for k, row in found.items()}
        print_table(title, [f"{samples} pairs" for samples in SAMPLES], rows)
    return found


def _planned(trials: int, seed: int) -> Mapping[str, Any]:
    kept = {}
    for course, where, at_line in (
        (SELDOM, "server, a point at a line", True),
        (SELDOM, "server, random staircases", False),
        (MEASURE, "measure, a point at a line", True),
    ):
        found = {
            name: cover_planned(disturb, course, trials, seed, at_line=at_line)
            for name, disturb in DISTURBANCES.items()
        }
        _show_planned(where, found, course, at_line)
        kept[where] = found
    return kept


def _show_planned(
    where: str, found: Mapping[str, Sequence[Planned]], course: Course, at_line: bool
) -> None:
    shown = [n for n in _SHOWN if n in course.publishes]
    for measure, title in _PLANNED.items():
        if at_line or not measure.endswith("at_line"):
            rows = {}
            for name, moments in found.items():
                values = {m.pairs: getattr(m, measure) for m in moments}
                lowest, mean = min(values.values()), float(np.mean(list(values.values())))
                rows[name] = [f"{v:.1%}" for v in (*(values[n] for n in shown), mean, lowest)]
            columns = [*(f"{n} pairs" for n in shown), "mean", "lowest"]
            print_table(f"{where}: {title}", columns, rows)


PARTS: Mapping[str, Callable[[int, int], Mapping[str, Any]]] = {
    "fixed": _fixed,
    "planned": _planned,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--trials", default=400, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(parts: tuple[str, ...], trials: int, seed: int, out: Path | None) -> None:
    """Print the tables of docs/estimation.md: PARTS, or all."""
    for part in parts or PARTS:
        write_found(out, part, PARTS[part](trials, seed))


def write_found(out: Path | None, part: str, found: Mapping[str, Any]) -> None:
    """Write what a part has found, with the command and the commit; nothing without a directory."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        kept = {"environment": environment.record(), "found": found}
        write_whole(out / f"{part}.json", json.dumps(kept, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main()
