"""Captured sizes by hand, and against the rules of the engine's side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.adapter.dispatch import Execution, GraphRules, place
from vllm_nfp.principle import CATALOGUE, hardware_by_name
from vllm_nfp.principle.graphs import (
    DEFAULT_GRAPHS,
    CapturedGraphs,
    default_capture_sizes,
    uniform_sizes,
)


@pytest.mark.parametrize(
    ("positions", "sizes"),
    [
        (1, (1, 2, 4, 8, 16)),
        (3, (3, 6, 9)),  # 1, 2 and 3 are one; 16 becomes 18, which is above the largest
        (4, (4, 8, 16)),
        (16, (16,)),
        (17, ()),
    ],
)
def test_sizes_are_rounded_up_to_whole_sequences(positions: int, sizes: tuple[int, ...]) -> None:
    assert uniform_sizes((1, 2, 4, 8, 16), positions) == sizes


@pytest.mark.parametrize(
    ("batch_size", "positions", "tokens"),
    [(1, 1, 1), (3, 1, 4), (1, 5, 5), (10, 3, 33), (32, 16, 512), (32, 17, None), (513, 1, None)],
)
def test_padding_with_vllms_default_sizes(
    batch_size: int, positions: int, tokens: int | None
) -> None:
    assert DEFAULT_GRAPHS.padded_tokens(batch_size, positions) == tokens


def test_without_sizes_there_is_no_graph() -> None:
    assert uniform_sizes((), 2) == ()
    assert CapturedGraphs().padded_tokens(1, 1) is None


def test_steps_run_with_the_tokens_of_their_graphs_or_their_own() -> None:
    graphs = CapturedGraphs((2, 8, 25), any_mix_up_to=2)
    assert (graphs.largest, CapturedGraphs().largest) == (25, 0)
    assert (graphs.size_for(9), graphs.size_for(26)) == (25, None)
    run = graphs.run_steps(4, np.array([1.0, 2.0, 3.0, 6.0, 7.0]))
    # 25 rounded up to a multiple of 3, 6 or 7 is above the largest size.
    assert run.tokens.tolist() == [8.0, 8.0, 12.0, 24.0, 28.0]
    assert run.in_graph.tolist() == [True, True, False, False, False]


@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=20, unique=True),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([0, 8]),
)
def test_padding_is_that_of_the_server(
    sizes: list[int], batch_size: int, positions: int, any_mix_up_to: int
) -> None:
    graphs = CapturedGraphs(tuple(sorted(sizes)), any_mix_up_to)
    rules = GraphRules(
        full_decode=True, full_mixed=False, piecewise=False, multi_position=True,
        graphs=graphs, max_num_seqs=10_000,
    )  # fmt: skip
    placement = place(rules, batch_size, positions)
    padded = graphs.padded_tokens(batch_size, positions)
    assert (placement.execution is Execution.FULL) == (padded is not None)
    assert padded is None or placement.padded_tokens == padded
    if padded is not None:
        assert batch_size * positions <= padded <= graphs.largest
        assert padded % positions == 0 or positions <= any_mix_up_to


def test_blackwell_captures_up_to_1024_tokens() -> None:
    """default_max_graph_size in vLLM 0.32's config/vllm.py, by compute capability."""
    largest = {h.name: max(default_capture_sizes(h)) for h in CATALOGUE}
    assert {name for name, most in largest.items() if most == 1024} == {
        "B200", "B300", "GB200", "GB300"
    }  # fmt: skip
    assert set(largest.values()) == {512, 1024}
    sizes = default_capture_sizes(hardware_by_name("B200"))
    assert sizes[-33:] == tuple(range(512, 1025, 16))
