"""How true the answers of a server at the defaults are, against a measurement of every point.

A truth that was cut short has points that were not measured: they are no truth, and nothing is
scored by them. A draft length is scored where every point of its curve was measured.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_nfp.config import DEFAULT_POSITIONS
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.schedule import best_length
from vllm_nfp.draft.server import from_samples
from vllm_nfp.draft.sources import SourceError, from_profile
from vllm_nfp.results import scrape
from vllm_nfp.results.profile import Profile, load_profile
from vllm_nfp.types import Basis, Boundary

ACCEPTANCES = (0.5, 0.7, 0.9)
NEAR = 0.15
GOOD = 0.98
"""Of the best goodput."""
OUTCOMES = ("startup", "measured", "idle")


@dataclass(slots=True)
class StepScore:
    """How true whole steps are that were said, and how good the drafts that they choose."""

    errors: list[float] = field(default_factory=list)
    """|log| of said over true t(N) / t(1), in CUDA graphs."""
    covered: int = 0
    """Of these ratios, those inside their interval."""
    drafts: int = 0
    good: int = 0
    """Draft lengths with at least :data:`GOOD` of the best goodput."""
    worst: float = 1.0
    """Goodput over the best."""

    def count(self, said: StepCurve, true: StepCurve) -> None:
        """Compare a curve with the points of the truth that were measured."""
        intervals = dict(zip((n for n, _ in said.points), said.intervals, strict=False))
        for positions, ratio in true_points(true):
            if positions > said.largest:
                break
            self.errors.append(abs(math.log(said.ratio(positions) / ratio)))
            lower, upper = intervals.get(positions, (ratio, ratio))
            self.covered += lower <= ratio <= upper
        for share in draft_shares(said, true):
            self.drafts += 1
            self.good += share >= GOOD
            self.worst = min(self.worst, share)

    @property
    def median(self) -> float:
        """Of the errors; NaN if there are none."""
        return float(np.median(self.errors or [math.nan]))

    @property
    def p90(self) -> float:
        """The error that 90 % do not exceed; NaN if there are none."""
        return float(np.quantile(self.errors or [math.nan], 0.9))

    def texts(self) -> tuple[str, str, str, str, str]:
        """Median and 90 % of the errors, intervals that hold, good draft lengths, the worst."""
        return (
            f"{self.median:.2%}",
            f"{self.p90:.2%}",
            _share(self.covered, len(self.errors)),
            _share(self.good, self.drafts),
            f"{self.worst:.3f}" if self.drafts else "-",
        )


@dataclass(slots=True)
class Score:
    """How often the server was right at one moment."""

    moment: str
    pairs: dict[str, int]
    """Measured since the start, by outcome."""
    boundaries: int = 0
    near: int = 0
    inside: int = 0
    """Boundaries below the largest N that was measured, so that they can be missed."""
    near_inside: int = 0
    held: int = 0
    """Boundaries inside their interval."""
    steps: StepScore = field(default_factory=StepScore)
    bases: dict[str, int] = field(default_factory=dict)
    """Of the whole step's boundaries."""


def score(folder: Path, moment: str, truth: Profile) -> Score:
    """Compare what a server said at a moment with the truth, where both say something."""
    samples = scrape.read_samples((folder / f"{moment}.prom").read_text())
    said = {
        (r.module, r.batch_size, r.context, r.epsilon): r for r in scrape.scrape_of(samples).rows
    }
    found = Score(moment, pairs_by_outcome(samples))
    for true in truth.boundaries:
        row = said.get((true.module, true.batch_size, true.context, true.epsilon))
        if row is None or true.basis is not Basis.MEASURED:
            continue
        _count_boundary(found, row, true)
    theirs = {(c.batch_size, c.context): c for c in _curves(samples, moment)}
    for curve in from_profile(truth).curves:
        other = theirs.get((curve.batch_size, curve.context))
        if other is not None:
            found.steps.count(other, curve)
    return found


def _curves(samples: scrape.Samples, moment: str) -> tuple[StepCurve, ...]:
    """What the server says of whole steps; nothing if it has no seconds yet."""
    try:
        return from_samples(samples, moment).curves
    except SourceError:
        return ()


