from __future__ import annotations

import math
import sys
import time
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nfp.estimate import CellEstimate, PairStore, estimate_cell
from vllm_nfp.estimate.location import center, interval, median_interval, walsh_averages
from vllm_nfp.types import Cell, Module, Pair

CELL = Cell(Module.MODEL, 8, 1024)
GRID = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)


def pairs_of(ratios: dict[int, float], samples: int = 12, noise: float = 0.0) -> list[Pair]:
    rng = np.random.default_rng(0)
    return [
        Pair(n, 0.01 * ratio * math.exp(noise * rng.standard_normal()), 0.01)
        for n, ratio in ratios.items()
        for _ in range(samples)
    ]


def boundary(ratios: dict[int, float], epsilon: float = 0.1, noise: float = 0.001) -> object:
    estimate = estimate_cell(CELL, pairs_of(ratios, noise=noise), (epsilon,))
    assert estimate is not None
    return estimate.boundaries[0]


def test_the_boundary_is_the_last_count_before_the_first_over_the_line() -> None:
    found = boundary({2: 1.0, 4: 1.05, 8: 1.3, 16: 1.31})
    assert (found.positions, found.lower, found.upper) == (4, 4, 4)
    assert not found.at_limit
    assert found.largest_free == 4


def test_an_island_is_told_apart_from_the_boundary() -> None:
    found = boundary({2: 1.0, 4: 1.2, 8: 1.05, 16: 1.4})
    assert (found.positions, found.largest_free) == (2, 8)


def test_nothing_free_is_one() -> None:
    found = boundary({2: 1.5, 4: 2.0})
    assert (found.positions, found.lower, found.upper, found.largest_free) == (1, 1, 1, 1)


def test_all_free_is_marked_as_censored() -> None:
    found = boundary({2: 1.0, 4: 1.01, 8: 1.02})
    assert (found.positions, found.upper, found.at_limit) == (8, 8, True)


def test_a_step_at_the_line_is_left_open() -> None:
    found = boundary({2: 1.0, 4: 1.0999, 8: 1.5}, noise=0.01)
    assert (found.lower, found.upper) == (2, 4)


def test_points_with_too_few_pairs_are_not_on_the_grid() -> None:
    pairs = pairs_of({2: 1.0, 4: 1.0}) + pairs_of({8: 1.0}, samples=3)
    estimate = estimate_cell(CELL, pairs)
    assert estimate is not None
    assert [p.positions for p in estimate.curve.points] == [1, 2, 4]
    assert estimate_cell(CELL, pairs_of({2: 1.0}, samples=3)) is None
    assert estimate_cell(CELL, []) is None


def test_the_curve_holds_ratio_time_and_interval() -> None:
    estimate = estimate_cell(CELL, pairs_of({2: 1.25}, samples=20, noise=0.02))
    assert estimate is not None
    first, second = estimate.curve.points
    assert (first.positions, first.ratio, first.ratio_lower, first.ratio_upper) == (1, 1, 1, 1)
    assert first.median_seconds == pytest.approx(0.01)
    assert second.ratio == pytest.approx(1.25, rel=0.01)
    assert second.ratio_lower < 1.25 < second.ratio_upper
    assert second.median_seconds == pytest.approx(0.0125, rel=0.02)


def test_a_few_wild_samples_change_nothing() -> None:
    calm = pairs_of({2: 1.0, 4: 1.05, 8: 1.3}, samples=20, noise=0.003)
    wild = [
        Pair(p.positions, p.seconds * (50.0 if i % 10 == 0 else 1.0), p.baseline_seconds)
        for i, p in enumerate(calm)
    ]
    before, after = estimate_cell(CELL, calm), estimate_cell(CELL, wild)
    assert before is not None and after is not None
    assert after.boundaries == before.boundaries


def test_drift_that_both_members_share_changes_nothing() -> None:
    calm = pairs_of({2: 1.0, 4: 1.05, 8: 1.3}, noise=0.003)
    drift = [
        Pair(p.positions, p.seconds * (1 + i / 10), p.baseline_seconds * (1 + i / 10))
        for i, p in enumerate(calm)
    ]
    before, after = estimate_cell(CELL, calm), estimate_cell(CELL, drift)
    assert before is not None and after is not None
    assert after.boundaries == before.boundaries


