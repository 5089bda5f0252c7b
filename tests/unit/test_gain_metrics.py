"""The draft length that runs, and the gain of the recommended one over it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from vllm_nfp.draft.acceptance import constant
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand, DraftCost
from vllm_nfp.files import write_whole
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.results.control import ControlSnapshot, ControlState, control_file
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.strict_json import encode
from vllm_nfp.types import CurvePoint, LiveStep, Module, State

RATIOS = ((1, 1.0), (2, 1.0), (4, 1.25), (8, 2.0))
CURVE = StepCurve(
    4, 1000, 0.01, RATIOS, intervals=((1.0, 1.0), (0.99, 1.01), (1.2, 1.3), (1.9, 2.2))
)
HALF = Demand(constant(0.5))
"""1.5, 1.875 and 1.9921875 tokens a step at K = 1, 3 and 7."""


def test_a_gain_is_of_tokens_and_step_times() -> None:
    gain = HALF.gain_over(CURVE, 1, 7)
    assert gain is not None
    assert gain.value == pytest.approx((1.5 / 1.0) / (1.9921875 / 2.0))
    assert gain.lower is not None
    assert gain.upper is not None
    down = math.hypot(math.log(1.01), math.log(2.0 / 1.9))
    up = math.log(2.2 / 2.0)  # no step with drafts is quicker than one without
    assert gain.lower == pytest.approx(gain.value * math.exp(-down))
    assert gain.upper == pytest.approx(gain.value * math.exp(up))


def test_what_runs_gains_nothing_over_itself() -> None:
    gain = HALF.gain_over(CURVE, 3, 3)
    assert gain is not None
    assert (gain.lower, gain.value, gain.upper) == (1.0, 1.0, 1.0)


def test_without_drafts_the_cost_of_drafting_counts() -> None:
    dear = Demand(constant(0.5), DraftCost(share_per_token=0.5))
    gain = dear.gain_over(CURVE, 0, 1)
    assert gain is not None
    assert gain.value == pytest.approx((1.0 / 1.5) / (1.5 / 1.5))


def test_no_gain_over_a_length_that_is_not_known() -> None:
    assert HALF.gain_over(CURVE, 1, 8) is None, "the curve ends at 7 drafts"
    assert HALF.gain_over(CURVE, 1, 7) is not None
    unsure = dataclasses.replace(CURVE, intervals=())
    gain = HALF.gain_over(unsure, 1, 3)
    assert gain is not None
    assert gain.lower is gain.upper is None


class Shown:
    """A collector on a folder with one engine's results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = CollectorRegistry()
        self.registry.register(NfpCollector(str(folder), registry=self.registry))
        live = LiveStep(batch_size=4, context=1000, positions=4)
        curves = tuple(
            CurvePoint(Module.MODEL, 4, 1000, n, 9, ratio / 100, ratio, *interval, "full")
            for (n, ratio), interval in zip(RATIOS, CURVE.intervals, strict=True)
        )
        snapshot = Snapshot(
            "m", "0", State.STEADY, curves=curves, live_curves=curves, live=live
        )  # fmt: skip
        write_snapshot(engine_file(str(folder), "0"), snapshot)

    def drafts(self, configured: int) -> None:
        """As vLLM counts drafts of which every second token is accepted."""
        labels = ["model_name", "engine"]
        of = {"model_name": "m", "engine": "0"}
        for name, value in (("drafts", 1000), ("draft_tokens", 1000 * configured)):
            counter = Counter(f"vllm:spec_decode_num_{name}", "", labels, registry=self.registry)
            counter.labels(**of).inc(value)
        places = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "", [*labels, "position"],
            registry=self.registry,
        )  # fmt: skip
        for place in range(configured):
            places.labels(**of, position=str(place)).inc(1000 * 0.5 ** (place + 1))

    def values(self) -> dict[str, float]:
        return {
            sample.name.removeprefix("vllm_nfp_live_"): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if "running_draft" in sample.name or "live_draft_gain" in sample.name
        }


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    yield Shown(tmp_path)


def test_a_server_without_speculation_runs_no_drafts(shown: Shown) -> None:
    assert shown.values() == {"running_draft_length": 0}


def test_a_server_shows_what_it_runs_and_what_another_length_gains(shown: Shown) -> None:
    shown.drafts(configured=7)
    values = shown.values()
    assert values["running_draft_length"] == 7
    expected = HALF.gain_over(CURVE, 1, 7)
    assert expected is not None
    assert values["draft_gain_ratio"] > 1.4
    assert values["draft_gain_ratio"] == pytest.approx(expected.value, rel=0.01)
    assert 1.0 < values["draft_gain_ratio_lower"] < values["draft_gain_ratio"]
    assert values["draft_gain_ratio_upper"] > values["draft_gain_ratio"]


def test_draft_control_says_what_runs(shown: Shown) -> None:
    shown.drafts(configured=7)
    controlled = ControlSnapshot("m", "0", ControlState.DECIDING, live_draft_length=3)
    write_whole(control_file(str(shown.folder), "0"), encode(controlled))
    assert shown.values()["running_draft_length"] == 3
