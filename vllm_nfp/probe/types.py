"""The plain data that passes between the engine, the probe loop and the estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_nfp.estimate import Module


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """A decode step: ``batch_size`` sequences, each ``positions`` new after ``context`` tokens."""

    batch_size: int
    context: int
    positions: int


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Time of one module of one decoder layer."""

    layer: int
    module: Module
    seconds: float


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one shape."""

    shape: Shape
    step_seconds: float
    """The whole step: forward pass and LM head over all positions."""
    lm_head_seconds: float
    modules: Mapping[Module, float]
    """Mean over the timed layers, for each module that the model has."""
    layers: tuple[LayerTime, ...]
    execution: str
    """full, piecewise or none: how the step ran."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """A run at N positions and one at 1, side by side in random order."""

    many: Timing
    one: Timing
    baseline_first: bool
    cost_seconds: float
    """All that the pair took from the device, or from the host if that was more."""


@dataclass(frozen=True, slots=True)
class EngineStep:
    """A real step, as every rank sees it in the scheduler's output."""

    batch_size: int
    context: int
    """Mean tokens in the KV cache of a sequence."""
    positions: int
    """Largest number of positions of a sequence."""
    decode: bool
    """No prompt is being read: probing delays no first token."""
    fullness: float = 0.0
    """Running sequences over the most that may run at a time."""
    waiting: bool = False
    """A sign that requests wait: sequences were preempted, or a limit of the step was reached."""


class ShapeRefusedError(RuntimeError):
    """This shape cannot be run here; the message says why, and the probe leaves it out."""


class RefusedForNowError(ShapeRefusedError):
    """This shape cannot be run at the moment, as while memory is short; it is tried again later."""


class ProbeEngine(Protocol):
    """Runs probe shapes on the serving stream. One implementation wraps vLLM."""

    def refusal(self, batch_size: int, context: int) -> str | None:
        """Why no step of this batch size and context can be probed; None if one can."""
        ...

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Position counts that can be probed in the cell, ascending, beginning with 1."""
        ...

    def ready(self, shape: Shape) -> bool:
        """Whether a launch of this shape would find all that it needs."""
        ...

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        """Make one piece of what the shapes still lack: a warm-up run, or one graph.

        Shapes that are not among these may lose their graphs for it.

        Raises:
            RefusedForNowError: if they cannot be made ready at the moment.
            ShapeRefusedError: if they can never be made ready here.
        """
        ...

    def launch(self, shape: Shape, draw: int = 0) -> Any:
        """Enqueue one run and return a ticket for its timing; waits for nothing.

        Args:
            draw: which tokens to run on; runs of the same number share theirs as far as they go.

        Raises:
            RefusedForNowError: if the shape cannot be run at the moment.
            ShapeRefusedError: if it can never be run here.
        """
        ...

    def poll(self, ticket: Any) -> Timing | None:
        """The timing once the device has passed it; None before.

        A ticket that has given its timing has given back its marks: it must not be polled again.
        """
        ...
