"""How often a method's answers are right, against recorded truth."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.answers.replay_methods import (
    EPSILONS,
    Answers,
    grid_of,
    positions_of,
    true_boundary,
)
from benchmarks.answers.replay_recorded import REFERENCE, Cell, Server
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.length import expected_tokens
from vllm_nfp.session.agenda_maker import ACCEPTANCES
from vllm_nfp.types import Module

MOMENTS = (0.0, 60.0, 600.0)
"""Seconds of traffic after which is scored; 0: after the scan at the start."""
NEAR = 0.15
GOOD = 0.98
"""Of the best goodput."""
CERTAIN = 0.03
"""Largest standard deviation of a recorded log t(N) / t(1) of which a draft length is judged: host
stops make some recorded steps without a CUDA graph worth little."""


@dataclass
class Score:
    """How often a method was right at one moment, on one server."""

    method: str
    server: str
    family: str
    composed: bool
    seconds: float
    pairs: int
    boundaries: int = 0
    near: int = 0
    inside: int = 0
    """Boundaries below the largest N that was asked for."""
    near_inside: int = 0
    boundary_covered: int = 0
    answered: int = 0
    drafts: int = 0
    good_drafts: int = 0
    worst_draft: float = 1.0
    errors: tuple[float, ...] = ()
    """|log| of said over true t(N) / t(1) of the whole step, in CUDA graphs."""
    points: int = 0
    covered: int = 0
    by_module: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Points and those whose interval holds the truth, by module."""
    publish_seconds: float = 0.0


def score(answers: Answers, server: Server, into: Score) -> Score:
    """Compare what a method says with the truth."""
    errors: list[float] = []
    for module in server.modules:
        for cell in server.cells:
            _score_boundaries(answers, server, module, cell, into)
            said = answers.ratio(module, cell)
            if said is None:
                continue
            truth, spread = server.ratios(module, cell), server.deviations(module, cell)
            inside = server.prior(*cell).in_graph[np.array(server.positions[cell]) - 1]
            ratio, low, high = said
            known = np.isfinite(truth) & np.isfinite(ratio) & inside
            known[0] = False
            if module is Module.MODEL:
                errors += np.abs(np.log(ratio[known] / truth[known])).tolist()
            # A recorded truth is uncertain itself: its interval counts with the method's.
            with np.errstate(divide="ignore"):
                reach = np.hypot(np.log(high / low) / 2, 1.96 * spread)
            middle = np.log(ratio)
            held = np.abs(np.log(truth) - middle) <= reach
            into.points += int(known.sum())
            into.covered += int(held[known].sum())
            points, covered = into.by_module.get(str(module), (0, 0))
            into.by_module[str(module)] = (
                points + int(known.sum()), covered + int(held[known].sum())
            )  # fmt: skip
    for cell in server.cells:
        _score_drafts(answers, server, cell, into)
    into.errors = tuple(errors)
    return into


def _score_boundaries(
    answers: Answers, server: Server, module: Module, cell: Cell, into: Score
) -> None:
    grid = grid_of(server, cell)
    for epsilon in EPSILONS:
        truth = true_boundary(server, module, cell, epsilon)
        if truth is None or len(grid) < 3:
            continue
        into.boundaries += 1
        into.inside += int(truth < grid[-1])
        said = answers.boundary(module, cell, epsilon)
        if said is None:
            continue
        into.answered += 1
        apart = abs(positions_of(grid, said[0]) - positions_of(grid, truth))
        near = apart <= 1 or abs(said[0] - truth) <= NEAR * truth
        into.near += int(near)
        into.near_inside += int(near and truth < grid[-1])
        into.boundary_covered += int(said[1] <= truth <= said[2])


