from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.draft import best_draft_length, expected_tokens


@given(k=st.integers(0, 64), a=st.floats(0.0, 1.0))
def test_expected_tokens_are_the_sum_of_the_chances(k: int, a: float) -> None:
    assert expected_tokens(k, a) == pytest.approx(sum(a**j for j in range(k + 1)))


def test_a_draft_length_of_any_size_takes_no_time() -> None:
    assert expected_tokens(1 << 40, 0.5) == 2.0
    assert expected_tokens(1 << 40, 1.0) == (1 << 40) + 1


def test_free_positions_are_used_to_the_end() -> None:
    choice = best_draft_length({1: 1.0, 2: 1.0, 4: 1.0, 8: 3.0}, 1, 64, 0.9)
    assert choice.draft_length == 3
    assert not choice.at_limit
    assert choice.speedup == pytest.approx(1 + 0.9 + 0.81 + 0.729)


def test_drafts_that_cost_more_than_they_bring_are_left_out() -> None:
    choice = best_draft_length({1: 1.0, 2: 1.6}, 1, 64, 0.5)
    assert (choice.draft_length, choice.speedup) == (0, 1.0)


def test_the_largest_measured_count_says_that_it_is_one() -> None:
    assert best_draft_length({1: 1.0, 2: 1.0}, 1, 64, 0.5).at_limit


def test_of_equal_lengths_the_shorter_is_taken() -> None:
    assert best_draft_length({1: 1.0, 2: 1.0, 3: 1.0}, 1, 64, 0.0).draft_length == 0


@given(
    slope=st.floats(0.0, 1.0),
    a=st.floats(0.0, 1.0),
)
def test_the_choice_is_the_best_of_all(slope: float, a: float) -> None:
    ratios = {n: 1.0 + slope * (n - 1) for n in (1, 2, 3, 4, 6, 8)}
    best = best_draft_length(ratios, 1, 64, a)
    assert best.speedup == max(expected_tokens(n - 1, a) / r for n, r in ratios.items())


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="acceptance must be a share"):
        expected_tokens(1, 1.5)
    with pytest.raises(ValueError, match="draft_length must be 0 or more"):
        expected_tokens(-1, 0.5)
    with pytest.raises(ValueError, match="lack N = 1"):
        best_draft_length({2: 1.0}, 1, 64, 0.5)
