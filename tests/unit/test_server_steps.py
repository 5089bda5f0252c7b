"""What a server's real steps take beyond their work on the device."""

from __future__ import annotations

import pytest

from vllm_nfp.draft.server_steps import beyond_device, drafted_fraction, host_seconds


def metrics(seconds: float, steps: float) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Half of the steps with one sequence, half with three."""
    of = {"engine": "0"}
    kinds = [{**of, "batch_size": b, "context": "256", "positions": "5"} for b in ("1", "3")]
    return {
        "vllm:inter_token_latency_seconds_sum": [(of, seconds)],
        "vllm:inter_token_latency_seconds_count": [(of, steps)],
        "vllm:spec_decode_num_drafts_total": [(of, 120.0)],
        "vllm_nfp_step_latency_seconds": [(kinds[0], 0.002), (kinds[1], 0.004)],
        "vllm_nfp_steps_total": [(kind, 100.0) for kind in kinds],
    }


def test_host_time_is_the_real_step_less_the_device_weighed_by_sequences() -> None:
    device = (1 * 0.002 + 3 * 0.004) / 4
    assert host_seconds(metrics(400 * 0.01, 400)) == pytest.approx(0.01 - device)
    assert host_seconds(metrics(400 * 0.01, 400), "0") == pytest.approx(0.01 - device)
    assert host_seconds(metrics(400 * 0.01, 400), "1") == 0.0, "of another engine"
    assert host_seconds(metrics(400 * 0.001, 400)) == 0.0, "never below"
    assert host_seconds(metrics(0.1, 10)) == host_seconds({}) == 0.0, "too few steps"
    assert beyond_device(10.0, 100.0, ()) == 0.0


def test_steps_with_a_draft_are_told_from_those_without() -> None:
    assert drafted_fraction(metrics(4.0, 400)) == pytest.approx(0.3)
    assert drafted_fraction(metrics(4.0, 100)) == 1.0
    assert drafted_fraction({}) is None
