"""Where drafts have ceased to pay, noise brings none back at a larger batch."""

from __future__ import annotations

import pytest

from vllm_nfp.draft import Demand, StepCurve, constant, make_schedule
from vllm_nfp.draft.curve import UNBOUNDED
from vllm_nfp.draft.established import established
from vllm_nfp.draft.schedule import row_at
from vllm_nfp.types import Basis

DEMAND = Demand(constant(0.7))
NOISE = (1.2, 2.9)
"""Of t(2) / t(1): a gain of 0.59 to 1.42 with one draft."""


def step(
    batch_size: int,
    ratio: float,
    basis: Basis = Basis.PREDICTED,
    interval: tuple[float, float] | None = None,
    context: int = 256,
) -> StepCurve:
    """A step of one draft takes ``ratio`` of one without."""
    near = (ratio, ratio) if interval is None else interval
    points, bases = ((1, 1.0), (2, ratio)), (basis, basis)
    return StepCurve(batch_size, context, 0.01, points, bases=bases, intervals=((1.0, 1.0), near))


def lengths(*steps: StepCurve) -> list[int]:
    made = make_schedule(steps, DEMAND, whole=True)
    return [made.length_of(size) for size in sorted({of.batch_size for of in steps})]


SMALL, NONE = step(1, 1.1, Basis.INFERRED), step(2, 1.8)


@pytest.mark.parametrize(
    ("larger", "length"),
    [
        (step(4, 1.65, interval=NOISE), 0),
        (step(4, 1.4, interval=(1.2, 1.75)), 0),
        (step(4, 1.4, interval=(1.2, 1.6)), 1),
        (step(4, 1.65, Basis.INFERRED, NOISE), 1),
        (step(4, 1.65, Basis.MEASURED, NOISE), 1),
        (step(4, 1.65, interval=UNBOUNDED), 1),
    ],
    ids=["noise", "may lose", "predicted for sure", "inferred", "measured", "without interval"],
)
def test_drafts_that_ceased_to_pay_come_back_where_that_is_established(
    larger: StepCurve, length: int
) -> None:
    assert lengths(SMALL, NONE, larger) == [1, 0, length]


def test_none_comes_back_at_any_larger_batch_by_noise() -> None:
    """As an FP8 model on an H200 beyond its graphs: K was 0, 3, 0, 3, 1 from 257 requests on."""
    noise = [step(size, 1.65, interval=NOISE) for size in (4, 16, 32)]
    losing = [step(size, 1.8, interval=NOISE) for size in (8, 64)]
    assert lengths(SMALL, NONE, *noise, *losing) == [1, 0, 0, 0, 0, 0, 0]
    sure = step(128, 1.2, interval=(1.1, 1.3))
    assert lengths(SMALL, NONE, *noise, *losing, sure)[-1] == 1


def test_a_prediction_decides_where_no_smaller_batch_is_without_drafts() -> None:
    assert lengths(step(1, 1.65, interval=NOISE)) == [1]
    assert lengths(SMALL, step(2, 1.65, interval=NOISE)) == [1, 1]


def test_one_context_of_which_nothing_is_established_suffices() -> None:
    sure = step(4, 1.2, Basis.MEASURED, context=1024)
    doubtful = step(4, 1.65, interval=NOISE)
    assert lengths(SMALL, NONE, sure, doubtful) == [1, 0, 0]


def test_live_traffic_and_single_contexts_follow_the_table() -> None:
    doubtful, sure = step(4, 1.65, interval=NOISE), step(4, 1.2, Basis.MEASURED, context=1024)
    table = make_schedule([SMALL, NONE, doubtful, sure], DEMAND, whole=True)
    assert row_at(doubtful, DEMAND, table).draft_length == 0
    assert row_at(doubtful, DEMAND).draft_length == 1, "without a table nothing precedes it"
    assert row_at(sure, DEMAND, table).draft_length == 1
    alone = {row.context: row.alone_draft_length for row in table.rows if row.batch_size_last == 4}
    assert alone == {256: None, 1024: 1}


def test_no_drafts_are_always_left() -> None:
    kept = established({0: 0.9, 1: 1.0}, [step(4, 1.65, interval=NOISE)], DEMAND)
    assert kept == {0: 0.9}
