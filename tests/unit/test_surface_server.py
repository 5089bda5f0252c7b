"""The surface as a server uses it: pairs and steps in, answers out."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_surface import CELLS, POSITIONS, expected, prior

from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.surface import (
    GENERIC,
    RECORDED,
    Baseline,
    Candidate,
    Concern,
    CostSurface,
    Decisions,
    Observations,
    Ratio,
    book,
    boundary,
    generic_prior,
)
from vllm_nfp.surface.prior import Prior
from vllm_nfp.types import Basis, Module, PairResult, Shape, Timing

__all__ = ["prior"]
LAYERS = 32
NO_DRAFTS = Decisions(POSITIONS, (0.1,))


def timing(shape: Shape, step: float, modules: Mapping[Module, float], run: str) -> Timing:
    return Timing(shape, step, 0.0, modules, (), run)


def pair(
    prior: Prior, shape: Shape, error: float = 0.0, level: float = 0.0, run: str = "full"
) -> PairResult:
    """A pair whose log ratios lie by ``error``, and whose log t(1) by ``level``, over the prior."""
    cell = prior(shape.batch_size, shape.context)
    one = {m: math.exp(cell.log_seconds(m)[0] + level) for m in cell.modules}
    many = {m: s * math.exp(expected(prior, m, shape) + error) for m, s in one.items()}
    runs = []
    for seconds, at in ((many, shape), (one, Shape(shape.batch_size, shape.context, 1))):
        step = seconds.pop(Module.MODEL)
        layer = {m: s / LAYERS for m, s in seconds.items()}
        runs.append(timing(at, step, layer, run))
    return PairResult(runs[0], runs[1], True, 0.01)


def test_pairs_move_the_answers_at_an_update_and_not_before(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    before = surface.answers(CELLS, POSITIONS)
    assert set(before) == {(m, *c) for m in prior(1, 1).modules for c in CELLS}
    assert all(set(a.basis) == {Basis.PREDICTED} for a in before.values())
    surface.add_pair(pair(prior, Shape(8, 1024, 8), 0.05), 1.0)
    same = surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024]
    assert same.log_ratio.tolist() == before[Module.MODEL, 8, 1024].log_ratio.tolist()
    assert surface.version == 0
    surface.update(1.0)
    assert surface.version == 1
    after = surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024]
    at = POSITIONS.index(8)
    assert after.log_ratio[at] > same.log_ratio[at] + 0.02
    assert after.basis[at] is Basis.MEASURED
    assert surface.samples(Module.MODEL, Shape(8, 1024, 8)) == 1
    assert surface.samples(Module.MODEL, Shape(8, 1024, 4)) == 0
    surface.update(2.0)
    assert surface.version == 1


def test_a_pair_that_waited_tells_of_modules_alone(prior: Prior) -> None:
    """The wait is in the whole step, not between the marks in a graph."""
    surface, shape = CostSurface(prior, RECORDED), Shape(8, 1024, 8)
    waited = pair(prior, shape, 0.5)
    surface.add_pair(replace(waited, one=replace(waited.one, waited=True)), 1.0)
    surface.update(1.0)
    modules = {m for m in prior(1, 1).modules if surface.samples(m, shape)}
    assert modules == set(prior(1, 1).modules) - {Module.MODEL}
    found = surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024]
    assert found.basis[POSITIONS.index(8)] is not Basis.MEASURED


def test_another_cell_is_asked_beside_the_table(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    surface.add_pair(pair(prior, Shape(8, 1024, 8), 0.05), 1.0)
    surface.update(1.0)
    table = surface.answers(CELLS, POSITIONS)
    live = surface.answers([(7, 900)], POSITIONS)[Module.MODEL, 7, 900]
    assert (live.batch_size, live.context) == (7, 900)
    again = surface.answers(CELLS, POSITIONS)
    assert all(again[key].log_ratio.tolist() == a.log_ratio.tolist() for key, a in table.items())


def test_a_shape_is_measured_from_min_samples_on(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED, min_samples=2)
    at = POSITIONS.index(8)
    bases = []
    for now in (1.0, 2.0):
        surface.add_pair(pair(prior, Shape(8, 1024, 8)), now)
        surface.update(now)
        bases.append(surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024].basis[at])
    assert bases == [Basis.INFERRED, Basis.MEASURED]


def test_a_warm_start_is_inferred_and_moves_the_answers(prior: Prior) -> None:
    shape = Shape(8, 1024, 8)
    known = expected(prior, Module.MODEL, shape) + 0.05
    warm = Observations(
        (Ratio(Module.MODEL, shape, known, 0.002**2, 0),),
        baselines=(Baseline(Module.MODEL, 8, 1024, math.log(0.02), 0.02**2),),
    )
    surface = CostSurface(prior, RECORDED, warm)
    found = surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024]
    at = POSITIONS.index(8)
    assert found.log_ratio[at] == pytest.approx(known, abs=0.01)
    assert found.basis[at] is Basis.INFERRED
    told = surface.seconds_at_one(Module.MODEL, 8, 1024)
    assert told is not None and told[0] == pytest.approx(0.02, rel=0.02)


def test_a_predicted_prior_tells_seconds_and_pairs_correct_them(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    for module in (Module.MODEL, Module.ATTENTION, Module.DENSE_FFN):
        for cell in CELLS:
            layers = 1 if module is Module.MODEL else LAYERS
            said = math.exp(prior(*cell).log_seconds(module)[0]) / layers
            told = surface.seconds_at_one(module, *cell)
            assert told is not None
            assert told[0] == pytest.approx(said) and told[1] < 0.75 * said < 1.3 * said < told[2]
    surface.add_pair(pair(prior, Shape(8, 1024, 8), level=0.2), 1.0)
    surface.update(1.0)
    for module in (Module.MODEL, Module.ATTENTION, Module.DENSE_FFN):
        layers = 1 if module is Module.MODEL else LAYERS
        for cell, reach in (((8, 1024), 0.15), ((32, 4096), 0.6)):
            true = math.exp(prior(*cell).log_seconds(module)[0] + 0.2) / layers
            told = surface.seconds_at_one(module, *cell)
            assert told is not None
            assert told[0] == pytest.approx(true, rel=0.05)
            assert told[1] < true < told[2] and math.log(told[2] / told[1]) < reach


def test_a_generic_prior_tells_no_seconds_before_a_pair(prior: Prior) -> None:
    guess = generic_prior(CapturedGraphs((512,)), 32)
    surface = CostSurface(guess, GENERIC)
    assert surface.seconds_at_one(Module.MODEL, 8, 1024) is None
    surface.add_pair(pair(prior, Shape(8, 1024, 8)), 1.0)
    surface.update(1.0)
    true = math.exp(prior(8, 1024).log_seconds(Module.MODEL)[0])
    told = surface.seconds_at_one(Module.MODEL, 8, 1024)
    assert told is not None and told[0] == pytest.approx(true, rel=0.02)
    there = surface.seconds_at_one(Module.MODEL, 128, 16384)
    assert there is not None
    far = math.exp(prior(128, 16384).log_seconds(Module.MODEL)[0])
    assert there[1] < far < there[2] and there[2] / there[1] > 1.5


def test_modules_that_the_prior_lacks_are_left_out(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    result = pair(prior, Shape(8, 1024, 8), 0.05)
    odd = timing(
        result.many.shape, result.many.step_seconds,
        {**result.many.modules, Module.COMMUNICATION: 1e-3, Module.ATTENTION: 0.0}, "full",
    )  # fmt: skip
    surface.add_pair(PairResult(odd, result.one, True, 0.01), 1.0)
    surface.update(1.0)
    assert surface.left_out == {Module.COMMUNICATION}
    found = surface.answers(CELLS, POSITIONS)
    assert {module for module, _, _ in found} == set(prior(1, 1).modules)
    assert surface.samples(Module.DENSE_FFN, Shape(8, 1024, 8)) == 1


def test_shapes_beyond_the_priors_last_position_are_ignored(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    surface.add_step(Shape(8, 1024, 33), 0.01, 1.0)
    wide = pair(prior, Shape(8, 1024, 32))
    beyond = timing(Shape(8, 1024, 64), 0.1, wide.many.modules, "full")
    surface.add_pair(PairResult(beyond, wide.one, True, 0.01), 1.0)
    surface.update(1.0)
    assert surface.version == 0


def test_doubted_shapes_are_chosen_first(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    candidates = [Candidate(Shape(*cell, n), 0.05) for cell in CELLS for n in POSITIONS[1:]]
    concerns = [Concern(8, 1024, 1.0)]
    odd = Shape(8, 1024, 6)
    for now, n in enumerate((2, 4, 8, 12)):
        surface.add_pair(pair(prior, Shape(8, 1024, n)), float(now))
        surface.add_pair(pair(prior, Shape(8, 4096, n)), float(now))
    surface.update(4.5)
    surface.add_pair(pair(prior, odd, 0.3), 5.0)
    surface.update(5.0)
    chosen = surface.choose(candidates, concerns, NO_DRAFTS, 4)
    assert chosen[0] == odd and len(set(chosen)) == 4
    check = Shape(8, 1024, 8)
    assert chosen[1] == check
    assert surface.choose(candidates, [], NO_DRAFTS, 4) == (odd, check)
    assert surface.choose([], concerns, NO_DRAFTS, 1) == (odd,)


def test_what_it_keeps_is_bounded(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED, pairs_kept=3, shapes_kept=5)
    for turn in range(4):
        for n in POSITIONS[1:]:
            surface.add_pair(pair(prior, Shape(8, 1024, n)), float(turn * 100 + n))
    kept = [surface.samples(Module.MODEL, Shape(8, 1024, n)) for n in POSITIONS[1:]]
    assert kept == [0] * 5 + [1] * 5
    surface.update(500.0)
    assert len(surface.answers(CELLS, POSITIONS)) == 3 * len(CELLS)


def test_a_boundary_follows_what_was_measured(prior: Prior) -> None:
    surface = CostSurface(prior, RECORDED)
    for _ in range(3):
        for n in POSITIONS[1:]:
            surface.add_pair(pair(prior, Shape(8, 1024, n), 0.02 if n < 8 else 0.3), 1.0)
    surface.update(1.0)
    found = surface.answers(CELLS, POSITIONS)[Module.MODEL, 8, 1024]
    assert boundary(found, 0.1).positions == 6
    assert np.all(np.diff(found.positions) > 0)


def test_a_publish_and_a_choice_give_way(prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of pauses is looked at, not the time, as in test_give_way.py."""
    surface = CostSurface(prior, RECORDED)
    shapes = [Shape(*cell, n) for cell in CELLS for n in POSITIONS[1:]]
    for shape in shapes:
        surface.add_pair(pair(prior, shape), 1.0)
    candidates = [Candidate(shape, 0.05) for shape in shapes]
    concerns = [Concern(*cell, 0.25) for cell in CELLS]
    slept: list[float] = []
    counts: list[int] = []

    def work() -> None:
        surface.update(1.0)
        counts.append(len(slept))
        surface.answers(CELLS, POSITIONS)
        counts.append(len(slept))
        surface.choose(candidates, concerns, NO_DRAFTS, 4)
        counts.append(len(slept))

    monkeypatch.setattr("vllm_nfp.give_way.time.sleep", slept.append)
    monkeypatch.setattr("vllm_nfp.give_way.LEAST_SECONDS", 0.0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    updated, answered, chosen = np.diff([0, *counts])
    assert updated > len(shapes) * 3 / 12 and answered > 20 and chosen > 10


def test_a_pair_of_a_known_shape_computes_no_covariance(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    surface = CostSurface(prior, RECORDED)
    shape = Shape(8, 1024, 8)
    for now in range(8):
        surface.add_pair(pair(prior, shape), float(now))
        surface.add_pair(pair(prior, Shape(8, 4096, 4)), float(now))
    surface.update(8.0)
    surface.answers(CELLS, POSITIONS)
    surface.add_pair(pair(prior, shape), 9.0)
    made: list[int] = []
    whole = book.covariance

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return whole(*arguments)

    monkeypatch.setattr(book, "covariance", counted)
    surface.update(9.0)
    surface.answers(CELLS, POSITIONS)
    assert surface.version == 2 and not made
