"""The draft length benchmark on workers that answer at once, and the tables of its rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import draft_lengths, draft_table


class Answering:
    """Steps of 5 ms, and 1 ms more for each draft; the controller takes K = 2."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "engine.log"

    def seconds(self, length: int) -> float:
        return 5e-3 + 1e-3 * length

    def measure(self, command: draft_lengths.Command) -> list[dict[str, Any]]:
        kind, _, rest = command.policy.partition(":")
        choices = {"none": (0,), "live": (2,), "round": draft_lengths.LENGTHS}
        lengths = choices[kind] if kind != "fixed" else (int(rest),)
        # A slow spell meets the controller's own turns.
        seconds = {str(k): self.seconds(k) * (1.2 if kind == "live" else 1.0) for k in lengths}
        return [{
            "policy": command.policy, "acceptance": command.acceptance,
            "batch_size": command.batch_size, "context": command.context,
            "tokens": sum(round(100 * command.batch_size * (1 + k * 0.5)) for k in lengths),
            "steps": 100 * len(lengths), "elapsed": 100 * sum(seconds.values()),
            "lengths": dict.fromkeys(seconds, 100), "medians": seconds,
        }]  # fmt: skip

    def ask(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        command = order["command"]
        return [
            {"policy": command["policy"], "acceptance": command["acceptance"],
             "context": command["context"], "place": place,
             "level": level, "tokens": level, "steps": 4, "elapsed": 1.0,
             "lengths": {"0": 4}, "medians": {"0": 0.25}}
            for place, level in enumerate(order["levels"])
        ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker: Any = Answering(tmp_path)
    monkeypatch.setattr(draft_lengths, "step_times", lambda *_: None)
    monkeypatch.setattr(draft_lengths, "recommended", lambda *_: [[1, 128, 4]])
    monkeypatch.setattr(draft_table, "our_length", lambda *_: 3)
    monkeypatch.setattr(draft_table, "step_times", lambda *_: None)
    run = draft_lengths.Run(worker, worker, tmp_path, time.monotonic() + 100, False, 0.01)
    run.warm_up(1024, (1,))
    run.points({1024: (1, 8), 8192: (4,)}, 2)
    run.ramps(0.7, 1024, 2)
    return tmp_path


def test_every_policy_is_measured_at_every_point(folder: Path) -> None:
    rows = draft_table.read_rows(folder / "points.jsonl")
    assert len(rows) == 3 * 2 * (1 + 1 + 3)
    table = draft_table.point_rows(folder)
    assert {(row["acceptance"], row["batch_size"]) for row in table} == {
        (a, b) for a in (0.5, 0.7, 0.9) for b in (1, 4, 8)
    }
    row = next(row for row in table if row["acceptance"] == 0.9 and row["batch_size"] == 8)
    # E(K) / (5 + K) is largest at K = 6 for acceptance 0.9.
    assert row["best"] == 6
    assert row["best_rate"] == pytest.approx(8 * (1 - 0.9**7) / 0.1 / 11e-3)
    assert row["live"] == pytest.approx((2.71 / 7) / ((1 - 0.9**7) / 0.1 / 11))
    assert row["live_timed"] == pytest.approx(row["live"] / 1.2)
    found = draft_table.summary(table)
    assert found["points"] == 9
    assert found["live_beyond_2_percent"] > 0
    assert found["live_below_none_by_1_percent"] == 0


def test_the_ramp_is_summed_by_policy_and_round(folder: Path) -> None:
    rows = draft_table.ramp_rows(folder)
    assert {row["policy"] for row in rows} >= {"none", "documented", "ours", "live", "fixed:8"}
    assert all(row["raw"] == pytest.approx(382 / 15) for row in rows)
    assert all(row["expected"] == pytest.approx(382 / 15 / 0.25) for row in rows)
    assert {row["round"] for row in rows} == {0, 1, 2}  # at last the controller alone


def test_rows_of_earlier_runs_tell_of_one_length_each(tmp_path: Path) -> None:
    rows = [
        {"policy": f"fixed:{k}", "acceptance": 0.7, "context": 1024, "batch_size": 4,
         "medians": {str(k): seconds}}
        for k, seconds in ((0, 1.0), (0, 3.0), (0, 1.5), (3, 2.0))
    ]  # fmt: skip
    assert draft_table.length_seconds(rows) == {(1024, 4): {0: 1.5, 3: 2.0}}
    assert draft_table.spread(rows, (1024, 4)) == 3.0


def test_a_table_carries_its_last_length_on() -> None:
    table = [[1, 4, 3], [9, 16, 1]]
    lengths = [draft_table.length_in(table, batch_size) for batch_size in (1, 6, 9, 100)]
    assert lengths == [3, 3, 1, 1]