def _score_drafts(answers: Answers, server: Server, cell: Cell, into: Score) -> None:
    counts = server.positions[cell]
    ratios = server.ratios(Module.MODEL, cell)
    if not np.isfinite(ratios).all():
        return
    deviations = dict(zip(counts, server.deviations(Module.MODEL, cell).tolist(), strict=True))
    true = StepCurve(*cell, 1.0, tuple(zip(counts, ratios.tolist(), strict=True)))
    for acceptance in ACCEPTANCES:
        goodput = {n: expected_tokens(n - 1, acceptance) / r for n, r in true.points}
        length = answers.draft(cell, acceptance)
        best = max(goodput, key=goodput.__getitem__)
        at = bisect.bisect_left(counts, length + 1)
        near = counts[at - (counts[at] != length + 1) : at + 1]
        if max(deviations[n] for n in (*near, best)) > CERTAIN:
            continue
        # A step between two recorded ones counts as the slower of them, as for a server.
        share = expected_tokens(length, acceptance) / true.ratio(length + 1) / goodput[best]
        into.drafts += 1
        into.good_drafts += int(share >= GOOD)
        into.worst_draft = min(into.worst_draft, float(share))


def print_scores(console: Console, scores: Sequence[Score]) -> None:
    """A row for each method, group of servers and moment."""
    table = Table(title="answers against recorded truth, families left out in turn")
    for column in (
        "method", "servers", "after", "pairs", "boundaries near", "below the limit",
        "interval holds", "error t(N)/t(1) median, p90", "interval holds t(N)/t(1)",
        "drafts within 2 %", "worst",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for method, group, moment, found in all_shares(scores):
        said = found["near"], found["below"], found["held"]
        errors = f"{found['error']}, {found['error_p90']}"
        steps = errors, found["covered"], found["good"], found["worst"]
        table.add_row(method, group, f"{moment:.0f} s", found["pairs"], *said, *steps)
    console.print(table)


GROUPS: dict[str, Callable[[Score], bool]] = {
    "all": lambda _: True,
    "recorded steps": lambda s: not s.composed,
    "composed, prior fitted on them": lambda s: s.composed and s.family in REFERENCE,
    "composed, others": lambda s: s.composed and s.family not in REFERENCE,
}
"""Servers that are summed up together."""


def all_shares(scores: Sequence[Score]) -> Iterator[tuple[str, str, float, dict[str, str]]]:
    """(method, group of servers, moment, what :func:`shares` says of them), where there are any."""
    for method in dict.fromkeys(s.method for s in scores):
        for group, belongs in GROUPS.items():
            for moment in MOMENTS:
                some = [
                    s for s in scores
                    if s.method == method and s.seconds == moment and belongs(s)
                ]  # fmt: skip
                if some:
                    yield method, group, moment, shares(some)


def print_modules(console: Console, scores: Sequence[Score]) -> None:
    """How often the intervals of t(N) / t(1) hold, by module."""
    for method in dict.fromkeys(s.method for s in scores):
        for moment in MOMENTS:
            some = [s for s in scores if s.method == method and s.seconds == moment]
            shares = []
            for module in Module:
                counts = [s.by_module.get(str(module), (0, 0)) for s in some]
                points = sum(points for points, _ in counts)
                if points:
                    shares.append(f"{module} {sum(c for _, c in counts) / points:.1%}")
            console.print(f"{method}, {moment:.0f} s, intervals hold: {', '.join(shares)}")


def shares(some: Sequence[Score]) -> dict[str, str]:
    """How often servers were right, over all of them together, as it is printed."""

    def share(part: str, whole: str) -> str:
        return f"{_total(some, part) / max(1, _total(some, whole)):.1%}"

    errors = np.array([e for s in some for e in s.errors])
    middle, high = np.quantile(errors, (0.5, 0.9)) if len(errors) else (np.nan, np.nan)
    return {
        "pairs": f"{_total(some, 'pairs') / len(some):.0f}",
        "near": share("near", "boundaries"),
        "below": share("near_inside", "inside"),
        "held": share("boundary_covered", "answered"),
        "error": f"{middle:.2%}",
        "error_p90": f"{high:.2%}",
        "covered": share("covered", "points"),
        "good": share("good_drafts", "drafts"),
        "worst": f"{min(s.worst_draft for s in some):.3f}",
    }


def _total(some: Sequence[Score], name: str) -> int:
    found: int = sum(getattr(s, name) for s in some)
    return found


def read_scores(path: Path) -> list[Score]:
    """What benchmarks.answers.replay has written."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Score(**{**row, "errors": tuple(row["errors"])}) for row in rows]
