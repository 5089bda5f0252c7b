"""The shapes that can be probed, and how far each is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.cuda_graph import Graph
from vllm_nfp.probe.marks import ModuleMarks
from vllm_nfp.types import Shape

ShapeKey = tuple[int, int]
"""(batch size, positions); the context is no part of it, since graphs fit every context."""


def key_of(shape: Shape) -> ShapeKey:
    """What its batch and its graphs are kept under."""
    return shape.batch_size, shape.positions


@dataclass(slots=True)
class PreparedShape:
    """One (B, N) with its buffers and, on a GPU that serves with FULL graphs, its graphs."""

    batch: ProbeBatch
    warm: bool = False
    """It has run, so that its kernels are loaded and a capture needs no run before it."""
    step_graph: Graph | None = None
    head_graph: Graph | None = None
    hidden: torch.Tensor | None = None
    """Output of the step's graph, where the head is no graph."""
    module_graph: Graph | None = None
    module_marks: ModuleMarks | None = None
    fresh: bool = False
    """Its graphs have not run since they were captured. The first replay of a graph also uploads
    it, which takes up to several times as long as the step itself."""
    busy: bool = False
    """The marks inside its graph have not been read since the last replay."""

    @property
    def full(self) -> bool:
        """Serving would run it as a FULL graph."""
        return self.batch.placement.execution is Execution.FULL

    @property
    def name(self) -> str:
        """For messages."""
        batch = self.batch
        graph = batch.placement.execution
        return f"B={batch.batch_size} N={batch.positions_per_sequence} (CUDA graphs: {graph})"

    def give_up_graphs(self) -> None:
        """Give up the graphs that it has; none may be running."""
        for graph in (self.step_graph, self.head_graph, self.module_graph):
            if graph is not None:
                graph.reset()
        self.step_graph = self.head_graph = self.module_graph = None
        self.module_marks = self.hidden = None


class ShapeTable:
    """The shapes that were made, each with its batch.

    Args:
        build: makes the batch of (batch size, positions).
        times_modules: a shape that needs graphs needs that of the timed modules as well.
    """

    def __init__(self, build: Callable[[int, int], ProbeBatch], times_modules: bool) -> None:
        self._build = build
        self._times_modules = times_modules
        self._made: dict[ShapeKey, PreparedShape] = {}
        self.started = False
        """The time at the start, in which memory may be taken for a moment, is over."""

    def __getitem__(self, key: ShapeKey) -> PreparedShape:
        """The shape, which is made if it is not there."""
        if key not in self._made:
            self._made[key] = PreparedShape(self._build(*key))
        return self._made[key]

    def __iter__(self) -> Iterator[ShapeKey]:
        """The shapes that were made."""
        return iter(self._made)

    def is_complete(self, key: ShapeKey) -> bool:
        """Whether the shape was made and a launch would find all that it needs."""
        shape = self._made.get(key)
        if shape is None:
            return False
        if not shape.full:
            return shape.warm
        return shape.step_graph is not None and (
            shape.module_graph is not None or not self._times_modules
        )

    def is_warm(self, key: ShapeKey) -> bool:
        """Whether the shape was made and has run."""
        return key in self._made and self._made[key].warm

    def clear(self) -> None:
        """Give up all shapes."""
        self._made.clear()
