"""A drafter: its layers, the products around them, and how often vLLM runs them in a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_nfp.principle.shape import Gemm, ModelShape

Runs = Literal["chain", "modules", "parallel"]
"""How vLLM 0.32 drafts K tokens (``v1/worker/gpu/spec_decode``):

- ``chain``: one run over all K + 1 positions of the step, then K - 1 runs over one position of each
  sequence; the first run is made at K = 0 too. The LM head sees one position of each sequence.
- ``modules``: several prediction layers, each run over all K + 1 positions.
- ``parallel``: one run over K + 1 positions drafts all tokens, and the LM head sees K of them.
"""


class DrafterError(ValueError):
    """A drafter that cannot be predicted; one sentence says why and what to give instead."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """What drafts.

    Attributes:
        shape: its layers and its LM head, as one rank of the target's holds them.
        runs: how often they run.
        once: matrices that see every position of the step once, before the first run.
        each: matrices that see the tokens of each run.
        assumptions: what the config leaves open, one sentence each.
    """

    shape: ModelShape
    runs: Runs
    once: tuple[Gemm, ...] = ()
    each: tuple[Gemm, ...] = ()
    assumptions: tuple[str, ...] = ()

    def calls(self, draft_length: int) -> int:
        """Runs of the drafter in a step of so many drafted tokens; one at K = 0 too."""
        return 1 if self.runs == "parallel" else max(1, draft_length)
