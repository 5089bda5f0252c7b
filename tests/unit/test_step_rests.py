"""What adaptive steps take beside what they are priced at."""

from __future__ import annotations

import pytest

from vllm_nfp.draft.verify_costs import Beside, Rest
from vllm_nfp.session.step_rests import BUSY, ENOUGH, FORGOTTEN_SECONDS, OLD_SECONDS, StepRests

PRICE, WHOLE, CUT = 0.005, 0.0015, 0.0035
DRAFTING = 0.001
"""Of the price."""


class Steps:
    """Steps after one another on clocks of their own; the host works for a part of each."""

    def __init__(self) -> None:
        self.at, self.worked = 100.0, 7.0
        self.rests = StepRests(lambda: self.at, lambda: self.worked)

    def run(
        self, count: int, seconds: float, requests: int = 8, whole: bool = True, busy: float = 0.0
    ) -> None:
        for _ in range(count):
            self.rests.begin()
            self.rests.chosen(requests, whole, PRICE, DRAFTING)
            self.at += seconds
            self.worked += busy
        self.rests.begin()


def seconds(rest: Rest) -> tuple[float, float]:
    return rest.whole.seconds, rest.cut.seconds


def least(rest: Rest) -> tuple[float, float]:
    return rest.whole.least, rest.cut.least


def test_what_is_beside_the_price_is_known_of_whole_and_of_cut_steps() -> None:
    steps = Steps()
    steps.run(ENOUGH, PRICE + WHOLE)
    assert steps.rests.known() == (), "the first step follows none of its kind"
    steps.run(ENOUGH + 1, PRICE + WHOLE)
    (rest,) = steps.rests.known()
    assert seconds(rest) == pytest.approx((WHOLE, WHOLE)), "no step was cut"
    steps.run(2 * ENOUGH, PRICE + CUT, whole=False)
    steps.run(2 * ENOUGH, PRICE + CUT, requests=1)
    one, eight = steps.rests.known()
    assert (one.batch_size, eight.batch_size) == (1, 8)
    assert seconds(eight) == pytest.approx((WHOLE, CUT))


def test_one_long_gap_and_steps_that_follow_other_ones_do_not_count() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.at += 5.0
    for _ in range(2 * ENOUGH):
        steps.run(1, PRICE + CUT, whole=False)
        steps.run(1, PRICE + 2 * CUT)
    (rest,) = steps.rests.known()
    assert seconds(rest) == pytest.approx((WHOLE, WHOLE))


def test_a_step_without_a_price_ends_the_row() -> None:
    steps = Steps()
    for _ in range(2 * ENOUGH):
        steps.run(1, PRICE + WHOLE)
        steps.rests.chosen(8, True, None)
    assert steps.rests.known() == ()


def test_a_price_above_the_time_leaves_nothing_beside() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE / 2)
    assert steps.rests.known() == (Rest(8, Beside(), Beside()),)


def test_a_kind_that_does_not_run_differs_as_it_did_when_both_ran() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.run(2 * ENOUGH, PRICE + CUT, whole=False)
    steps.rests.known()
    steps.at += 2 * OLD_SECONDS
    slower = 0.002
    steps.run(2 * ENOUGH, PRICE + WHOLE + slower)
    (rest,) = steps.rests.known()
    assert seconds(rest) == pytest.approx((WHOLE + slower, CUT + slower))
    steps.at += 2 * OLD_SECONDS
    steps.run(2 * ENOUGH, PRICE + CUT + slower, whole=False)
    (rest,) = steps.rests.known()
    assert seconds(rest) == pytest.approx((WHOLE + slower, CUT + slower))


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
    assert rest.cut == rest.whole
    assert rest.cut.seconds == pytest.approx(WHOLE)


def test_where_the_host_decides_its_time_is_the_least_and_nothing_is_added() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, 0.008, busy=0.0075)
    steps.run(2 * ENOUGH, 0.009, whole=False, busy=0.0085)
    (rest,) = steps.rests.known()
    assert seconds(rest) == (0.0, 0.0), "how long the device took does not show"
    assert least(rest) == pytest.approx((0.008 - DRAFTING, 0.009 - DRAFTING))


def test_where_the_device_decides_the_hosts_work_is_the_least() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, 0.008, busy=0.9 * BUSY * 0.008)
    (rest,) = steps.rests.known()
    assert rest.whole.seconds == pytest.approx(0.008 - PRICE)
    assert rest.whole.least == pytest.approx(0.9 * BUSY * 0.008 - DRAFTING)


def test_what_is_beside_the_devices_work_is_remembered_while_the_host_decides() -> None:
    steps = Steps()
    steps.run(2 * ENOUGH, PRICE + WHOLE)
    steps.rests.known()
    steps.run(8 * ENOUGH, 2 * PRICE, busy=2 * PRICE)
    (rest,) = steps.rests.known()
    assert rest.whole.seconds == pytest.approx(WHOLE)
    assert rest.whole.least == pytest.approx(2 * PRICE - DRAFTING)
    for _ in range(8):
        steps.at += FORGOTTEN_SECONDS / 8
        steps.run(2 * ENOUGH, 2 * PRICE, busy=2 * PRICE)
    (rest,) = steps.rests.known()
    assert rest.whole.seconds == 0.0
