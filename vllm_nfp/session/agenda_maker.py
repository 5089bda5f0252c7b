"""Chooses what to probe next: what tells most about the decisions that matter, for its cost."""

from __future__ import annotations

import bisect
import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.acceptance import constant
from vllm_nfp.give_way import give_way
from vllm_nfp.results.gather import Findings, Results
from vllm_nfp.results.table import Table
from vllm_nfp.schedule.agenda import Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.surface import Candidate, Concern, Decisions
from vllm_nfp.types import Basis, CellKey, Module, Shape

MOST = 16
"""Shapes of an agenda."""
EVERYWHERE = 0.7
"""Weight of the reported table, against that of the cells with traffic."""
MOST_CONCERNS, MOST_CANDIDATES = 10, 80
"""Looked at in one choice; drawn anew each time."""
ACCEPTANCES = (0.5, 0.7, 0.9)
"""Of drafts, for which draft lengths are decided."""
MODULE_GRAPH = 1.3
"""What a pair takes over its two steps: the modules run as well."""
PIECES = 2
"""Graphs of a shape that has none yet: the step's, and that of the modules."""
USUAL_PAIR_SECONDS = 0.02
"""Until a time in seconds is known."""
ONE_IN = 8
"""Of so many pairs one goes to a cell of which nothing was measured, whatever it is worth."""
PAIRS_PER_CELL = 5
"""Pairs for each probed cell, on average, from which on pairs only refresh. A choice, not a fit.
"""
LEAST_POSITIONS = 2
"""Of a pair beside one position."""
STAY_PAIRS = 6
"""Pairs by which a shape with graphs may be ahead of one that still needs them."""


class AgendaMaker:
    """Makes agendas; for the thread that updates the results.

    Args:
        config: the probe's settings.
        results: of the server.
    """

    def __init__(self, config: ProbeConfig, results: Results) -> None:
        self._config = config
        self._results = results
        self._random = random.Random(config.seed)
        self._decisions = decisions_at(config.grid, config.epsilons)

    def make(self, counters: Counters, traffic: Mapping[CellKey, float]) -> Agenda:
        """What to probe next, after the latest update; gives way.

        Args:
            counters: of the serving side: what is refused, what is ready, and what pieces cost.
            traffic: fraction of the time that real steps spend in each cell.
        """
        table, findings = self._results.table, self._results.findings
        left_out = counters.refused | counters.put_off
        usable = [shape for shape in table.shapes if shape not in left_out]
        if not usable:
            return Agenda(settled=True)
        give_way()
        wanted, lacking = self._config.wanted_samples, self._lacking(usable, counters)
        if lacking:
            missing = sum(wanted - self._results.taken(shape) for shape in lacking)
            return Agenda(lacking[:MOST], missing_pairs=missing)
        unknown = unmeasured(findings, usable)
        give_way()
        first = self._explored(unknown, findings, counters)
        chosen = self._valuable(usable, counters, traffic, MOST - len(first))
        # A shape that is doubted may have been refused since.
        possible = (shape for shape in (*first, *chosen) if shape not in left_out)
        first = tuple(dict.fromkeys(possible))
        if wanted:
            return Agenda(first, settled=True)
        enough = findings.pairs >= PAIRS_PER_CELL * len(table.probed)
        return Agenda(first, settled=not unknown and enough, missing_pairs=len(unknown))

    def _lacking(self, usable: Sequence[Shape], counters: Counters) -> tuple[Shape, ...]:
        """Shapes that must get more pairs, in the order in which they should."""
        taken, wanted = self._results.taken, self._config.wanted_samples
        if not wanted:
            return ()
        lacking = [shape for shape in usable if taken(shape) < wanted]
        self._random.shuffle(lacking)
        return tuple(sorted(lacking, key=lambda s: taken(s) - STAY_PAIRS * is_ready(s, counters)))

    def _explored(
        self, unknown: Sequence[CellKey], findings: Findings, counters: Counters
    ) -> tuple[Shape, ...]:
        """Now and then, the shape at the boundary of a cell of which nothing was measured.

        Cells in which pairs read contexts of real sequences come first.
        """
        if not unknown or findings.pairs % ONE_IN != ONE_IN - 1:
            return ()
        readable = [c for c in unknown if counters.has_content(Shape(*c, LEAST_POSITIONS))]
        cell = self._random.choice(readable or unknown)
        counts = self._results.table.probed[cell]
        lines = [
            line.positions
            for line in findings.boundaries
            if line.module == Module.MODEL and (line.batch_size, line.context) == cell
        ]
        over = bisect.bisect_right(counts, self._random.choice(lines))
        return (Shape(*cell, counts[min(over, len(counts) - 1)]),)

    def _valuable(
        self,
        usable: Sequence[Shape],
        counters: Counters,
        traffic: Mapping[CellKey, float],
        most: int,
    ) -> tuple[Shape, ...]:
        table = self._results.table
        concerns = drawn_concerns(table.cells, traffic, self._random)
        near = {nearest(table, (of.batch_size, of.context)) for of in concerns}
        near |= {other for cell in near for other in with_content(table, cell, counters)}
        shapes = [s for s in usable if (s.batch_size, s.context) in near] or usable
        shapes = self._random.sample(shapes, min(MOST_CANDIDATES, len(shapes)))
        candidates = self._with_costs(shapes, counters)
        return self._results.surface.choose(candidates, concerns, self._decisions, most)

    def _with_costs(self, shapes: Sequence[Shape], counters: Counters) -> list[Candidate]:
        seconds = {
            (point.batch_size, point.context, point.positions): point.median_seconds
            for point in self._results.model_curves()
        }
        give_way()
        found = []
        for shape in shapes:
            ones = seconds.get((shape.batch_size, shape.context, 1))
            cost = USUAL_PAIR_SECONDS
            if ones is not None:
                many = seconds[shape.batch_size, shape.context, shape.positions]
                cost = MODULE_GRAPH * (ones + many)
            for run in (shape, Shape(shape.batch_size, shape.context, 1)):
                cost += 0.0 if is_ready(run, counters) else PIECES * counters.piece_seconds
            found.append(Candidate(shape, cost, counters.has_content(shape)))
        return found


