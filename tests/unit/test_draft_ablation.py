"""The ablation of the live controller: each part can be taken out, and comes back."""

from __future__ import annotations

import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.drafts import ablation as draft_ablation
from benchmarks.drafts.plan import LENGTHS
from benchmarks.drafts.scenarios import (
    SCENARIOS,
    Curves,
    Recording,
    Scenario,
    Stay,
    between,
    goodput,
    tiled,
)
from vllm_nfp.draft.live import cells, counted, proposals
from vllm_nfp.draft.live.trial import Trial

POINTS = {(1024, b): {k: 1e-3 * (10 + 0.01 * b * (k + 1)) for k in LENGTHS} for b in (1, 4, 16, 64)}
RUN = Recording(POINTS, POINTS, {one: () for one in Curves})


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
    short = Scenario(lambda at, _: [Stay(at[0], 0.7, 300)])
    with draft_ablation.without(part):
        assert 0.5 < goodput(short, RUN, seed=1) <= 1.0
    assert [vars(owner)[name] for owner, name in watched] == before


def test_acceptance_that_is_never_counted_again_is_noticed() -> None:
    path = [Stay((1024, 64), a, 1500) for a in (0.9, 0.1)]
    scenario = Scenario(lambda *_: path)
    whole = goodput(scenario, RUN, seed=1)
    with draft_ablation.without("counted acceptance"):
        assert goodput(scenario, RUN, seed=1) < 0.99 * whole


def test_every_scenario_has_a_path() -> None:
    at = [(context, b) for context in (1024, 8192) for b in (1, 4, 16, 32, 64, 128)]
    for scenario in SCENARIOS.values():
        path = scenario.path(at, random.Random(1))
        known = {(8192, b) for b in range(1, 129)} if scenario.between else set(at)
        assert path and {stay.cell for stay in path} <= known
        assert path == scenario.path(at, random.Random(1)), "the same for every part"


def test_a_tile_more_makes_a_stair() -> None:
    found = tiled({(1024, 1): dict.fromkeys(LENGTHS, 1.0)})
    assert found[1024, 16][3] == pytest.approx(1.06), "64 tokens: one tile, and three drafts"
    assert found[1024, 16][4] == pytest.approx(1.58)


def test_a_throttled_gpu_makes_drafts_cost_more() -> None:
    fast, slow = (
        Scenario(lambda at, _, g=g: [Stay(at[3], 0.7, 400, g)]) for g in (1.0, 1000.0)
    )  # fmt: skip
    with_drafts = goodput(fast, RUN, seed=1)
    # Of the configured K = 3 little is left where drafts are so slow.
    assert goodput(slow, RUN, seed=1) < 0.9 * with_drafts


def test_times_between_levels_grow_and_stay_with_their_graphs() -> None:
    levels = {(1024, b): {k: b * (k + 1.0) for k in LENGTHS} for b in (32, 64, 128)}
    levels[1024, 64][8] = levels[1024, 128][8] = 5000.0  # 576 tokens: no graph
    found = between(levels)
    assert {b for _, b in found} == set(range(32, 129))
    assert found[1024, 48][3] == pytest.approx(4 * 48)
    assert found[1024, 56][8] == pytest.approx(9 * 56), "504 tokens are in a graph"
    assert found[1024, 57][8] == 5000.0
