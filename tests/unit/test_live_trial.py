"""Trials of a draft length, and forecasts of what it takes before it is tried."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from vllm_nfp.draft import StepCurve
from vllm_nfp.draft.live.forecast import Compared, StepModel
from vllm_nfp.draft.live.promise import least_promise
from vllm_nfp.draft.live.steps import cell_of
from vllm_nfp.draft.live.trial import (
    CLEAR_STEPS,
    MOST_PASSED,
    MOST_TRIAL_STEPS,
    TRIAL_STEPS,
    Basis,
    Trial,
)
from vllm_nfp.types import Basis as CurveBasis

LENGTHS = (0, 1, 2, 3, 4, 6, 8)


def trial(tokens: float = 1.0, before: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Trial:
    return Trial(4, 3, tokens, None, Basis.FAR, before)


def turns(tried: Trial, *seconds: tuple[float, float], steps: int = 3) -> Trial:
    """Turns of the length and of the one in force, each of so many steps of these times."""
    for its, other in seconds:
        for _ in range(steps):
            tried.add(4, its)
        for _ in range(steps):
            tried.add(3, other)
    return tried


def test_the_ratio_is_of_turns_side_by_side() -> None:
    # The host turns slow after the first turn of the second pair, for both alike.
    tried = turns(trial(), (1.2, 1.0), (1.2, 1.4), (1.2 * 1.4, 1.4))
    assert tried.ratio == pytest.approx(1.2)
    assert tried.complete
    assert tried.timed(4) == tried.timed(3) == 9, "the steps before do not count"


def test_steps_of_other_lengths_are_left_out() -> None:
    tried = trial()
    tried.add(8, 99.0)
    assert tried.timed(8) == 0
    assert not tried.complete


def test_far_apart_on_both_sides_ends_a_trial_early() -> None:
    assert turns(trial(), (2.0, 1.0)).complete, "twice as slow"
    assert turns(trial(tokens=2.0), (1.0, 1.0)).complete, "twice the tokens in the same time"
    assert not turns(trial(), (1.2, 1.0)).complete
    assert not turns(trial(), (2.0, 1.0), steps=CLEAR_STEPS - 1).complete


def test_a_slow_spell_at_one_turn_is_not_taken_for_a_slow_length() -> None:
    spell_ends_after_it = trial(before=(1.4, 1.4, 1.4))
    assert not turns(spell_ends_after_it, (1.4, 1.0)).complete
    assert not turns(trial(), (1.4, 1.4)).complete, "it began with its turn"


def test_one_bad_turn_of_few_leaves_a_trial_open() -> None:
    """It is in two of three pairs, which agree on a wrong ratio."""
    tried = trial(tokens=2.0)
    for length, seconds, steps in ((4, 3.2, 4), (3, 2.0, TRIAL_STEPS), (4, 3.2, 4)):
        for _ in range(steps):
            tried.add(length, seconds)
    assert tried.ratio == pytest.approx(1.6)
    assert not tried.complete
    turns(tried, (3.2, 1.0), (3.2, 1.0))
    assert tried.complete
    assert tried.ratio == pytest.approx(3.2)


def test_without_steps_from_before_nothing_is_clear_after_one_turn() -> None:
    assert not turns(trial(before=()), (9.0, 1.0)).complete


def test_as_long_as_acceptance_is_unknown_nothing_is_clear() -> None:
    tried = turns(trial(tokens=math.nan), (9.0, 1.0))
    assert not tried.complete
    assert tried.result((1, 1024), None).worth is None
    assert turns(tried, (9.0, 1.0), (9.0, 1.0)).complete


def test_steps_that_scatter_are_timed_for_longer() -> None:
    def steps(scatter: float, tokens: float) -> int:
        rng, tried = random.Random(2), trial(tokens)
        while not tried.complete:
            for length, seconds in ((4, 1.1), (3, 1.0)):
                for _ in range(3):
                    tried.add(length, seconds * rng.lognormvariate(0.0, scatter))
        assert tried.ratio == pytest.approx(1.1, rel=3 * scatter)
        return tried.timed(4)

    assert steps(0.001, 1.1) <= TRIAL_STEPS + 2
    assert 2 * TRIAL_STEPS < steps(0.2, 1.1) <= MOST_TRIAL_STEPS + 2
    assert steps(0.05, 0.9) < steps(0.2, 1.1), "the further apart, the sooner it is known"


def test_a_trial_whose_steps_cannot_be_timed_is_given_up() -> None:
    tried = trial()
    while tried.patient:
        tried.steps += 1
    assert tried.steps == 64


def test_a_trial_is_waited_for_where_one_step_in_ten_can_be_timed() -> None:
    tried, steps = trial(), 0
    while not tried.complete:
        assert tried.patient
        for length in (4, 3):
            for _ in range(4):
                steps += 1
                tried.saw(length, (1.1 if length == 4 else 1.0) if steps % 9 == 0 else None)
    assert tried.ran > 60
    assert tried.timed(4) >= TRIAL_STEPS


def test_a_turn_ends_after_steps_that_tell_nothing_and_a_trial_after_many() -> None:
    tried = trial()
    assert [tried.passed(4) for _ in range(4)] == [False, False, False, True]
    assert not tried.its_turn
    assert tried.ran == 4
    tried.saw(4, None)  # a decode step: those that tell nothing are counted in a row
    assert not any(tried.passed(4) for _ in range(3))
    while tried.patient:
        tried.passed(4)
    assert tried.ran == MOST_PASSED + 1
    tried.saw(4, 1.0)
    assert tried.patient, "it has told something"


def test_what_a_trial_has_seen_so_far_is_a_hint() -> None:
    assert trial().hint is None
    tried = trial()
    tried.saw(4, 3.0)
    assert tried.hint == pytest.approx(3.0)


def curve(batch_size: int, slope: float, largest: int = 9) -> StepCurve:
    counts = range(1, largest + 1)
    return StepCurve(batch_size, 1024, 5e-3, tuple((n, 1.0 + slope * (n - 1)) for n in counts))


def cell(batch_size: int, relative: dict[int, float], unit: float = 5e-3) -> Compared:
    return Compared((batch_size, 1024), relative, unit)


def test_a_forecast_begins_at_the_closest_length_that_was_measured() -> None:
    model = StepModel(LENGTHS, None)
    model.set_curves([curve(8, 0.1)])
    found = model.forecast(cell(8, {1: 0.5, 6: 3.0}), 8)
    assert (found.relative, found.basis) == (pytest.approx(3.0 * 1.8 / 1.6), Basis.BESIDE)


def predicted(of: StepCurve) -> StepCurve:
    return replace(of, bases=(CurveBasis.PREDICTED,) * len(of.points))


def test_what_a_draft_costs_rests_on_a_prediction_only_where_verification_hardly_grows() -> None:
    """Steps of an H200, milliseconds: 24 layers of an 8B model, EAGLE-3 head."""
    model = StepModel(LENGTHS, None)
    model.set_curves([predicted(curve(32, 0.1))])
    model.learn_draft_seconds(cell(32, {3: 6.72, 6: 7.95}, unit=1e-3))
    assert model.draft_seconds == {}, "most of the difference is a predicted one"
    model.set_curves([predicted(curve(1, 0.005))])
    model.learn_draft_seconds(cell(1, {2: 4.06, 4: 4.59, 6: 5.07}, unit=1e-3))
    assert model.draft_seconds == {1: pytest.approx(0.23e-3, rel=0.1)}
    model.set_curves([curve(1, 0.03)])
    model.learn_draft_seconds(cell(1, {2: 4.06, 4: 4.59}, unit=1e-3))
    measured = model.draft_seconds[1]
    assert measured < 0.2e-3, "what was measured goes before"
    model.set_curves([predicted(curve(1, 0.005))])
    model.learn_draft_seconds(cell(1, {2: 4.06, 4: 4.59, 6: 5.07}, unit=1e-3))
    assert model.draft_seconds == {1: measured}


def test_the_curve_is_that_of_the_real_batch_size_and_context() -> None:
    """Not of the upper ends of the cell."""
    model = StepModel(LENGTHS, None)
    model.set_curves(
        replace(curve(b, slope), context=context)
        for b, slope in ((16, 0.1), (32, 0.3))
        for context in (1024, 4096)
    )
    key = cell_of(17, 1030)
    assert key == (20, 2048)
    at_end = model.forecast(Compared(key, {3: 1.0}, 5e-3), 6).relative
    real = model.forecast(Compared(key, {3: 1.0}, 5e-3, (16, 1030)), 6).relative
    assert real == pytest.approx(1.6 / 1.3)
    assert at_end is not None and at_end > 1.05 * real


def test_what_was_measured_of_a_length_does_not_forecast_it() -> None:
    model = StepModel(LENGTHS, None)
    model.set_curves([curve(8, 0.0)])
    assert model.forecast(cell(8, {3: 1.0, 6: 7.0}), 6).relative == pytest.approx(1.0)


def test_drafting_is_told_from_verification_and_weighs_in_the_cells_own_unit() -> None:
    model = StepModel(LENGTHS, None)
    model.set_curves([curve(8, 0.0)])
    # Verification takes 4 ms whatever the length, a draft 0.5 ms.
    model.learn_draft_seconds(cell(8, {1: 4.5, 3: 5.5}, unit=1e-3))
    assert model.draft_seconds == {8: pytest.approx(0.5e-3)}
    found = model.forecast(cell(8, {3: 1.0}, unit=5.5e-3), 6)
    assert found.relative == pytest.approx(7.0 / 5.5)


def test_far_from_all_batch_sizes_a_draft_takes_the_least_known() -> None:
    model = StepModel(LENGTHS, None)
    model.set_curves([curve(b, 0.0) for b in (1, 8, 128)])
    for batch_size, each in ((128, 2.0), (8, 0.5)):
        model.learn_draft_seconds(cell(batch_size, {1: 4.0 + each, 3: 4.0 + 3 * each}, 1e-3))
    found = model.forecast(cell(1, {3: 1.0}, unit=5.5e-3), 6)
    assert found.relative == pytest.approx(7.0 / 5.5)


def test_without_a_graph_a_step_takes_what_the_host_takes() -> None:
    model = StepModel(LENGTHS, 64)
    model.set_curves([curve(32, 0.0)])
    here = cell(32, {1: 1.0})
    assert model.forecast(here, 2).relative == pytest.approx(1.0), "not known yet"
    model.saw(16, 6, 20e-3)
    assert model.forecast(here, 2).relative == pytest.approx(4.0)
    model.saw(8, 3, 99.0)  # a step with a graph tells nothing of it
    assert model.forecast(here, 2).relative == pytest.approx(4.0)


def test_a_forecast_that_rests_on_less_need_promise_less() -> None:
    far, beside = (least_promise(basis, wide=False) for basis in (Basis.FAR, Basis.BESIDE))
    assert 0.6 < far < 0.7 < 0.8 < beside < 1.0
    for basis in Basis:
        assert least_promise(basis, wide=True) < far, "surprises are looked for"
