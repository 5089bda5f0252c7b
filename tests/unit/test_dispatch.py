from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nfp.adapter.dispatch import Execution, GraphRules, place
from vllm_nfp.principle.graphs import CapturedGraphs

SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
RULES = GraphRules(
    full_decode=True, full_mixed=False, piecewise=True, multi_position=True,
    graphs=CapturedGraphs(SIZES), max_num_seqs=256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("batch_size", "positions", "execution", "tokens", "sequences"),
    [
        (1, 1, "full", 1, 1),
        (1, 3, "full", 3, 1),  # 1 rounded up to a multiple of 3
        (1, 5, "full", 5, 1),
        (8, 1, "full", 8, 8),
        (10, 1, "full", 16, 16),  # padded to a captured size
        (10, 3, "full", 33, 11),  # 32 rounded up to a multiple of 3
        (32, 16, "full", 512, 32),
        (32, 24, "none", 768, 32),  # above the largest captured size: no graph at all
        (300, 1, "piecewise", 304, 300),  # more sequences than --max-num-seqs lets a graph hold
    ],
)
def test_a_step_lands_where_vllm_would_put_it(
    batch_size: int, positions: int, execution: str, tokens: int, sequences: int
) -> None:
    placement = place(RULES, batch_size, positions)
    assert (placement.execution, placement.padded_tokens, placement.padded_sequences) == (
        execution, tokens, sequences,
    )  # fmt: skip


def test_graphs_of_adaptive_verification_take_any_mix_of_lengths() -> None:
    rules = replace(RULES, graphs=CapturedGraphs(SIZES, any_mix_up_to=5))
    found = place(rules, 10, 3)
    assert (found.execution, found.padded_tokens, found.padded_sequences) == ("full", 32, 32)
    beyond = place(rules, 10, 6)
    assert beyond == place(RULES, 10, 6), "as without it"


def test_a_backend_for_one_position_alone_falls_to_piecewise() -> None:
    rules = replace(RULES, multi_position=False)
    assert place(rules, 8, 1).execution is Execution.FULL
    assert place(rules, 8, 2).execution is Execution.PIECEWISE


def test_eager_servers_use_no_graph() -> None:
    rules = GraphRules(False, False, False, False, CapturedGraphs(), 256)
    assert place(rules, 8, 4).execution is Execution.NONE


@given(st.integers(1, 256), st.integers(1, 64))
def test_padding_never_loses_a_token_and_keeps_graphs_uniform(b: int, n: int) -> None:
    placement = place(RULES, b, n)
    assert placement.padded_tokens >= b * n
    assert placement.padded_sequences >= b
    if placement.execution is Execution.FULL:
        assert placement.padded_tokens == placement.padded_sequences * n
        assert placement.padded_tokens <= SIZES[-1]
