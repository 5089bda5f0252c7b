"""What a forecast must promise to be worth a trial.

The result of a trial stands for itself: weighing it with its forecast changed goodput by 0.1 % at
most in every scenario of benchmarks/drafts/ablation.py, and so did learning how far forecasts are
off (docs/draft-control.md).
"""

from __future__ import annotations

from vllm_nfp.draft.live.trial import Basis

LEAST_PROMISE = {Basis.FAR: 0.67, Basis.BESIDE: 0.88}
"""Fraction of the best known goodput that a length must promise, by what its forecast rests on. One
bar of 0.95 for both costs 2.0 % ("room for doubt by basis", benchmarks/drafts/ablation.py)."""
LEAST_WIDE_PROMISE = 0.6
"""The same with credit to spare, whatever it rests on. It is this low because a batch just beyond
the edge of a stair takes 1.5 times as long as its measured neighbour ("unlikely lengths with credit
to spare")."""


def least_promise(basis: Basis, wide: bool) -> float:
    """Fraction of the best goodput that a forecast must promise to be worth a trial.

    Args:
        wide: there is credit to spare, also for unlikely lengths.
    """
    return LEAST_WIDE_PROMISE if wide else LEAST_PROMISE[basis]
