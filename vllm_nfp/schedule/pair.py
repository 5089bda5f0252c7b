"""A pair of runs, as it is launched."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types import Shape


def both(target: Shape) -> tuple[Shape, Shape]:
    """The baseline at one position, and the target itself."""
    return Shape(target.batch_size, target.context, 1), target


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its baseline, in the order of their launch."""

    target: Shape
    baseline_first: bool
    draw: int = 0
    """Which tokens both run on."""

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """The two runs in the order in which they are launched."""
        one, many = both(self.target)
        return (one, many) if self.baseline_first else (many, one)
