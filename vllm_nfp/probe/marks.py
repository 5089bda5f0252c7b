"""Marks on the stream around the parts of a run, and the times that they give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vllm_nfp.timing import Clock, Mark
from vllm_nfp.types import LayerTime, Module, Shape, Timing

LEAST_SECONDS = 1e-9
"""Of a module that takes no longer than a mark."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Marks around one call of one module."""

    layer: int
    module: Module
    start: Mark
    end: Mark


@dataclass(slots=True)
class ModuleMarks:
    """The marks of one run of the timed modules."""

    intervals: list[Interval] = field(default_factory=list)
    empty: tuple[Mark, Mark] | None = None
    """Two marks with nothing between them: what a mark itself costs."""

    @property
    def all(self) -> Iterable[Mark]:
        """Each once: where a collective splits a module, two intervals share a mark."""
        marks = list(self.empty or ())
        marks += [mark for each in self.intervals for mark in (each.start, each.end)]
        return dict.fromkeys(marks)


@dataclass(frozen=True, slots=True)
class StepMarks:
    """The marks of one run of the whole step."""

    start: Mark
    after_forward: Mark
    end: Mark
    waited: bool = False
    """The device was past the start before the step's graph was launched."""

    @property
    def all(self) -> Iterable[Mark]:
        """Each once."""
        return (self.start, self.after_forward, self.end)


def release(clock: Clock, *marks: StepMarks | ModuleMarks) -> None:
    """Give marks back to the clock."""
    for each in marks:
        for mark in each.all:
            clock.release(mark)


def timing_of(
    clock: Clock,
    shape: Shape,
    step: StepMarks,
    modules: ModuleMarks,
    execution: str,
    written: bool,
) -> Timing:
    """The times of a run whose marks the device has passed.

    Args:
        execution: how the step ran.
        written: each sequence read the context of a real one, or it does not matter.
    """
    own_cost = clock.seconds(*modules.empty) if modules.empty else 0.0
    # A layer may call a module more than once: its calls add up.
    by_layer: dict[tuple[int, Module], float] = defaultdict(float)
    for interval in modules.intervals:
        seconds = clock.seconds(interval.start, interval.end) - own_cost
        by_layer[interval.layer, interval.module] += max(seconds, LEAST_SECONDS)
    layers = tuple(LayerTime(layer, m, seconds) for (layer, m), seconds in by_layer.items())
    return Timing(
        shape=shape,
        step_seconds=clock.seconds(step.start, step.end),
        lm_head_seconds=clock.seconds(step.after_forward, step.end),
        modules=_means(layers),
        layers=layers,
        execution=execution,
        waited=step.waited,
        written=written,
    )


def _means(times: Sequence[LayerTime]) -> dict[Module, float]:
    grouped: dict[Module, list[float]] = defaultdict(list)
    for time_of_layer in times:
        grouped[time_of_layer.module].append(time_of_layer.seconds)
    return {module: sum(values) / len(values) for module, values in grouped.items()}


class IntervalRecorder:
    """Turns edges into intervals: a collective inside a module splits the module's in two.

    Args:
        mark: records a mark.
        intervals: takes what is found.
    """

    def __init__(self, mark: Callable[[], Mark], intervals: list[Interval]) -> None:
        self._mark = mark
        self._intervals = intervals
        self._layer: int | None = None
        self._open: dict[tuple[int, Module], Mark] = {}
        self._collective: Mark | None = None

    def on_layer(self, layer: int | None) -> None:
        """A timed layer begins, or has ended."""
        self._layer = layer

    def on_module(self, layer: int, module: Module, is_start: bool) -> None:
        """A module begins or has ended."""
        mark = self._mark()
        if is_start:
            self._open[layer, module] = mark
        else:
            self._add(layer, module, self._open.pop((layer, module)), mark)

    def on_collective(self, is_start: bool) -> None:
        """A collective begins or has ended; those outside the timed layers are not counted."""
        if self._layer is None:
            return
        mark = self._mark()
        if is_start:
            self._collective = mark
            for (layer, module), begun in self._open.items():
                self._add(layer, module, begun, mark)
        elif self._collective is not None:
            self._add(self._layer, Module.COMMUNICATION, self._collective, mark)
            self._collective = None
            self._open.update(dict.fromkeys(self._open, mark))

    def _add(self, layer: int, module: Module, start: Mark, end: Mark) -> None:
        self._intervals.append(Interval(layer, module, start, end))
