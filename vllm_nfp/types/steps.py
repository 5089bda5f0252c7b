"""What the engine ran: real steps, and the runs of a probe with their times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_nfp.types.shapes import Module, Shape


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
    waited: bool = False
    """The device may have waited inside the step for its graph to be launched: the step's time then
    holds that wait. Times of modules do not: their marks lie inside a graph."""
    written: bool = True
    """Each of its sequences read the context of a real one. True as well where that does not
    matter, which is for models without experts."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """A run at N positions and one at 1, side by side in random order."""

    many: Timing
    one: Timing
    baseline_first: bool
    cost_seconds: float
    """All that the pair took from the device, or from the host if that was more."""

    @property
    def waited(self) -> bool:
        """One of the steps may hold a wait for its launch: only modules can be compared."""
        return self.many.waited or self.one.waited

    @property
    def written(self) -> bool:
        """Each sequence of both runs read the context of a real one, or it does not matter.

        The run at one position reads no more of a context than that at many.
        """
        return self.many.written


@dataclass(frozen=True, slots=True)
class EngineStep:
    """A real step, as every rank sees it in the scheduler's output."""

    batch_size: int
    context: int
    """Mean tokens in the KV cache of a sequence."""
    positions: int
    """Positions per sequence: the mean, rounded, where sequences have unequal numbers."""
    decode: bool
    """No prompt is being read: probing delays no first token."""
    fullness: float = 0.0
    """The larger of two fractions: running sequences of --max-num-seqs, and their tokens of what
    the KV cache holds."""
    full: bool = False
    """It has as many tokens as a step may have, so that some may be left for the next one."""
    preempted: bool = False
    """Sequences were preempted for it: the KV cache is full."""
    tokens: int | None = None
    """All tokens that it runs; None: ``positions`` for each sequence."""

    @property
    def mean_positions(self) -> float:
        """Positions per sequence, not rounded."""
        return self.positions if self.tokens is None else self.tokens / self.batch_size

    def trimmed(self, tokens: int) -> EngineStep:
        """The same step once vLLM has cut drafts, so that it runs so many tokens."""
        return replace(self, positions=mean_of(tokens, self.batch_size), tokens=tokens)


def mean_of(tokens: int, batch_size: int) -> int:
    """Positions per sequence, rounded; at least 1.

    >>> mean_of(40, 16), mean_of(39, 16), mean_of(3, 16)
    (3, 2, 1)
    """
    return max(1, (2 * tokens + batch_size) // (2 * batch_size))


class ShapeRefusedError(RuntimeError):
    """This shape cannot be run here; the message says why, and the probe leaves it out."""


class RefusedForNowError(ShapeRefusedError):
    """This shape cannot be run at the moment, as while memory is short; it is tried again later."""
