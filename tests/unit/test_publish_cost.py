"""The benchmarks of the background thread: its work without a server, and who feels it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
pytest.importorskip("vllm")
pytest.importorskip("aiohttp")

from benchmarks.overhead import publish_cost, serving_stalls
from vllm_nfp.give_way import serving
from vllm_nfp.results.snapshot import read_snapshot
from vllm_nfp.timing import StepTimes


def test_the_publishers_own_work_is_measured_with_the_table_of_a_large_server(
    tmp_path: Path,
) -> None:
    line = publish_cost.measured(tmp_path, publish_cost.prior_of_server(), 4.0, 12.0)
    assert re.match(r"4 streams: \d+\.\d\d % of a core; a publication \d+\.\d ms", line)
    shown = read_snapshot(tmp_path / "engine-0.json")
    assert len({(row.batch_size, row.context) for row in shown.curves}) == 11 * 4
    assert any(row.samples for row in shown.curves), "pairs were taken in"
    assert shown.live is not None and shown.steps


def test_traffic_fills_the_time_with_steps() -> None:
    times = StepTimes()
    traffic = publish_cost.Traffic(publish_cost.prior_of_server(), 16.0, times)
    traffic.run(2.0)
    kinds = times.kinds()
    told = sum(of.count * of.median_seconds for of in kinds)
    assert told == pytest.approx(2.0, rel=0.1)
    assert {of.shape.positions for of in kinds} == {1}
    assert np.mean([of.shape.batch_size for of in kinds]) == pytest.approx(16, abs=6)


def test_imitated_steps_are_decodes_and_prompts_and_nothing_stays_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_stalls, "PROMPT_CALLS", 80)
    monkeypatch.setattr(serving_stalls, "PYTHON_ROUNDS", 10)
    steps = serving_stalls.serve(0.2)
    assert 0 < steps.prompts.sum() <= len(steps.prompts) / serving_stalls.DECODES
    assert (steps.lengths > 0.0).all() and (np.diff(steps.begins) > 0.0).all()
    assert not serving.host_bound


def test_a_step_meets_the_thread_if_they_share_a_moment() -> None:
    begins, lengths = np.array([0.0, 1.0, 2.0, 3.0]), np.full(4, 0.5)
    steps = serving_stalls.Steps(begins, lengths, np.zeros(4, dtype=bool))
    met = serving_stalls.overlaps(steps, [(0.4, 0.6), (2.6, 2.9), (2.9, 3.1)])
    assert met.tolist() == [True, False, False, True]
    both = serving_stalls.joined([steps, steps])
    assert len(both.begins) == 8
