"""A recorded server's answers, as prices of vLLM's choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.verification import answers as verification_answers
from benchmarks.verification.answers import Prices
from vllm_nfp.draft.curve import StepCurve

RESULTS = Path(verification_answers.__file__).parents[1] / "results"
TURNS = RESULTS / "2026-11-29-h200-gates" / "turns"
TRACES = RESULTS / "2026-11-28-draft-traces-gpu" / "traces.npz"


def curve(width: float, context: int = 1024, batch_size: int = 8) -> StepCurve:
    points = tuple((n, 1.0 + 0.1 * (n - 1)) for n in range(1, 6))
    intervals = tuple((ratio, width * ratio) for _, ratio in points)
    return StepCurve(batch_size, context, 0.005, points, intervals=intervals)


def test_prices_are_of_the_reported_context_below_the_load() -> None:
    prices = Prices([curve(1.1), curve(1.1, context=4096)], drafts=4)
    found = prices.of(("1k", 8))
    assert found is not None
    assert len(found) == 1 + 4 * 8
    drafting = 4 * verification_answers.DRAFT_MS
    assert found[0] == pytest.approx(5.0 + drafting)
    assert found[-1] == pytest.approx(5.0 * 1.4 + drafting)


def test_wide_answers_price_nothing() -> None:
    assert Prices([curve(2.6)], drafts=4).of(("1k", 8)) is None
    assert Prices([curve(2.4)], drafts=4).of(("1k", 8)) is not None
    assert Prices([curve(1.1)], drafts=7).of(("1k", 8)) is None, "it knows five positions"


def test_a_servers_answers_and_the_prediction_choose_as_the_truth_does() -> None:
    """The costs of vLLM chose at five of these loads, and reached 0.79 to 0.97 of it."""
    offline, ways = verification_answers.of_record(
        TURNS / "verification-qwen3-8b.json.gz",
        TURNS / "metrics-qwen3-8b-measured.prom.gz",
        TRACES,
        verification_answers.predicted("qwen3-8b", 36, "H200"),
    )
    assert len(ways) == 2
    for prices in ways.values():
        reached = offline.chosen_by(prices.of)
        assert len(reached) == 11
        assert min(share or 0.0 for share in reached.values()) > 0.985
    table = verification_answers.table(offline, ways)
    assert table.splitlines()[-1].startswith("| mean | 0.99")