@pytest.mark.parametrize(
    ("positions", "seconds", "baseline", "sentence"),
    [
        (0, 1.0, 1.0, "positions must be 1 or more, not 0"),
        (2, 0.0, 1.0, "seconds must be finite and above 0, not 0.0"),
        (2, math.nan, 1.0, "seconds must be finite and above 0, not nan"),
        (2, 1.0, -1.0, "baseline_seconds must be finite and above 0, not -1.0"),
        (2, 1.0, math.inf, "baseline_seconds must be finite and above 0, not inf"),
    ],
)
def test_times_that_cannot_be_are_refused(
    positions: int, seconds: float, baseline: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Pair(positions, seconds, baseline)


def test_an_epsilon_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon must be above 0, not 0\.0"):
        estimate_cell(CELL, pairs_of({2: 1.0}), (0.0,))


curves = st.dictionaries(st.sampled_from(GRID), st.floats(0.8, 3.0), min_size=1)


def both(ratios: dict[int, float], noise: float, scale: float = 1.0) -> CellEstimate:
    pairs = [
        Pair(p.positions, p.seconds * scale, p.baseline_seconds * scale)
        for p in pairs_of(ratios, samples=8, noise=noise)
    ]
    estimate = estimate_cell(CELL, pairs)
    assert estimate is not None
    return estimate


@given(curves, st.floats(0.0, 0.1))
def test_the_interval_holds_the_estimate_and_grows_with_epsilon(
    ratios: dict[int, float], noise: float
) -> None:
    found = both(ratios, noise).boundaries
    for line in found:
        assert 1 <= line.lower <= line.positions <= line.upper <= max(ratios)
        assert line.positions <= line.largest_free
        assert line.at_limit == (line.positions == max(ratios))
    for tight, loose in pairwise(found):
        assert tight.positions <= loose.positions
        assert tight.lower <= loose.lower


@given(curves, st.floats(0.0, 0.05), st.sampled_from((2.0**-10, 0.5, 2.0**10)))
def test_the_unit_of_time_does_not_matter(
    ratios: dict[int, float], noise: float, scale: float
) -> None:
    assert both(ratios, noise).boundaries == both(ratios, noise, scale).boundaries


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7))
def test_the_interval_is_that_of_the_signed_rank_test(sample: list[float]) -> None:
    """Against the definition: all sign patterns of the ranks, counted one by one."""
    m = len(sample)
    averages = walsh_averages(np.array(sample))
    tail = 0.1
    sums = [
        sum(rank for rank, sign in zip(range(1, m + 1), signs, strict=True) if sign)
        for signs in product((0, 1), repeat=m)
    ]
    skipped = -1
    while sum(w <= skipped + 1 for w in sums) / len(sums) <= tail:
        skipped += 1
    lower, upper = interval(averages, m, tail)
    if skipped < 0:
        assert (lower, upper) == (-np.inf, np.inf)
    else:
        assert (lower, upper) == (averages[skipped], averages[-1 - skipped])
        assert lower <= center(averages) <= upper


def test_a_cell_takes_a_few_milliseconds() -> None:
    pairs = pairs_of(dict.fromkeys(range(2, 16), 1.0), samples=30, noise=0.01)
    estimate_cell(CELL, pairs)
    begun = time.process_time()  # other processes take none of it
    for _ in range(10):
        estimate_cell(CELL, pairs)
    # Under coverage every line costs as much again and more.
    limit = 0.03 if sys.gettrace() is None else 0.15
    assert (time.process_time() - begun) / 10 < limit


def test_the_store_keeps_the_most_recent_pairs_of_each_point() -> None:
    store = PairStore(capacity=3)
    other = Cell(Module.ATTENTION, 1, 64)
    for i in range(10):
        store.add(CELL, Pair(2, 1.0 + i, 1.0))
    store.add(CELL, Pair(4, 1.0, 1.0))
    store.add(other, Pair(2, 1.0, 1.0))
    assert [p.seconds for p in store.pairs(CELL) if p.positions == 2] == [8.0, 9.0, 10.0]
    assert (store.count(CELL, 2), store.count(CELL, 4), store.count(CELL, 8)) == (3, 1, 0)
    assert store.cells() == (other, CELL)
    assert store.pairs(Cell(Module.MODEL, 1, 1)) == []


def test_a_median_has_the_interval_of_the_sign_test() -> None:
    """Six values: the whole range misses the median on one side with a chance of 1 / 64."""
    six = np.array([6.0, 1, 5, 2, 4, 3])
    assert median_interval(six, 1 / 64) == (3.5, 1.0, 6.0)
    assert median_interval(np.arange(5.0), 0.025)[1:] == (-np.inf, np.inf)
    # scipy.stats.binom.ppf(0.025, 100, 0.5) == 40: forty values may be left out at each end.
    _, lower, upper = median_interval(np.arange(100.0), 0.025)
    assert 39.0 < lower < 40.0
    assert upper == 99.0 - lower


def test_a_tail_between_two_exact_ones_lies_between_their_intervals() -> None:
    """Hettmansperger and Sheather (1986): n = 6, tails 1 / 64 and 7 / 64, one tenth of the way."""
    _, lower, upper = median_interval(np.arange(1.0, 7.0), 0.025)
    way = 5 * 0.1 / (1 + 4 * 0.1)
    assert (lower, upper) == (pytest.approx(1 + way), pytest.approx(6 - way))


@pytest.mark.parametrize("tail", [0.0, 0.5, 1.0])
def test_a_tail_that_can_be_no_chance_is_refused(tail: float) -> None:
    with pytest.raises(ValueError, match="tail must lie between 0 and"):
        median_interval(np.arange(10.0), tail)


@pytest.mark.parametrize("samples", range(6, 41))
def test_the_interval_of_a_median_narrows_as_the_tail_grows(samples: int) -> None:
    values = np.sort(np.random.default_rng(samples).standard_normal(samples))
    found = [median_interval(values, tail) for tail in (0.016, 0.02, 0.025, 0.05, 0.1, 0.2, 0.3)]
    for (middle, low, high), (_, inner_low, inner_high) in pairwise(found):
        assert values[0] <= low <= inner_low <= middle <= inner_high <= high <= values[-1]


def test_the_interval_of_a_median_holds_for_skewed_times() -> None:
    rng = np.random.default_rng(1)
    trials = np.exp(rng.standard_normal((4000, 15)))
    found = [median_interval(trial, 0.025) for trial in trials]
    share = np.mean([lower <= 1.0 <= upper for _, lower, upper in found])
    assert 0.94 <= share < 0.96


def test_points_carry_the_interval_of_their_median_time() -> None:
    estimate = estimate_cell(CELL, pairs_of({2: 1.0}, samples=12, noise=0.01))
    assert estimate is not None
    first, second = estimate.curve.points
    assert first.seconds_lower == first.median_seconds == first.seconds_upper == 0.01
    assert 0 < second.seconds_lower < second.median_seconds < second.seconds_upper
    few = estimate_cell(CELL, pairs_of({2: 1.0}, samples=3), min_samples=2)
    assert few is not None
    assert (few.curve.points[1].seconds_lower, few.curve.points[1].seconds_upper) == (0.0, math.inf)