def decisions_at(positions: tuple[int, ...], epsilons: tuple[float, ...]) -> Decisions:
    """Boundaries at these tolerances, and the draft lengths that the positions allow.

    Args:
        positions: N, ascending from 1.
    """
    tokens = tuple(
        tuple(constant(a).expected_tokens(n - 1) for n in positions) for a in ACCEPTANCES
    )
    return Decisions(positions, epsilons, tokens, (0.0,) * len(positions))


def drawn_concerns(
    cells: Collection[CellKey], traffic: Mapping[CellKey, float], draw: random.Random
) -> list[Concern]:
    """Some of the cells whose decisions matter, with their weights.

    Args:
        cells: reported ones; they share :data:`EVERYWHERE`.
        traffic: fraction of the time that real steps spend in each cell.
    """
    weights = {cell: EVERYWHERE / len(cells) for cell in cells}
    for cell, share in traffic.items():
        weights[cell] = weights.get(cell, 0.0) + share
    drawn = draw.choices(list(weights), list(weights.values()), k=MOST_CONCERNS)
    return [Concern(*c, drawn.count(c) / MOST_CONCERNS) for c in dict.fromkeys(drawn)]


def is_ready(shape: Shape, counters: Counters) -> bool:
    """Whether the shape has its graphs, which fit every context."""
    return (shape.batch_size, shape.positions) in counters.ready


def nearest(table: Table, cell: CellKey) -> CellKey:
    """The probed cell whose shapes tell most about this one: the next larger, or the largest.

    At that context there may be no such batch size; then it is the largest that there is.
    """
    if cell in table.probed:
        return cell
    context = _next(sorted({context for _, context in table.probed}), cell[1])
    sizes = sorted(batch_size for batch_size, at in table.probed if at == context)
    return _next(sizes, cell[0]), context


def with_content(table: Table, cell: CellKey, counters: Counters) -> tuple[CellKey, ...]:
    """The cell in whose place pairs read contexts of real sequences: none where it has them itself.

    It is that of as many sequences with the longest context that enough real ones have, else that
    of the most sequences that have any.
    """
    batch_size, context = cell
    if counters.has_content(Shape(*cell, LEAST_POSITIONS)):
        return ()
    readable = [
        (size, length)
        for size, length in table.probed
        if size <= batch_size
        and length <= context
        and counters.has_content(Shape(size, length, LEAST_POSITIONS))
    ]
    return (max(readable),) if readable else ()


def _next(values: Sequence[int], value: int) -> int:
    return values[min(bisect.bisect_left(values, value), len(values) - 1)]


def unmeasured(findings: Findings, usable: Iterable[Shape]) -> tuple[CellKey, ...]:
    """Cells that can be probed and whose whole-step NFP is the prediction alone."""
    possible = {(shape.batch_size, shape.context) for shape in usable}
    predicted = dict.fromkeys(
        (line.batch_size, line.context)
        for line in findings.boundaries
        if line.module == Module.MODEL and line.basis is Basis.PREDICTED
    )
    return tuple(cell for cell in predicted if cell in possible)
