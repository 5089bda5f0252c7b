"""Timelines of a step: what of a trace is busy, idle, and one step; and the run from end to end."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_verification_compare import RECORDED, only_stream

sys.path.insert(0, str(ROOT))
pytest.importorskip("aiohttp")
from benchmarks.serving.traces import write_traces
from benchmarks.verification import compare as verification_compare
from benchmarks.verification import load as verification_load
from benchmarks.verification import step_timeline
from benchmarks.verification import turns as verification_turns
from benchmarks.verification.timeline_steps import MARK, Event, events_of, steps_of, table, told


def traced(*events: tuple[str, float, float], category: str = "kernel") -> dict[str, Any]:
    return {
        "traceEvents": [
            {"name": name, "cat": category, "ts": start, "dur": end - start}
            for name, start, end in events
        ]
    }


ONE_STEP = ((MARK, 0.0, 1.0), ("model", 3.0, 8.0), ("copy", 6.0, 9.0), (MARK, 10.0, 11.0))
"""Two marks a step; the copy runs beside the model, and the device is idle for 2 and 1 us."""


def moved(by: float) -> list[tuple[str, float, float]]:
    return [(name, start + by, end + by) for name, start, end in ONE_STEP]


def test_only_what_the_device_does_counts_and_in_order() -> None:
    trace = traced(("late", 5.0, 6.0), ("early", 1.0, 2.0))
    trace["traceEvents"] += traced(("launch", 0.0, 9.0), category="cuda_runtime")["traceEvents"]
    trace["traceEvents"].append({"name": "a thread", "ph": "M"})
    assert events_of(trace) == [Event("early", 1.0, 2.0), Event("late", 5.0, 6.0)]


def test_a_step_reaches_to_the_first_mark_of_the_next() -> None:
    events = events_of(traced(*moved(0.0), *moved(20.0), *moved(40.0)))
    first, second = steps_of(events)
    assert first.period == second.period == 20.0
    # Until the next step's first mark: 2 between mark and model, 1 before the second mark, 9 after.
    assert first.idle == {(MARK, "model"): 2.0, ("copy", MARK): 1.0, (MARK, MARK): 9.0}
    assert first.busy == 8.0
    assert first.kernels == {MARK: 2.0, "model": 5.0, "copy": 3.0}


def test_steps_come_to_medians_and_mean_idle_time() -> None:
    slow = [*moved(40.0)[:2], *((name, s + 12.0, e + 12.0) for name, s, e in moved(40.0)[2:])]
    events = events_of(traced(*moved(0.0), *moved(20.0), *slow, *moved(80.0)))
    found = told([*steps_of(events)])
    assert (found["steps"], found["period"]) == (3, 20.0)
    assert found["idle_at"][0][:2] == [MARK, MARK]
    assert found["kernels"]["model"] == pytest.approx(5.0)
    assert found["idle"] == pytest.approx(sum(us for *_, us in found["idle_at"]))
    assert told([]) == {}


def test_a_trace_of_less_than_a_step_is_left_out_of_the_table() -> None:
    row = {"server": "measured", "requests": 1, "told": told([*steps_of(events_of(traced()))])}
    waits = {"requests": 1, "rows": [{"way": "sleeps", "tokens_per_second": 100.0},
                                     {"way": "polls", "tokens_per_second": 110.0}]}  # fmt: skip
    text = table({"timelines": [row], "waits": [waits]})
    assert "measured" not in text
    assert "| 1 | 100 to 100 | 110 to 110 | 1.100 | 1 |" in text


def test_a_timeline_is_kept_once_costs_are_in_force() -> None:
    asked: list[str] = []

    class Remote:
        def call(self, _: str, path: str) -> None:
            asked.append(path)

    fed = iter([False, True])
    remote: Any = Remote()
    keeper = step_timeline.Keeper(remote, Path("trace.json"), lambda: next(fed))
    lead_in = verification_turns.LEAD_IN_SECONDS
    assert not keeper.enough(lead_in - 0.1) and not keeper.enough(lead_in) and not asked
    assert keeper.enough(lead_in + 0.1)
    assert asked == ["", "trace.json"]
    never = step_timeline.Keeper(remote, Path("trace.json"), lambda: False)
    assert never.enough(step_timeline.LONGEST_LEAD_IN_SECONDS), "it is not waited for for ever"


def test_it_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against servers that only stream; the trace is one that a server would have written."""
    only_stream(monkeypatch)
    told_: list[tuple[str, ...]] = []

    class Remote:
        def __init__(self, url: str) -> None:
            pass

        def call(self, *asked: str) -> list[dict[str, Any]]:
            told_.append(asked)
            if asked[0] == "bench_timeline" and asked[1]:
                Path(asked[1]).write_text(json.dumps(traced(*moved(0.0), *moved(20.0))))
            return [{"adaptive": False}]

    for module in (verification_compare, step_timeline):
        monkeypatch.setattr(module, "Remote", Remote)
    monkeypatch.setattr(verification_turns, "LEAD_IN_SECONDS", 0.05)
    monkeypatch.setattr(step_timeline, "LONGEST_LEAD_IN_SECONDS", 0.1)
    monkeypatch.setattr(step_timeline, "KEPT_SECONDS", 0.01)
    monkeypatch.setattr(step_timeline, "SHORT", 8)
    monkeypatch.setattr(step_timeline, "PLACES_OF_FEW", 16)
    monkeypatch.setattr(verification_load, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(verification_load, "BEGIN", 4)
    monkeypatch.setattr(
        step_timeline, "one_load", lambda *_: {"tokens_per_second": 100.0, "host": {}}
    )
    write_traces(tmp_path / "traces.npz", RECORDED, {"commit": "abc"})
    step_timeline.main.main(
        ["--shape=tiny", "--layers=2", f"--traces={tmp_path / 'traces.npz'}", "--within=60",
         "--requests=2", "--rounds=2", f"--out={tmp_path}"],
        standalone_mode=False,
    )  # fmt: skip
    held = json.loads((tmp_path / "timeline.json").read_text())
    assert [row["server"] for row in held["timelines"]] == ["fixed-3", "fixed-5", "measured"]
    assert all(row["told"]["period"] == 20.0 for row in held["timelines"])
    (waits,) = held["waits"]
    assert [row["way"] for row in waits["rows"]] == ["sleeps", "polls", "polls", "sleeps"]
    assert told_[-1] == ("bench_wait", "sleeps"), "as vLLM has it, at the end"
    kept = gzip.decompress((tmp_path / "trace-measured-2.json.gz").read_bytes())
    assert len(json.loads(kept)) == 8
    assert not list(tmp_path.glob("trace-*.json"))
    assert "| 2 | measured | 1 | 20 | 8 | 12 |" in capsys.readouterr().out
