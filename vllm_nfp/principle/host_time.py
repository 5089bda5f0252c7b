"""Time that the host adds to the GPU's: of a step, and of each run of a drafter.

Predicted steps are GPU time. An engine takes as long if its host runs ahead of the GPU: then a
step is bound from below alone, by what the host needs for one. Where the host waits for the GPU in
each step, its work is exposed and adds up, with every run of a drafter anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.terms import FloatArray


@dataclass(frozen=True, slots=True)
class HostTime:
    """Seconds of the host beside those of the GPU.

    Attributes:
        step_seconds: least time from one step to the next in an engine without a drafter.
        draft_step_seconds: the same in an engine that speculates.
        exposed_seconds: of every step, beside the GPU's time.
        draft_call_seconds: of each run of a drafter, beside the GPU's time.
        source: where the figures come from, for people.
    """

    step_seconds: float
    draft_step_seconds: float
    exposed_seconds: float
    draft_call_seconds: float
    source: str

    def engine_seconds(
        self,
        gpu_seconds: FloatArray,
        draft_calls: FloatArray | int = 0,
        draft_gpu_seconds: FloatArray | float = 0.0,
        speculates: bool = False,
    ) -> FloatArray:
        """Time from one step of the engine to the next.

        Args:
            gpu_seconds: of verification, shape [n].
            draft_calls: runs of the drafter in the step: K of a head that drafts token by token, 1
                where one run drafts all, 0 of n-grams.
            draft_gpu_seconds: of all these runs together.
            speculates: whether the engine has a drafter of any kind.
        """
        least = self.draft_step_seconds if speculates else self.step_seconds
        calls = np.asarray(draft_calls) * self.draft_call_seconds
        seconds: FloatArray = np.maximum(
            least, gpu_seconds + draft_gpu_seconds + self.exposed_seconds + calls
        )
        return seconds


ONE_RANK = HostTime(
    step_seconds=1.5e-3,
    draft_step_seconds=1.9e-3,
    exposed_seconds=0.0,
    draft_call_seconds=0.03e-3,
    source="own runs of vLLM 0.32 on an H100 (2026-11-26): the shortest steps, and what a token "
    "drafted by EAGLE-3 takes beyond its predicted GPU time",
)
"""The host runs ahead: 121 of 125 steps took within 5 % of the GPU's time (docs/draft-results.md).
Nine layers of Qwen3-30B-A3B with one sequence took 1.5 ms without a drafter and 1.9 ms with one. A
drafted token took 0.01 to 0.055 ms, in the median 0.03, more than :mod:`principle.drafter` predicts
for the GPU: Qwen3-8B and Qwen3-30B-A3B, up to 32 sequences (test_principle_drafter.py)."""
SEVERAL_RANKS = HostTime(
    step_seconds=ONE_RANK.step_seconds,
    draft_step_seconds=ONE_RANK.draft_step_seconds,
    exposed_seconds=0.3e-3,
    draft_call_seconds=1.2e-3,
    source="public reports of EAGLE on two GPUs under SGLang (SpecForge#339, fastrl#7); vLLM's own "
    "was not measured",
)
"""Qwen3-30B-A3B on two H100: 4.49 ms without a drafter, where 4.17 are predicted; 11.6 ms with four
runs of the drafter, of which some 6.6 are the GPU's. Qwen2.5-7B on two H20: 3.6 ms for three."""


def host_time(ranks: int) -> HostTime:
    """The host's time for an engine of so many ranks.

    Args:
        ranks: tensor parallel times data parallel ranks, 1 or more.
    """
    return ONE_RANK if ranks == 1 else SEVERAL_RANKS
