from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.crossing import count_free


@pytest.mark.parametrize(
    ("times", "free"),
    [
        ((1, 1.05, 1.3, 1.0), 2),  # what is free again beyond a count that is not
        ((1, 1.05, 1.1, 1.0), 4),  # on the line is within it
        ((1, 1.2, 1.0, 1.0), 1),
        ((5.0,), 1),
        ((2.0, 1.0, 2.2, 2.3), 3),  # against the first, not against the fastest
    ],
)
def test_what_is_free_ends_before_the_first_over_the_line(
    times: tuple[float, ...], free: int
) -> None:
    assert count_free(times, 0.1) == free


@given(st.lists(st.floats(0.5, 4.0), min_size=1), st.floats(0.0, 2.0))
def test_the_count_is_that_of_the_definition(times: list[float], epsilon: float) -> None:
    free = count_free(times, epsilon)
    line = (1.0 + epsilon) * times[0]
    assert all(time <= line for time in times[:free])
    assert free == len(times) or times[free] > line
