"""Gathers which experts real steps chose, and says how many distinct ones a step wakes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_nfp.give_way import give_way
from vllm_nfp.principle.counted_routing import active_of, counted_skew, uniform_active
from vllm_nfp.types import ActiveExperts, ExpertRouting

STEPS_KEPT = 64
"""Latest counted steps that answers rest on; bounds the memory, and follows traffic."""
LEAST_STEPS = 8
"""Counted steps before anything is said: one prompt alone must not stand for all traffic."""
MOST_TOKENS = 1024
"""Widest step that is reported: the most tokens that vLLM captures CUDA graphs for."""
ROWS_A_TOKEN = 4
"""A step of T tokens is reported once so many times T were counted: the counted tokens that it is
drawn from must not be nearly all of it."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The experts that tokens of one real step chose."""

    ids: npt.NDArray[np.int32]
    """[layers, tokens, experts per token]; entries outside 0 ... experts - 1 are no experts of the
    model's, such as the zero-computation ones of LongCat."""
    num_experts: int


class ExpertCounts:
    """Counts of the last steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, npt.NDArray[np.int64]]] = deque(maxlen=STEPS_KEPT)
        self._num_experts = 0
        self._per_token = 0
        self._taken = 0
        self._tokens = 0
        self._worked_out = 0
        self._reported: ExpertRouting | None = None

    def add(self, choices: Choices) -> None:
        """Take in a step."""
        layers, rows, self._per_token = choices.ids.shape
        experts = self._num_experts = choices.num_experts
        ids = choices.ids.reshape(layers, -1)
        counts = np.zeros((layers, experts), dtype=np.int64)
        for layer in range(layers):
            chosen = ids[layer]
            known = chosen[(chosen >= 0) & (chosen < experts)]
            counts[layer] = np.bincount(known, minlength=experts)
        self._steps.append((rows, counts))
        self._taken += 1
        self._tokens += rows

    @property
    def report(self) -> ExpertRouting | None:
        """What the kept steps say, as of the last update; None before there are enough of them.

        Any thread may read it.
        """
        return self._reported

    def update(self) -> None:
        """Work out what the kept steps say, if there are new ones; gives way."""
        if self._worked_out != self._taken and len(self._steps) >= LEAST_STEPS:
            self._worked_out, self._reported = self._taken, self._made()

    def _made(self) -> ExpertRouting | None:
        rows = sum(step_rows for step_rows, _ in self._steps)
        counts = np.sum([step_counts for _, step_counts in self._steps], axis=0)
        widths = [1 << octave for octave in range(MOST_TOKENS.bit_length())]
        known = [tokens for tokens in widths if tokens * ROWS_A_TOKEN <= rows]
        if not known:
            return None
        experts, per_token = self._num_experts, self._per_token
        active = {}
        for tokens in known:
            active[tokens] = active_of(counts, rows, tokens)
            give_way()
        if active[1] <= 0.0:
            return None
        return ExpertRouting(
            num_experts=experts,
            experts_per_token=per_token,
            layers=len(counts),
            steps=self._taken,
            tokens=self._tokens,
            skew=counted_skew(experts, active[1], active),
            active=tuple(
                ActiveExperts(tokens, active[tokens], uniform_active(experts, active[1], tokens))
                for tokens in known
            ),
        )
