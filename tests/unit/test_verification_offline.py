"""Where a recorded comparison of adaptive verification lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.serving.traces import AnswerTrace, tokens_per_step, write_traces
from benchmarks.verification import offline
from benchmarks.verification.load import Point
from benchmarks.verification.plan import LONGEST, points
from benchmarks.verification.streams import make_streams
from benchmarks.verification.walk import REFIT_INTERVAL, Estimator, chosen, walk

REQUESTS = 8
FEW = (("1k", 8), ("1k", 16))
"""Loads of few requests, which are replayed fast."""


def traces() -> list[AnswerTrace]:
    """Drafts that are right as often as their log odds say, if these are doubled."""
    random = np.random.default_rng(3)
    found = []
    for number in range(24):
        log_odds = random.normal(1.0, 1.5, (128, LONGEST)).astype(np.float32)
        right = random.random((128, LONGEST)) < 1.0 / (1.0 + np.exp(-2.0 * log_odds))
        accepted = np.cumprod(right, axis=1).sum(axis=1)
        found.append(AnswerTrace("chat" if number % 2 else "code", log_odds, accepted))
    return found


def test_the_choice_is_vllms() -> None:
    pytest.importorskip("vllm")
    from test_verification_feed import DRAFTS, made_manager, step

    random = np.random.default_rng(5)
    for _ in range(20):
        manager = made_manager()
        confidences = random.random((REQUESTS, DRAFTS))
        manager._stale_confidences[0].np[:REQUESTS] = confidences
        drafting, verifying = manager.cost_tables
        verifying[:] = 3.0 + np.cumsum(random.random(len(verifying))) / 20.0
        costs = drafting[REQUESTS] + verifying[REQUESTS : REQUESTS * (1 + DRAFTS) + 1]
        as_stored = manager._stale_confidences[0].np[:REQUESTS].astype(np.float64)
        assert chosen(as_stored, costs) == step(manager)


def test_the_estimator_learns_what_the_drafts_show() -> None:
    estimator, found = Estimator(LONGEST), traces()
    log_odds = np.concatenate([trace.log_odds for trace in found]).astype(np.float64)
    accepted = np.concatenate([trace.accepted for trace in found])
    all_verified = np.full(len(accepted), LONGEST)
    for _ in range(8 * REFIT_INTERVAL):
        estimator.step(log_odds, estimator.predict(log_odds), accepted, all_verified)
    assert estimator.slope == pytest.approx(2.0, rel=0.1)
    assert estimator.intercepts == pytest.approx(np.zeros(LONGEST), abs=0.3)
    cut = estimator.cut(3)
    assert cut.predict(log_odds[:, :3]) == pytest.approx(estimator.predict(log_odds)[:, :3])


def test_requests_meet_what_was_recorded() -> None:
    streams = make_streams(traces(), REQUESTS, 1024, 1000)
    point = Point("1k", (1024,) * REQUESTS, 400)
    costs = np.linspace(5.0, 6.0, REQUESTS * LONGEST + 1)
    for drafts in (1, LONGEST):
        ran = walk(
            streams.cut(drafts), point, costs[: REQUESTS * drafts + 1], costs,
            Estimator(drafts), fixed=REQUESTS * drafts,
        )  # fmt: skip
        assert ran.tokens == pytest.approx(tokens_per_step(traces(), drafts), rel=0.08)
        assert ran.verified == drafts
        assert ran.milliseconds == pytest.approx(costs[REQUESTS * drafts])
    free = walk(streams, point, costs, costs, Estimator(LONGEST))
    dear = walk(streams, point, np.linspace(5.0, 50.0, len(costs)), costs, Estimator(LONGEST))
    assert dear.verified < free.verified


def record(host_ms: float) -> dict[str, Any]:
    """Steps of 4 ms, 0.25 ms for each draft, 5 us for each that is verified, and the host's."""
    rows = []
    for point in points():
        for name, drafts, tokens, more in (
            ("none", 0, 1.0, 0.0), ("fixed-1", 1, 1.7, 0.2), ("fixed-3", 3, 2.4, 0.2),
            ("fixed-5", 5, 2.7, 0.2), ("fixed-7", 7, 2.8, 0.2), ("measured", 7, 2.8, 0.2 + host_ms),
        ):  # fmt: skip
            took = 4.0 + 0.25 * drafts + 0.005 * drafts * point.requests + more
            rows.append({
                "contender": name, "context": point.context, "requests": point.requests,
                "tokens_per_second": 1e3 * point.requests * tokens / took, "whole": True,
                "counted": {
                    "vllm:spec_decode_num_drafts_total": 1000.0 if drafts else 0.0,
                    "vllm:spec_decode_num_accepted_tokens_total": 1000.0 * (tokens - 1.0),
                },
            })  # fmt: skip
    return {"rows": rows}


