"""The ablation of the live controller: each part can be taken out, and comes back."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import draft_ablation
from benchmarks.draft_plan import LENGTHS
from vllm_nfp.draft.live import cells, counted, proposals
from vllm_nfp.draft.live.trial import Trial

RUN = {(1024, b): {k: 1e-3 * (10 + 0.01 * b * (k + 1)) for k in LENGTHS} for b in (1, 4, 16, 64)}


@pytest.mark.parametrize("part", list(draft_ablation.PARTS))
def test_every_part_can_be_taken_out_and_comes_back(part: str) -> None:
    watched = (
        (counted.CountedAcceptance, "acceptance"),
        (counted.CountedAcceptance, "changed"),
        (Trial, "_ratios"),
        (cells.Cell, "refresh"),
        (proposals, "STALE_SECONDS"),
    )
    before = [vars(owner)[name] for owner, name in watched]
    short = draft_ablation.Scenario(lambda at: [draft_ablation.Stay(at[0], 0.7, 300)])
    with draft_ablation.without(part):
        assert 0.5 < draft_ablation.goodput(short, RUN, (), seed=1) <= 1.0
    assert [vars(owner)[name] for owner, name in watched] == before


def test_acceptance_that_is_never_counted_again_is_noticed() -> None:
    path = [draft_ablation.Stay((1024, 64), a, 1500) for a in (0.9, 0.1)]
    scenario = draft_ablation.Scenario(lambda _: path)
    whole = draft_ablation.goodput(scenario, RUN, (), seed=1)
    with draft_ablation.without("counted acceptance"):
        assert draft_ablation.goodput(scenario, RUN, (), seed=1) < 0.99 * whole
