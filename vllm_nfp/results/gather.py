"""Gathers what one engine measures in a cost surface, and makes rows of what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import give_way
from vllm_nfp.results.layer_times import LayerTimes
from vllm_nfp.results.real_steps import SteadySteps, is_whole, seconds_of_work
from vllm_nfp.results.rows import Answered, answered
from vllm_nfp.results.table import Table
from vllm_nfp.surface import CellAnswer, CostSurface
from vllm_nfp.timing import RealSteps, rounded_context
from vllm_nfp.types import (
    Boundary,
    Cell,
    CellKey,
    CurvePoint,
    EngineStep,
    LayerHistogram,
    LayerLatency,
    LiveStep,
    Module,
    PairResult,
    Shape,
)

LIVE = (Module.MODEL,)
"""What is reported of the last real step."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the surface says; replaced whole, never changed. All rows are of one update."""

    boundaries: tuple[Boundary, ...] = ()
    """Of each module in each reported cell, at each epsilon."""
    curves: tuple[CurvePoint, ...] = ()
    """Of the same, at each number of positions."""
    live_boundaries: tuple[Boundary, ...] = ()
    """Of the whole step, at the batch size and context of the last real one."""
    live_curves: tuple[CurvePoint, ...] = ()
    """The same of the curves, with those of the reported batch sizes at that context."""
    live: LiveStep | None = None
    """The real step that the live rows are of; None before the first."""
    layers: tuple[LayerHistogram, ...] = ()
    pairs: int = 0
    """Pairs that were taken in."""
    jumps: int = 0
    """Times that old observations lost their weight."""
    guessed: bool = False
    """What is called predicted is a guess: of this model or device nothing was ever timed."""


class Results:
    """The cost surface of one engine, and the rows that it gives.

    One thread at a time adds and updates. Any thread may read the findings and the times of
    layers; the rows among the findings are those of the last update that made rows.

    Args:
        config: the probe's settings.
        surface: takes in what is measured.
        table: what is reported.
    """

    def __init__(
        self, config: ProbeConfig, surface: CostSurface, table: Table, guessed: bool = False
    ) -> None:
        self._config = config
        self.surface = surface
        self.table = table
        self._steps = SteadySteps()
        self._layers = LayerTimes(config.layer_histograms)
        self._taken: Counter[Shape] = Counter()
        self._shown: tuple[int, CellKey | None] = (-1, None)
        """Version of the surface and live cell that the findings are of."""
        self._findings = Findings(guessed=guessed)

    def add(self, result: PairResult, now: float) -> None:
        """Take in a pair.

        Args:
            now: seconds of a monotonic clock.
        """
        self.surface.add_pair(result, now)
        self._taken[result.many.shape] += 1
        self._layers.add(result.many)
        self._layers.add(result.one)

    def taken(self, shape: Shape) -> int:
        """Pairs of the shape that were taken in since the start."""
        return self._taken[shape]

    def add_steps(self, kinds: Iterable[RealSteps], now: float) -> None:
        """Take in real steps, those kinds that tell something new."""
        for of in self._steps.new(filter(is_whole, kinds), now):
            seconds = seconds_of_work(of)
            if of.shape.positions <= self.table.grid[-1] and seconds is not None:
                self.surface.add_step(of.shape, seconds, now)

    def update(self, now: float, last_step: EngineStep | None = None, rows: bool = True) -> None:
        """Ask the surface again, where something has changed; gives way.

        Args:
            last_step: the latest real one.
            rows: make the rows again as well, where they have changed. That takes longest: some
                tens of milliseconds for the table of a large server.
        """
        maybe_fail("estimate")
        self.surface.update(now)
        if rows:
            self._renew_rows(last_step)
        self._findings = replace(
            self._findings, pairs=self._taken.total(), jumps=self.surface.jumps
        )

    def _renew_rows(self, last_step: EngineStep | None) -> None:
        live = None if last_step is None else self._live_cell(last_step)
        version, found = self.surface.version, self._findings
        if version != self._shown[0]:
            boundaries, curves = self._rows(self.table.cells)
            found = replace(found, boundaries=boundaries, curves=curves)
        if live is not None and (version, live) != self._shown:
            boundaries, curves = self._live_rows(live)
            found = replace(found, live_boundaries=boundaries, live_curves=curves)
        if last_step is not None:
            found = replace(found, live=_live_step(last_step))
        self._shown = version, live
        self._findings = replace(found, layers=self._layers.histograms())

    @staticmethod
    def _live_cell(step: EngineStep) -> CellKey:
        return step.batch_size, rounded_context(step.context)

    def _live_rows(self, live: CellKey) -> tuple[tuple[Boundary, ...], tuple[CurvePoint, ...]]:
        """Two questions: the batch size changes more often than the context does."""
        sizes = self.table.batch_sizes
        cells = [(b, live[1]) for b in sizes if self.table.holds(b, live[1])]
        lines, curves = self._rows({cell: self.table.fitting(*cell) for cell in cells}, LIVE)
        if live in cells:
            return tuple(line for line in lines if line.batch_size == live[0]), curves
        lines, own = self._rows({live: self.table.fitting(*live)}, LIVE)
        return lines, (*curves, *own)

    def _rows(
        self, cells: Mapping[CellKey, tuple[int, ...]], modules: tuple[Module, ...] = tuple(Module)
    ) -> tuple[tuple[Boundary, ...], tuple[CurvePoint, ...]]:
        if not cells:
            return (), ()
        found = self.surface.answers(tuple(cells), self.table.grid, modules)
        give_way()
        known: dict[tuple[int, tuple[int, ...]], Answered] = {}
        lines: list[Boundary] = []
        points: list[CurvePoint] = []
        for key, answer in found.items():
            cell = Cell(*key)
            positions = cells[cell.batch_size, cell.context]
            one = self._answered(known, answer, positions)
            lines += one.lines(cell)
            points += self._curve(cell, one)
            give_way()
        return tuple(lines), tuple(points)

    def _answered(
        self,
        known: dict[tuple[int, tuple[int, ...]], Answered],
        answer: CellAnswer,
        positions: tuple[int, ...],
    ) -> Answered:
        """An FFN has the same answer at all contexts: it is worked out once."""
        key = id(answer), positions
        if key not in known:
            known[key] = answered(answer, positions, self._config.epsilons)
        return known[key]

    def _curve(self, cell: Cell, one: Answered) -> tuple[CurvePoint, ...]:
        """Empty where the surface knows no time in seconds yet, as with a generic prior."""
        at_one = self.surface.seconds_at_one(*cell)
        if at_one is None:
            return ()
        shape_samples = self.surface.samples
        return one.curve(
            cell,
            at_one,
            lambda n: shape_samples(cell.module, Shape(cell.batch_size, cell.context, n)),
            self.table.execution,
        )

    @property
    def findings(self) -> Findings:
        """What the last update has found."""
        return self._findings

    @property
    def model_version(self) -> int:
        """Rises when the rows of the whole step's curves have changed."""
        return max(0, self._shown[0])

    def model_curves(self) -> Iterator[CurvePoint]:
        """The points of the whole step alone."""
        return (point for point in self._findings.curves if point.module == Module.MODEL)

    def layer_times(self) -> tuple[LayerLatency, ...]:
        """The time of each timed layer's modules, by cell and number of positions."""
        return self._layers.latencies()


def _live_step(step: EngineStep) -> LiveStep:
    return LiveStep(step.batch_size, step.context, step.positions)