def test_the_time_of_steps_is_that_of_fixed_lengths() -> None:
    held = offline.rows(record(0.0))["1k", 8]
    true = offline.true_ms(("1k", 8), held)
    verified = np.array([0, 8, 24, 40, 56])
    assert true[verified] == pytest.approx(4.2 + 0.25 * LONGEST + 0.005 * verified)


def test_a_record_may_lack_what_was_not_measured() -> None:
    """Servers in turn: none without speculation, no length that loses, and fewer loads."""
    full = record(0.0)["rows"]
    found = offline.rows({"rows": [r for r in full if r["contender"] not in ("none", "fixed-7")]})
    true = offline.true_ms(("1k", 8), found["1k", 8])
    verified = np.array([8, 24, 40, 56])
    assert true[verified] == pytest.approx(4.2 + 0.25 * LONGEST + 0.005 * verified)
    assert true[0] == true[8], "no less is known"
    streams = make_streams(traces(), 128, 1024, 1000)
    few = {load: found[load] for load in FEW}
    assert offline.Offline(streams, few).shares("measured").keys() == few.keys()


def test_ways_that_draft_less_are_held_against_what_they_draft() -> None:
    """Four drafts a step take 0.75 ms less than seven, and that is not the host's."""
    rows = record(0.0)["rows"]
    for row in rows:
        if row["contender"] == "measured":
            took = 4.0 + 0.25 * 4 + 0.005 * 4 * row["requests"] + 0.2
            row["tokens_per_second"] = 1e3 * row["requests"] * 2.6 / took
            row["counted"]["vllm:spec_decode_num_accepted_tokens_total"] = 1600.0
    streams = make_streams(traces(), 128, 1024, 1000)
    all_loads = offline.rows({"rows": rows})
    held = {load: all_loads[load] for load in FEW}
    found = offline.Offline(streams, held, drafts=4).shares("measured")
    assert found["1k", 8].host == pytest.approx(1.0, abs=0.02)
    whole = offline.Offline(streams, held).shares("measured")
    assert whole["1k", 8].drafting < found["1k", 8].drafting


def test_shares_make_up_what_was_reached(tmp_path: Path) -> None:
    streams = make_streams(traces(), 128, 1024, 1000)
    by_host = {}
    for host in (0.0, 2.0):
        held = offline.rows(record(host))
        found = offline.Offline(streams, held)
        by_host[host] = found.shares("measured")["1k", 8]
        reached = held["1k", 8]["measured"].speed / found.best(("1k", 8))[1].speed
        assert by_host[host].all == pytest.approx(reached)
        assert found.shares("vllm") == {}
    free, dear = (found.priced(1.0, cut)["1k", 8] for cut in (0.0, 1.5))
    assert free[1] == free[2], "no step takes more than others"
    assert max(dear[:2]) < dear[2]
    assert dear[0] < free[0]
    assert by_host[2.0].drafting == by_host[0.0].drafting
    assert by_host[2.0].choice == by_host[0.0].choice
    assert by_host[2.0].host < by_host[0.0].host
    write_traces(tmp_path / "traces.npz", traces(), {})
    path = tmp_path / "record.json.gz"
    path.write_bytes(gzip.compress(json.dumps(record(1.0)).encode()))
    shown = CliRunner().invoke(
        offline.main, [str(path), "--traces", str(tmp_path / "traces.npz")], catch_exceptions=False
    )
    assert shown.exit_code == 0
    assert shown.output.count("| mixed, 16 |") == 4
    fast, slow = (found.added(slower) for slower in (1.0, 2.0))
    assert all(share == pytest.approx(1.0, abs=0.002) for share in fast.values()), "the device's"
    assert min(slow.values()) < 0.97, "more positions cost nothing, and the prices do not say so"
    drafts = found.advised()
    assert 1 <= drafts.draft_length < LONGEST, "each draft takes its time"
    assert f"draft {drafts.draft_length} tokens at each step" in shown.output


def test_counted_acceptance_is_that_of_the_traces() -> None:
    streams = make_streams(traces(), REQUESTS, 1024, 1000)
    tokens = 1.0 + offline.counted(streams).mean()
    assert tokens == pytest.approx(tokens_per_step(traces(), LONGEST), rel=0.08)
