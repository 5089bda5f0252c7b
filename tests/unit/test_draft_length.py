from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.draft import expected_tokens


@given(k=st.integers(0, 64), a=st.floats(0.0, 1.0))
def test_expected_tokens_are_the_sum_of_the_chances(k: int, a: float) -> None:
    assert expected_tokens(k, a) == pytest.approx(sum(a**j for j in range(k + 1)))


def test_a_draft_length_of_any_size_takes_no_time() -> None:
    assert expected_tokens(1 << 40, 0.5) == 2.0
    assert expected_tokens(1 << 40, 1.0) == (1 << 40) + 1


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="acceptance must be between 0 and 1"):
        expected_tokens(1, 1.5)
    with pytest.raises(ValueError, match="draft_length must be 0 or more"):
        expected_tokens(-1, 0.5)
