"""How drafts are made, and what making them costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_nfp.draft.demand import FREE, DraftCost
from vllm_nfp.draft.methods import DRAFT_METHODS, LOOKUPS, Drafts, drafts_of


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a server makes its drafts, as its draft control reports it."""

    methods: frozenset[str] = frozenset()
    """In vLLM's words; several where its engines differ."""
    token_seconds: float | None = None
    """Time of one more drafted token, the median over batch sizes; 0: no step got longer by it;
    None: nothing is known yet."""
    token_seconds_by_batch: tuple[tuple[int, float], ...] = ()
    """(batch size, the same there), ascending; empty: not known by batch size."""

    @property
    def method(self) -> str:
        """The server's method; ngram if it is not known or differs between engines."""
        return next(iter(self.methods)) if len(self.methods) == 1 else "ngram"

    def cost(self, method: str) -> DraftCost | None:
        """What drafts by this method cost on the server; None: not known.

        ``recommend`` and vllm_nfp_recommended_draft_length share this rule: a lookup is free, and a
        drafted token of another method costs what draft control has measured for it. That is 0
        where longer drafts made no step longer: the host's time hides them on a server whose GPU
        waits for the host, as 12 layers of an 8B model do on an H200 (docs/draft-results.md).
        """
        if method in LOOKUPS:
            return FREE
        known = method in DRAFT_METHODS and self.methods <= {method}
        seconds = self.token_seconds if known else None
        if seconds is None or not 0.0 <= seconds < math.inf:
            return None
        note = None if seconds else _hidden(method)
        return DraftCost(seconds_per_token=seconds, by_batch=self.token_seconds_by_batch, note=note)

    def why_unknown(self, method: str) -> str:
        """One sentence on why the cost of this method is not known, and what to give."""
        if method not in DRAFT_METHODS:
            return (
                f"draft_method is needed: the server drafts with {method!r:.60}, whose cost is not "
                f"known: give the closest of {', '.join(DRAFT_METHODS)}, and --draft-cost"
            )
        return (
            f"draft_cost is needed for {method}: give the seconds of a draft step, or "
            f"--draft-share as a fraction of a step without drafts (an EAGLE or MTP step runs "
            f"about one of the model's layers and the LM head), or use a server with "
            f"--nfp-draft-control that has tried two draft lengths"
        )


def _hidden(method: str) -> str:
    return (
        f"each drafted token takes no time with {method}: longer drafts made the server's steps no "
        f"longer, as where the host limits them; if K is too long at large batches, give "
        f"--draft-cost"
    )


UNKNOWN = Drafting()


def cost_of(
    method: str,
    seconds: float | None = None,
    share: float | None = None,
    parallel: bool = False,
) -> DraftCost:
    """The cost of drafts by this method: for each drafted token, or for a step's lookup or pass.

    Args:
        seconds: of a draft step.
        share: the same as a fraction of a step without drafts, t(1).
        parallel: all drafts come from one pass (``parallel_drafting``).

    Raises:
        ValueError: for a cost below 0 or above LARGEST_DRAFT_COST.
    """
    drafts = drafts_of(method, parallel)
    if drafts is Drafts.TOKEN:
        return DraftCost(seconds_per_token=seconds or 0.0, share_per_token=share or 0.0)
    return DraftCost(
        seconds_once=seconds or 0.0,
        share_once=share or 0.0,
        once_at_zero=drafts is Drafts.BLOCK,
    )
