"""Where drafts have ceased to pay, a larger batch gets some only if that they pay is established.

From a batch size on whose steps nothing was measured, a gain may be 1.03 with an interval of 0.69
to 1.54, and the best K by batch size reads 0, 3, 0, 3: noise. So K = 0 stays until another K is
established: its step was measured, other steps were measured that tell most of it, or the 95 %
interval of its predicted gain holds no loss. Nothing else is changed: the first batch sizes of a
table, and shorter drafts at larger batches, rest on the prediction as ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.sharing import shortest_good
from vllm_nfp.types import Basis

Scores = Mapping[int, float]
"""By draft length: the smallest fraction of the best goodput."""


def established_scores(
    ranges: Iterable[tuple[Scores, Sequence[StepCurve]]], demand: Demand
) -> Iterator[Scores]:
    """The scores of each range of batch sizes, without lengths that noise alone speaks for.

    Args:
        ranges: for each, ascending: its scores, and the curves that they are of.
    """
    off = False
    for scores, curves in ranges:
        kept = established(scores, curves, demand) if off else scores
        off = shortest_good(kept, demand.slack) == 0
        yield kept


def established(scores: Scores, curves: Sequence[StepCurve], demand: Demand) -> Scores:
    """Without lengths that may lose to K = 0 on one of these curves, by a prediction alone."""
    return {
        length: score
        for length, score in scores.items()
        if not length or not any(_is_doubtful(curve, demand, length) for curve in curves)
    }


def _is_doubtful(curve: StepCurve, demand: Demand, length: int) -> bool:
    """Whether the interval is known, and holds a loss.

    A prediction without intervals, as of no server, is all that there is: it is taken.
    """
    if curve.basis(length + 1) is not Basis.PREDICTED:
        return False
    lower, upper = demand.gain_interval(curve, length)
    return lower < 1.0 and upper < math.inf
