"""What a server's real steps take beyond their work on the device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.cautions import unexplained
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand, DraftCost
from vllm_nfp.draft.server_steps import (
    RealStep,
    beyond_device,
    drafted_fraction,
    host_seconds,
    real_steps,
)

Samples = dict[str, list[tuple[dict[str, str], float]]]
ENGINE = {"engine": "0"}
ONE, THREE = (
    {**ENGINE, "batch_size": size, "context": "256", "positions": "5"} for size in ("1", "3")
)


def metrics(
    periods: Sequence[tuple[dict[str, str], float]], steps: float = 100.0, mean: float = 0.0275
) -> Samples:
    """Some steps with one sequence, as many with three.

    Args:
        mean: vLLM's inter-token latency.
    """
    sequences = 4 * steps
    return {
        "vllm:inter_token_latency_seconds_sum": [(ENGINE, mean * sequences)],
        "vllm:inter_token_latency_seconds_count": [(ENGINE, sequences)],
        "vllm:spec_decode_num_drafts_total": [(ENGINE, 120.0)],
        "vllm_nfp_step_latency_seconds": [(ONE, 0.002), (THREE, 0.004)],
        "vllm_nfp_steps_total": [(ONE, steps), (THREE, steps)],
        "vllm_nfp_step_period_seconds": list(periods),
    }


def test_host_time_is_the_period_less_the_device_weighed_by_steps() -> None:
    both = metrics([(ONE, 0.0021), (THREE, 0.0043)])
    assert host_seconds(both) == pytest.approx((0.0001 + 0.0003) / 2)
    both["vllm_nfp_steps_total"] = [(ONE, 300.0), (THREE, 100.0)]
    assert host_seconds(both) == pytest.approx((3 * 0.0001 + 0.0003) / 4)
    assert host_seconds(both, "0") == host_seconds(both)
    assert host_seconds(both, "1") == 0.0, "of another engine"


@pytest.mark.parametrize("mean", [0.004, 0.0275, 1.0])
def test_the_prompts_that_sequences_wait_for_are_no_host_time(mean: float) -> None:
    """vLLM's inter-token latency was 27.5 ms where a step took 15.7: the rest were prompts."""
    assert host_seconds(metrics([(THREE, 0.00405)], mean=mean)) == pytest.approx(0.00005)


def test_host_time_that_is_not_known_is_none_at_all() -> None:
    assert host_seconds({}) == 0.0
    assert host_seconds(metrics([])) == 0.0, "a vllm-nfp without periods"
    assert host_seconds(metrics([(ONE, 0.003)], steps=63.0)) == 0.0, "too few steps"
    assert host_seconds(metrics([(ONE, 0.003)], steps=64.0)) == pytest.approx(0.001)
    assert host_seconds(metrics([(ONE, 0.0019), (THREE, 0.004)])) == 0.0, "never below"
    assert beyond_device(()) == 0.0


def test_a_kind_of_which_something_is_missing_is_left_out() -> None:
    known = metrics([(ONE, 0.003), (THREE, 0.004)])
    known["vllm_nfp_step_latency_seconds"] = [(ONE, 0.002)]
    assert host_seconds(known) == pytest.approx(0.001)
    known["vllm_nfp_steps_total"] = [(THREE, 100.0)]
    assert host_seconds(known) == 0.0


def test_steps_with_a_draft_are_told_from_those_without() -> None:
    assert drafted_fraction(metrics([])) == pytest.approx(0.3)
    assert drafted_fraction(metrics([], steps=25.0)) == 1.0
    assert drafted_fraction({}) is None


def test_real_steps_are_known_if_enough_were_run() -> None:
    found = metrics([(ONE, 0.0021), (THREE, 0.0043)])
    found["vllm_nfp_steps_total"] = [(ONE, 64.0), (THREE, 63.0)]
    assert real_steps(found) == (RealStep(1, 256, 5, 64.0, 0.0021),)
    assert real_steps({}) == ()


CURVE = StepCurve(1, 256, 0.002, ((1, 1.0), (5, 1.1), (9, 1.2)))


@pytest.mark.parametrize(
    ("seconds", "cost", "host", "warned"),
    [
        (0.0026, DraftCost(), 0.0, False),  # 2.2 ms of verification, times 1.18
        (0.0042, DraftCost(), 0.0, True),
        (0.0042, DraftCost(seconds_per_token=0.0004), 0.0, False),  # 1.6 ms of drafts
        (0.0042, DraftCost(), 0.0015, False),
    ],
)
def test_steps_that_nothing_explains_are_warned_of(
    seconds: float, cost: DraftCost, host: float, warned: bool
) -> None:
    demand = Demand(constant(0.7), cost, host_seconds=host)
    steps = (RealStep(1, 256, 5, 100.0, seconds), RealStep(3, 256, 5, 100.0, 1.0))
    told = unexplained(steps, (CURVE,), demand)
    assert len(told) == warned, "where nothing was probed nothing is known"
    if warned:
        assert told[0].startswith("real steps with K=4 at B=1 L=256 take 4.2 ms, of which 2.2 ms")
    assert unexplained((RealStep(1, 256, 1, 100.0, 1.0),), (CURVE,), demand) == ()
