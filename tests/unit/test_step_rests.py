"""What adaptive steps take beside what they are priced at."""

from __future__ import annotations

import pytest

from vllm_nfp.draft.verify_costs import Rest
from vllm_nfp.session.step_rests import ENOUGH, FORGOTTEN_SECONDS, OLD_SECONDS, StepRests

PRICE, WHOLE, CUT = 0.005, 0.0015, 0.0035


class Steps:
    """Steps after one another on a clock of their own."""

    def __init__(self) -> None:
        self.at = 100.0
        self.rests = StepRests(lambda: self.at)

    def run(self, count: int, seconds: float, requests: int = 8, whole: bool = True) -> None:
        for _ in range(count):
            self.rests.begin()
            self.rests.chosen(requests, whole, PRICE)
            self.at += seconds
        self.rests.begin()


def test_what_is_beside_the_price_is_known_of_whole_and_of_cut_steps() -> None:
    steps = Steps()
    steps.run(ENOUGH, PRICE + WHOLE)
    assert steps.rests.known() == (), "the first step follows none of its kind"
    steps.run(ENOUGH + 1, PRICE + WHOLE)
    (rest,) = steps.rests.known()
    assert (rest.whole, rest.cut) == pytest.approx((WHOLE, WHOLE)), "no step was cut"
    steps.run(2 * ENOUGH, PRICE + CUT, whole=False)
    steps.run(2 * ENOUGH, PRICE + CUT, requests=1)
    one, eight = steps.rests.known()
    assert (one.batch_size, eight.batch_size) == (1, 8)
    assert (eight.whole, eight.cut) == pytest.approx((WHOLE, CUT))


def test_one_long_gap_and_steps_that_follow_other_ones_do_not_count() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.at += 5.0
    for _ in range(2 * ENOUGH):
        steps.run(1, PRICE + CUT, whole=False)
        steps.run(1, PRICE + 2 * CUT)
    (rest,) = steps.rests.known()
    assert (rest.whole, rest.cut) == pytest.approx((WHOLE, WHOLE))


def test_a_step_without_a_price_ends_the_row() -> None:
    steps = Steps()
    for _ in range(2 * ENOUGH):
        steps.run(1, PRICE + WHOLE)
        steps.rests.chosen(8, True, None)
    assert steps.rests.known() == ()


def test_a_price_above_the_time_leaves_nothing_beside() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE / 2)
    assert steps.rests.known() == (Rest(8, 0.0, 0.0),)


def test_a_kind_that_does_not_run_differs_as_it_did_when_both_ran() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.run(2 * ENOUGH, PRICE + CUT, whole=False)
    steps.rests.known()
    steps.at += 2 * OLD_SECONDS
    slower = 0.002
    steps.run(2 * ENOUGH, PRICE + WHOLE + slower)
    (rest,) = steps.rests.known()
    assert (rest.whole, rest.cut) == pytest.approx((WHOLE + slower, CUT + slower))
    steps.at += 2 * OLD_SECONDS
    steps.run(2 * ENOUGH, PRICE + CUT + slower, whole=False)
    (rest,) = steps.rests.known()
    assert (rest.whole, rest.cut) == pytest.approx((WHOLE + slower, CUT + slower))


def test_what_was_long_ago_is_tried_again() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.run(2 * ENOUGH, PRICE + CUT, whole=False)
    known = steps.rests.known()
    steps.at += FORGOTTEN_SECONDS / 2
    assert steps.rests.known() == known, "no such batch size runs"
    steps.at += FORGOTTEN_SECONDS
    assert steps.rests.known() == ()
    steps.run(ENOUGH, PRICE + WHOLE)
    assert steps.rests.known() == (), "steps of before do not count"
    steps.run(ENOUGH, PRICE + WHOLE)
    (rest,) = steps.rests.known()
    assert rest.cut == rest.whole == pytest.approx(WHOLE)
