"""What steps have shown: how long they take, and what they accept."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_nfp.draft.acceptance import Acceptance
from vllm_nfp.draft.live.cells import Cell
from vllm_nfp.draft.live.counted import CountedAcceptance
from vllm_nfp.draft.live.forecast import Compared, StepModel
from vllm_nfp.draft.live.steps import CellKey, CellTimes, StepObservation
from vllm_nfp.draft.live.trial import TRIAL_STEPS


class Knowledge:
    """The evidence that choices and trials rest on.

    Args:
        lengths: draft lengths that may be chosen, ascending.
        places: the longest draft.
        widest_graph: tokens of the widest step with a CUDA graph; None: no graphs, or not known.
    """

    def __init__(self, lengths: Sequence[int], places: int, widest_graph: int | None) -> None:
        self.times = CellTimes()
        self.counted = CountedAcceptance(places)
        self.model = StepModel(lengths, widest_graph)

    @property
    def acceptance(self) -> Acceptance | None:
        """As counted; None: not known yet."""
        return self.counted.acceptance

    def add(self, key: CellKey, step: StepObservation) -> None:
        """Take in a step of a cell."""
        if step.draft_length:
            self.counted.add(step.batch_size, step.accepted)
        if step.seconds is not None:
            self.times.add(key, step.draft_length, step.seconds)
            self.model.saw(step.batch_size, step.draft_length, step.seconds)

    def medians(self, key: CellKey) -> list[tuple[int, int, float]]:
        """(draft length, steps, median seconds) of every length with enough steps in a cell."""
        return [
            (length, len(times), times.median)
            for length, times in sorted(self.times.peek(key).items())
            if len(times) >= TRIAL_STEPS
        ]

    def timed(self, key: CellKey, length: int) -> int:
        """Timed steps of a length in a cell that are kept."""
        return len(self.times.peek(key).get(length, ()))

    def last_seconds(self, key: CellKey, length: int, steps: int) -> tuple[float, ...]:
        """Seconds of the last so many timed steps of a length in a cell."""
        known = self.times.peek(key).get(length)
        return () if known is None else known.last(steps)

    def compared(self, key: CellKey, cell: Cell) -> Compared | None:
        """What was compared in a cell; None if the duration of its steps is not known."""
        times = self.times.peek(key)
        for length, relative in cell.relative.items():
            known = times.get(length)
            if known:
                return Compared(key, cell.relative, known.median / relative, cell.place)
        return None
