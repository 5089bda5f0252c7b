"""Gathers the pairs of one engine, and estimates again where new ones have come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vllm_nfp.config import ProbeConfig
from vllm_nfp.estimate import CellEstimate, PairStore, estimate_cell
from vllm_nfp.faults import maybe_fail
from vllm_nfp.give_way import give_way, in_pieces
from vllm_nfp.results.layer_times import LayerTimes
from vllm_nfp.types import (
    Boundary,
    Cell,
    CurvePoint,
    LayerHistogram,
    LayerLatency,
    Module,
    Pair,
    PairResult,
    Timing,
)

CELLS_AT_A_TIME = 64
"""Cells that are worked through before a pause: some 0.2 ms."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the estimates of one update say; replaced whole, never changed."""

    boundaries: tuple[Boundary, ...] = ()
    """Of each cell, at each epsilon."""
    curves: tuple[CurvePoint, ...] = ()
    """Of each cell, at each number of positions."""
    layers: tuple[LayerHistogram, ...] = ()


class Results:
    """Pairs and estimates of one engine.

    One thread at a time adds and updates. Any thread may read the findings and the times of
    layers; the findings are those of the last update, and all of the same one.
    """

    def __init__(self, config: ProbeConfig) -> None:
        self._config = config
        self._store = PairStore(config.max_samples)
        self._execution: dict[tuple[int, int], dict[int, str]] = {}
        """How steps ran, by (batch size, context) and positions."""
        self._estimates: dict[Cell, CellEstimate] = {}
        self._changed: set[Cell] = set()
        self._layers = LayerTimes(config.layer_histograms)
        self._findings = Findings()
        self.model_version = 0
        """Rises when the whole step's curves have changed."""

    def add(self, result: PairResult) -> None:
        """Take in a pair: one sample for each module, and for the whole step."""
        shape = result.many.shape
        ways = self._execution.setdefault((shape.batch_size, shape.context), {})
        ways[shape.positions] = result.many.execution
        ways[1] = result.one.execution
        baselines = _times(result.one)
        for module, seconds in _times(result.many).items():
            baseline = baselines.get(module)
            if baseline is not None:
                cell = Cell(module, shape.batch_size, shape.context)
                self._store.add(cell, Pair(shape.positions, seconds, baseline))
                self._changed.add(cell)
        self._layers.add(result.many)
        self._layers.add(result.one)

    def update(self) -> None:
        """Estimate again where pairs have come in."""
        maybe_fail("estimate")
        for cell in sorted(self._changed):
            estimate = estimate_cell(
                cell,
                self._store.pairs(cell),
                self._config.epsilons,
                self._config.min_samples,
                self._execution[cell.batch_size, cell.context],
            )
            if estimate is not None:
                self._estimates[cell] = estimate
                self.model_version += cell.module == Module.MODEL
            give_way()
        self._changed.clear()
        self._findings = Findings(
            tuple(line for found in self._in_order() for line in found.boundaries),
            tuple(point for found in self._in_order() for point in found.curve),
            self._layers.histograms(),
        )

    def _in_order(self) -> Iterable[CellEstimate]:
        """The estimates in order of their cells, with pauses in between."""
        cells = in_pieces(sorted(self._estimates), CELLS_AT_A_TIME)
        return (self._estimates[cell] for cell in cells)

    @property
    def findings(self) -> Findings:
        """What the last update has found."""
        return self._findings

    @property
    def estimates(self) -> Mapping[Cell, CellEstimate]:
        """The latest estimate of each cell; for the thread that updates."""
        return MappingProxyType(self._estimates)

    def model_curves(self) -> Iterator[CurvePoint]:
        """The points of the whole step alone; for the thread that updates."""
        for found in self._in_order():
            if found.cell.module == Module.MODEL:
                yield from found.curve

    def layer_times(self) -> tuple[LayerLatency, ...]:
        """The time of each timed layer's modules, by cell and number of positions."""
        return self._layers.latencies()


def _times(timing: Timing) -> dict[Module, float]:
    return {**timing.modules, Module.MODEL: timing.step_seconds}
