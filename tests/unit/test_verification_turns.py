"""The benchmark of adaptive verification in turn: each load with one server after another."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from test_verification_compare import RECORDED, only_stream

sys.path.insert(0, str(ROOT))
pytest.importorskip("aiohttp")
from benchmarks.serving import length_graphs, shapes
from benchmarks.serving.traces import write_traces
from benchmarks.verification import compare as verification_compare
from benchmarks.verification import load as verification_load
from benchmarks.verification import table as verification_table
from benchmarks.verification import turns as verification_turns
from benchmarks.verification.load import Point
from benchmarks.verification.turns import turns


def settings_for(out: Path, **changed: Any) -> verification_compare.Settings:
    write_traces(out / "traces.npz", RECORDED, {"commit": "abc"})
    return verification_turns.settings_in_turn(
        shape="tiny", layers=2, traces=out / "traces.npz", within=60.0, passes=2, out=out,
        started=0.0, most_requests=128, **changed,
    )  # fmt: skip


def test_each_pass_begins_with_another_contender() -> None:
    assert [turns("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_loads_fit_into_the_smaller_kv_cache() -> None:
    for most in (128, 64, 16):
        loads = verification_turns.loads(most)
        held = [sum(p.prompts) + p.requests * 2 * p.places for p in loads]
        assert max(held) < verification_turns.kv_tokens(most)
        assert max(p.requests for p in loads) == most
    assert {p.requests for p in verification_turns.loads()} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_servers_are_as_their_users_have_them(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, adaptive_drafts=4)
    specs = {
        name: verification_compare.spec_of(name, settings) for name in verification_turns.CONTENDERS
    }
    as_is = {name: spec.extra[length_graphs.AS_IS_VARIABLE] for name, spec in specs.items()}
    assert as_is == {"fixed": "0", "vllm": "1", "measured": "0"}
    assert set(specs["measured"].flags) - set(specs["vllm"].flags) == {
        "--nfp-probe",
        "--nfp-verification-costs",
    }


def test_the_comparison_in_turn_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against servers that only stream; a length that loses is not run again."""
    only_stream(monkeypatch)

    class Remote:
        def __init__(self, url: str) -> None:
            pass

        def call(self, *_: str) -> list[dict[str, Any]]:
            return [{"adaptive": False}]

    speeds = iter([100.0, 120.0, 101.0] + [100.0] * 99)
    one_load = verification_turns.one_load

    def slower(*given: Any) -> dict[str, Any]:
        return {**one_load(*given), "tokens_per_second": next(speeds)}

    monkeypatch.setattr(verification_turns, "one_load", slower)
    for module in (verification_compare, verification_turns):
        monkeypatch.setattr(module, "Remote", Remote)
    point = Point("1k", (8, 8), 16)
    monkeypatch.setattr(verification_turns, "loads", lambda most: [point] * (most == 16))
    monkeypatch.setattr(verification_turns, "LEAD_IN_SECONDS", 0.05)
    monkeypatch.setattr(verification_turns, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(verification_load, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(verification_load, "BEGIN", 4)
    in_force = itertools.cycle([{"measured_costs": 0.0}] * 9 + [{"measured_costs": 1.0}])
    monkeypatch.setattr(verification_turns, "verification", lambda _: next(in_force))
    settings_for(tmp_path)
    verification_turns.main.main(
        ["--shape=tiny", "--layers=2", f"--traces={tmp_path / 'traces.npz'}", "--within=60",
         "--passes=2", "--most-requests=16", f"--out={tmp_path}"],
        standalone_mode=False,
    )  # fmt: skip
    held = json.loads((tmp_path / "verification-tiny.json").read_text())
    met = [(row["pass"], row["contender"]) for row in held["rows"]]
    first = ["fixed-1", "fixed-3", "fixed-5", "vllm", "measured"]
    again = ["vllm", "measured", "fixed-3"]
    assert met == [(0, name) for name in first] + [(1, name) for name in again]
    lead_ins = {r["contender"]: r["lead_in_seconds"] for r in held["rows"] if r["pass"] == 0
                and "lead_in_seconds" in r}  # fmt: skip
    assert 0.05 <= lead_ins["vllm"] < lead_ins["measured"], "until measured costs are in force"
    assert next(in_force)["measured_costs"] == 0.0, "asked until then, and no longer"
    shown = held["servers"]["vllm"]["flags"]
    kv = int(shapes.kv_gib("tiny", 3, verification_turns.kv_tokens(16)) * 2**30)
    assert shown[shown.index("--kv-cache-memory-bytes") + 1] == str(kv), "the servers' own"
    assert held["in_turn"] and set(held["servers"]) == {"fixed", "vllm", "measured"}
    assert [path.name for path in tmp_path.glob("*.prom.gz")] == ["metrics-tiny-measured.prom.gz"]
    found = verification_table.cells(held["rows"], in_turn=True)["1k", 2]
    assert found["fixed-3"].tokens_per_second == 110.0, "the median of 120 and 100"
    assert verification_table.cells(held["rows"])["1k", 2]["fixed-3"].tokens_per_second == 100.0
    assert "| 1k | 2 |" in capsys.readouterr().out
