"""How many recurrent states fit, and which shapes they suffice for."""

from __future__ import annotations

from vllm_nfp.probe.state_room import StateRoom

# One layer of Qwen3-Next on one GPU: 32 heads x 128 x 128 states in float32, and the convolution's
# last 3 inputs of 8192 channels in bfloat16; each further position keeps one more of them.
QWEN3_NEXT = StateRoom(1024, layers=36, state_bytes=2097152 + 3 * 8192 * 2, position_bytes=8192 * 2)


def test_n_positions_keep_n_states_and_a_null_one() -> None:
    assert QWEN3_NEXT.page_bytes(1) == 2146304
    assert QWEN3_NEXT.page_bytes(4) == 2146304 + 3 * 16384
    assert QWEN3_NEXT.layer_bytes(8, 4) == 33 * QWEN3_NEXT.page_bytes(4)


def test_a_shape_whose_states_do_not_fit_is_refused_by_name() -> None:
    assert QWEN3_NEXT.missing(32, 8) is None
    reason = QWEN3_NEXT.missing(256, 8)
    assert reason is not None
    assert "256 sequences x 8 positions" in reason and "state_memory_mib 1024" in reason
    # (1 + 2048) states of 2146304 + 7 x 16384 bytes
    assert "4419 MiB" in reason


def test_layers_have_states_of_their_own_while_memory_suffices() -> None:
    held = QWEN3_NEXT.wanted_bytes([(1, 1), (1, 4), (32, 8), (256, 8)])
    assert held == 1024 << 20
    assert QWEN3_NEXT.layers_apart(1, 1, held) == 36
    assert QWEN3_NEXT.layers_apart(32, 8, held) == 1
    assert QWEN3_NEXT.layers_apart(8, 4, held) == 14


def test_no_more_is_held_than_all_layers_of_the_largest_shape_need() -> None:
    small = StateRoom(1024, layers=3, state_bytes=1000, position_bytes=24)
    assert small.page_bytes(1) == 1024 and small.page_bytes(2) == 1024
    assert small.wanted_bytes([(1, 1), (4, 2)]) == 3 * 9 * 1024
    assert small.wanted_bytes([]) == 0