def pairs_by_outcome(samples: scrape.Samples) -> dict[str, int]:
    """Pairs that a server has measured since its start."""
    counts: dict[str, int] = {}
    for labels, value in samples.get("vllm_nfp_probes_total", ()):
        if labels["outcome"] in OUTCOMES:
            counts[labels["outcome"]] = counts.get(labels["outcome"], 0) + int(value)
    return counts


def _count_boundary(found: Score, said: scrape.Row, true: Boundary) -> None:
    at = [_place(n) for n in (said.positions, true.positions)]
    apart = abs(said.positions - true.positions)
    # "This or more" is right wherever the truth is more.
    more = said.at_limit and true.positions >= said.positions
    near = more or abs(at[0] - at[1]) <= 1 or apart <= NEAR * true.positions
    found.boundaries += 1
    found.near += near
    found.held += more or said.lower <= true.positions <= said.upper
    if not (true.at_limit or more):
        found.inside += 1
        found.near_inside += near
    if said.module == "model":
        found.bases[said.basis] = found.bases.get(said.basis, 0) + 1


def _place(positions: int) -> int:
    return bisect.bisect_left(DEFAULT_POSITIONS, positions)


def true_points(true: StepCurve) -> Iterator[tuple[int, float]]:
    """(N, t(N) / t(1)) that were measured in CUDA graphs, of N above 1."""
    last = math.inf if true.without_graph_from is None else true.without_graph_from
    for (positions, ratio), basis in zip(true.points, true.bases, strict=True):
        if 1 < positions < last and basis is Basis.MEASURED:
            yield positions, ratio


def draft_shares(said: StepCurve, true: StepCurve) -> Iterator[float]:
    """Goodput of the draft length that is best by what was said, over the best; true times.

    One for each of :data:`ACCEPTANCES`; none if not every point of the truth was measured.
    """
    last = min(said.largest, true.largest)
    bases = [b for (n, _), b in zip(true.points, true.bases, strict=True) if 1 < n <= last]
    if any(basis is not Basis.MEASURED for basis in bases):
        return
    for acceptance in ACCEPTANCES:
        demand = Demand(constant(acceptance))
        chosen = min(best_length(said, demand), last - 1)
        goodput = {
            n - 1: constant(acceptance).expected_tokens(n - 1) / ratio
            for n, ratio in true.points
            if n <= last
        }
        mine = constant(acceptance).expected_tokens(chosen) / true.ratio(chosen + 1)
        yield mine / max(goodput.values())


def scores_of(folder: Path) -> Iterator[Score]:
    """The score at each moment that a run has kept, in order."""
    truth = load_profile(folder / "truth.json")
    kept = sorted(folder.glob("*.prom"), key=lambda path: (path.stem != "start", path.stem))
    return (score(folder, path.stem, truth) for path in kept)


def print_scores(folders: Sequence[Path]) -> None:
    """One table; a row for each run and moment."""
    columns = (
        "run", "moment", "pairs", "boundaries near", "below the limit", "NFP interval holds",
        "error of t(N)/t(1): median, p90", "its interval holds", "drafts within 2 %",
        "worst draft", "basis of the whole step's NFP",
    )  # fmt: skip
    table = Table(*columns)
    for folder, row in itertools.chain.from_iterable(
        ((folder, row) for row in scores_of(folder)) for folder in folders
    ):
        about = json.loads((folder / "about.json").read_text())
        median, p90, *shares = row.steps.texts()
        table.add_row(
            _run(about),
            row.moment,
            ", ".join(f"{count} {outcome}" for outcome, count in row.pairs.items()),
            _share(row.near, row.boundaries),
            _share(row.near_inside, row.inside),
            _share(row.held, row.boundaries),
            f"{median}, {p90}",
            *shares,
            ", ".join(f"{count} {basis}" for basis, count in sorted(row.bases.items())),
        )
    Console(width=300).print(table)


def _run(about: Mapping[str, Any]) -> str:
    wide = "wide weights" if about.get("wide_weights") else ""
    return " ".join(filter(None, (about["shape"], str(about["layers"]), about["flags"], wide)))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} of {whole}" if whole else "-"
