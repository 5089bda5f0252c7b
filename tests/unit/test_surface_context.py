"""Models with experts: positions of a sequence share them, where KV blocks have content."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_surface import POSITIONS
from test_surface_server import pair

from benchmarks.serving.shapes import SHAPES
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.surface import (
    RECORDED,
    Candidate,
    Concern,
    CostSurface,
    Decisions,
    Pool,
    Prior,
    predicted_prior,
    rank,
    recorded_for,
)
from vllm_nfp.surface.conditioning import Conditioning
from vllm_nfp.surface.observations import Observations
from vllm_nfp.surface.parts import Part
from vllm_nfp.surface.prior import bent
from vllm_nfp.surface.rows import rows_at
from vllm_nfp.surface.whole_step import INDEPENDENCE, Bend, whole_step, without_content
from vllm_nfp.types import Basis, Module, PairResult, Shape

CONFIG = SHAPES["qwen3-30b-a3b"]
SHAPE = Shape(1, 1024, 32)
CELL = (1, 1024)
AT = POSITIONS.index(32)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return predicted_prior(shape_from_config(CONFIG), target_of("H200"), Serving(), 32)


@pytest.fixture
def surface(prior: Prior) -> CostSurface:
    return CostSurface(prior, recorded_for(shape_from_config(CONFIG)))


def bare(measured: PairResult) -> PairResult:
    """The pair as if the KV blocks that it read had no content."""
    many, one = (replace(run, written=False) for run in (measured.many, measured.one))
    return replace(measured, many=many, one=one)


def test_positions_of_one_sequence_activate_fewer_experts_than_as_many_sequences(
    prior: Prior,
) -> None:
    one, many = prior(1, 1024), prior(32, 1024)
    assert one.seconds[Part.MOE_FFN, 31] == pytest.approx(many.seconds[Part.MOE_FFN, 0], rel=0.01)
    assert one.log_step[31] < one.bare.log_seconds[31] - 0.05
    assert one.log_step[0] == one.bare.log_seconds[0], "one position shares with nobody"
    assert many.log_step[0] == many.bare.log_seconds[0], "sequences do not share a context"


def test_a_model_without_experts_does_not_ask_for_content() -> None:
    dense = predicted_prior(shape_from_config(SHAPES["qwen3-8b"]), target_of("H200"), Serving(), 32)
    cell = dense(8, 1024)
    assert cell.log_step.tolist() == cell.bare.log_seconds.tolist()
    assert not cell.step.shares[Part.CONTEXT].any()


def test_the_share_of_the_context_is_the_derivative_by_independence(prior: Prior) -> None:
    seconds, alike = prior(2, 1024).seconds, prior(2, 1024).alike
    share = whole_step(seconds, alike).shares[Part.CONTEXT]
    found = [
        whole_step(seconds, alike, Bend(independence=INDEPENDENCE + moved)).log_seconds
        for moved in (-0.005, 0.005)
    ]
    slope = (found[1] - found[0]) / 0.01
    at = [0, 1, 3, 7, 15, 23]
    assert share[at] == pytest.approx(slope[at], rel=0.1, abs=0.01)


def test_rows_without_content_weigh_the_routing_and_others_the_context(prior: Prior) -> None:
    asked = [Shape(1, 1024, n) for n in (1, 2, 8, 32)]
    rows, expected = rows_at(prior, [Module.MODEL] * 4, asked, False, [False] * 4)
    share = np.array([prior(1, 1024).bare.shares[Part.MOE_FFN, s.positions - 1] for s in asked])
    assert rows.weights[:, 0, Part.ROUTING] == pytest.approx(share)
    assert not rows.weights[:, 0, Part.CONTEXT].any()
    assert expected == pytest.approx(prior(1, 1024).bare.log_seconds[[0, 1, 7, 31]])
    rows, _ = rows_at(prior, [Module.MODEL] * 4, asked, False)
    assert not rows.weights[:, 0, Part.ROUTING].any()
    assert rows.weights[0, 0, Part.CONTEXT] == 0.0
    assert (rows.weights[1:, 0, Part.CONTEXT] > 0.05).all()
    alone, _ = rows_at(prior, [Module.MOE_FFN] * 4, asked, False, [False] * 4)
    assert not alone.weights[:, 0, (Part.ROUTING, Part.CONTEXT)].any()
    assert not without_content(prior(1, 1024).seconds).shares[Part.CONTEXT].any()


def test_what_a_pair_without_content_can_tell(surface: CostSurface, prior: Prior) -> None:
    """How alike positions of a sequence are stays open; a pair with content tells it."""
    widths = []
    ratio = math.exp(prior(*CELL).bare.log_seconds[31] - prior(*CELL).bare.log_seconds[0])
    for with_content in (False, True):
        measured = pair(prior, SHAPE, 0.0)
        one = measured.one.step_seconds
        measured = replace(measured, many=replace(measured.many, step_seconds=ratio * one))
        surface.add_pair(measured if with_content else bare(measured), 1.0)
        surface.update(1.0)
        found = surface.answers([CELL], POSITIONS)[Module.MODEL, *CELL]
        lower, upper = (ends[AT] for ends in found.interval)
        widths.append(math.log(upper / lower))
        assert lower < ratio < upper
        assert (found.basis[AT] is Basis.MEASURED) is with_content
    assert widths[0] > 4.0 * widths[1]


@pytest.mark.parametrize("independence", [0.2, 1.05])
def test_a_few_pairs_tell_how_alike_positions_are_everywhere(
    surface: CostSurface, prior: Prior, independence: float
) -> None:
    """Pairs of one sequence, far from the expected share; a batch is predicted on a bent curve."""
    truth = bent(prior, 0.0, Bend(independence=independence))
    for positions in (2, 8, 32):
        surface.add_pair(pair(truth, Shape(1, 1024, positions), 0.0), 1.0)
    surface.update(1.0)
    for batch_size in (1, 4, 16):
        cell = (batch_size, 1024)
        found = surface.answers([cell], POSITIONS)[Module.MODEL, *cell]
        told = np.array(POSITIONS) - 1
        true = np.exp(truth(*cell).log_step - truth(*cell).log_step[0])[told]
        assert np.abs(np.log(found.ratio / true)).max() < 0.05
        lower, upper = found.interval
        assert ((lower <= true) & (true <= upper)).all()


def test_what_is_expected_of_positions_stays_without_content(
    surface: CostSurface, prior: Prior
) -> None:
    """No pair on KV blocks without content tells how alike positions of a sequence are."""
    before = surface.answers([CELL], POSITIONS)[Module.MODEL, *CELL].ratio
    truth = bent(prior, 0.0, Bend(independence=0.35))
    for positions in (2, 8, 32):
        measured = pair(truth, Shape(1, 1024, positions), 0.0)
        step = math.exp(prior(*CELL).bare.log_seconds[positions - 1])
        many = replace(measured.many, step_seconds=step)
        one = replace(measured.one, step_seconds=math.exp(prior(*CELL).bare.log_seconds[0]))
        surface.add_pair(bare(replace(measured, many=many, one=one)), 1.0)
    surface.update(1.0)
    after = surface.answers([CELL], POSITIONS)[Module.MODEL, *CELL].ratio
    assert after == pytest.approx(before, rel=0.02)


def test_content_takes_the_place_of_none_and_is_not_given_up() -> None:
    pool, many = Pool(routed=True), {Module.MODEL: 2.0, Module.MOE_FFN: 3.0}
    one = {Module.MODEL: 1.0, Module.MOE_FFN: 1.0}
    pool.add_pair(SHAPE, many, one, 0.0, content=False)
    [ratio] = [r for r in pool.compressed(0.0).ratios if r.module is Module.MODEL]
    assert not ratio.content
    assert not pool.compressed(0.0).baselines[0].content
    assert all(r.content for r in pool.compressed(0.0).ratios if r.module is Module.MOE_FFN)
    pool.add_pair(SHAPE, {**many, Module.MODEL: 1.5}, one, 1.0)
    pool.add_pair(SHAPE, many, one, 2.0, content=False)
    seen = pool.compressed(2.0)
    [ratio] = [r for r in seen.ratios if r.module is Module.MODEL]
    assert ratio.content
    assert ratio.log_ratio == pytest.approx(math.log(1.5))
    assert pool.samples(Module.MODEL, SHAPE) == 1
    assert pool.samples(Module.MOE_FFN, SHAPE) == 3
    assert all(one.content for one in seen.baselines)


def test_the_first_content_is_no_change_of_the_machine(surface: CostSurface, prior: Prior) -> None:
    shapes = [Shape(1, 1024, n) for n in (8, 12, 16, 32)]
    for turn in range(3):
        for shape in shapes:
            surface.add_pair(bare(pair(prior, shape, 0.3)), float(turn))
    surface.update(3.0)
    for turn in range(3, 6):
        for shape in shapes:
            surface.add_pair(pair(prior, shape, -0.1), float(turn))
        surface.update(float(turn))
    assert surface.jumps == 0


def test_a_model_without_experts_counts_all_pairs_as_with_content() -> None:
    dense = predicted_prior(shape_from_config(SHAPES["qwen3-8b"]), target_of("H200"), Serving(), 32)
    surface = CostSurface(dense, RECORDED)
    surface.add_pair(bare(pair(dense, SHAPE, 0.05)), 1.0)
    surface.update(1.0)
    found = surface.answers([CELL], POSITIONS)[Module.MODEL, *CELL]
    assert found.basis[AT] is Basis.MEASURED


def test_of_two_pairs_the_one_with_content_is_worth_more(prior: Prior) -> None:
    hyper = recorded_for(shape_from_config(CONFIG))
    posterior = Conditioning(prior, hyper).posterior(Observations())
    surface = CostSurface(prior, hyper)
    decisions = Decisions(POSITIONS, (0.05, 0.1, 0.2))
    known = surface.answers([CELL], POSITIONS)
    asked = [Candidate(Shape(1, 1024, 4), 0.02, False), Candidate(Shape(1, 1024, 4), 0.02, True)]
    best = rank(posterior, known, asked, [Concern(*CELL, 1.0)], decisions, lambda _: 0.01, 1)
    assert best == (asked[1],)
