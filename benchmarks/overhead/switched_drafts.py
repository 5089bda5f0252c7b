"""Speculation of ``switched``: every draft length has its CUDA graphs, and drafts exist."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving import shapes
from benchmarks.serving.speculation import speculative_config

NGRAM = "ngram"
EXTENSION = "benchmarks.overhead.switched_drafts_extension.SwitchedDrafts"


@dataclass(frozen=True, slots=True)
class Drafts:
    """What is drafted.

    Attributes:
        method: ``ngram``, or a head of dummy weights
            (:data:`benchmarks.serving.shapes.DRAFT_HEADS`).
        lengths: ascending; the longest is in force without the control.
        acceptance: of each drafted token of a head, given those before it; n-grams have their own.
    """

    method: str
    lengths: tuple[int, ...]
    acceptance: float

    def flags(self, shape: str, layers: int | None) -> list[str]:
        """``--speculative-config`` of vLLM."""
        longest = self.lengths[-1]
        head = acceptance = None
        if self.method != NGRAM:
            head = shapes.shared_draft_head(shape, self.method, layers)
            acceptance = [self.acceptance] * longest
        config = {
            **speculative_config(self.method, longest, head, acceptance, lookup=4),
            "num_speculative_tokens_per_batch_size": each_length(self.lengths),
        }
        return ["--speculative-config", json.dumps(config)]


def each_length(lengths: Sequence[int]) -> list[list[int]]:
    """A table by batch size that holds every length, so that vLLM captures graphs for each.

    >>> each_length([0, 2, 5])
    [[1, 1, 0], [2, 2, 2], [3, 3, 5]]
    """
    return [[place, place, length] for place, length in enumerate(lengths, start=1)]
