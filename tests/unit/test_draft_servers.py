"""The benchmark of draft lengths on real servers: its plans, rates and scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
import itertools

from benchmarks.draft_fleet import EACH_LENGTH, FIXED, MAX_NUM_SEQS
from benchmarks.draft_servers import GpuPlan, read_plan
from benchmarks.draft_servers_rates import counted_rates
from benchmarks.draft_servers_score import points, summary
from benchmarks.draft_servers_turns import Turns
from vllm_nfp.start.process import ProcessError


def test_a_plan_is_read_and_others_are_refused() -> None:
    assert read_plan("1:0.9,0.5:1,16,128") == GpuPlan("1", (0.9, 0.5), (1, 16, 128))
    for text in ("1", "0:2:1", "0:0.5:", "0:0.5:0", "0:a:1"):
        with pytest.raises(click.BadParameter, match="INDEX:ACCEPTANCES:BATCH_SIZES"):
            read_plan(text)


def test_the_table_holds_every_fixed_length_without_gaps() -> None:
    assert [k for *_, k in EACH_LENGTH] == list(FIXED)
    assert EACH_LENGTH[0][0] == 1
    assert EACH_LENGTH[-1][1] == MAX_NUM_SEQS
    for (_, last, _), (first, end, _) in itertools.pairwise(EACH_LENGTH):
        assert first == last + 1 <= end


def test_rates_are_of_the_drafts_between_two_scrapes() -> None:
    def metrics(drafts: int, *accepted: int) -> str:
        lines = [f'vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}']
        lines += [
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{p}"}} {n}'
            for p, n in enumerate(accepted)
        ]
        return "\n".join([*lines, ""])

    found = counted_rates(metrics(100, 90, 80, 1), metrics(200, 140, 105, 31))
    assert found == [0.5, 0.25, 0.25], "a later token is never accepted more often"


def row(policy: str, rate: float, acceptance: float | None = 0.7, number: int = 0) -> dict:
    return {"gpu": "0", "policy": policy, "acceptance": acceptance, "batch_size": 4,
            "round": number, "tokens_per_second": rate}  # fmt: skip


def test_every_point_is_scored_by_the_medians_of_its_rounds() -> None:
    rows = [row("none", 50.0, None)]
    for number, factor in enumerate((1.0, 1.1, 3.0)):
        rates = {"fixed:1": 80.0, "fixed:3": 100.0, "live": 97.0, "table": 99.0}
        rows += [row(policy, rate * factor, 0.7, number) for policy, rate in rates.items()]
    rows += [row("fixed:1", 60.0, 0.5), row("fixed:3", 9.0, 0.5), row("live", 30.0, 0.5)]
    late, first = points([*rows, row("fixed:1", 1.0, 0.9)])
    assert (first["best"], first["rounds"]) == ("fixed:3", 3)
    assert first["best_rate"] == pytest.approx(110.0)
    assert first["table"] == pytest.approx(0.99)
    assert first["none"] == pytest.approx(50.0 / 110.0)
    assert late["table"] == late["none"], "none was recommended"
    found = summary([late, first])
    assert found["table"]["within_2_percent"] == 1
    assert found["live"]["points"] == 2
    assert found["live"]["worst"] == pytest.approx(0.5)
    assert found["live"]["worst_over_none"] == pytest.approx(0.6)


def test_rounds_that_stalled_count_and_are_named() -> None:
    rates = {"fixed:1": 80.0, "fixed:3": 100.0, "live": 97.0, "table": 99.0}
    rows = [{**row("none", 50.0, None), "silent_seconds": 0.02}]
    rows += [{**row(policy, rate, 0.7), "silent_seconds": 0.1} for policy, rate in rates.items()]
    (steady,) = points(rows)
    assert steady["stalled"] == {} and "without_stalls" not in summary([steady])
    rows += [{**row(policy, rate, 0.5), "silent_seconds": 0.1} for policy, rate in rates.items()]
    rows += [
        {**row("live", 1.0, 0.5, 1), "silent_seconds": 1.9},
        {**row("live", 0.0, 0.5, 2), "silent_seconds": 2.2},
    ]
    stalled, _ = points(rows)
    assert stalled["stalled"] == {"live": 2}
    assert stalled["live"] == pytest.approx(0.01), "the median counts them"
    found = summary([stalled, steady])
    assert found["live"]["worst"] == pytest.approx(0.01)
    assert found["without_stalls"]["live"]["worst"] == pytest.approx(0.97)
    assert found["without_stalls"]["live"]["points"] == 1


def test_a_point_that_was_cut_off_is_left_out_and_a_failed_table_has_no_score() -> None:
    rates = {"fixed:1": 80.0, "fixed:3": 100.0, "live": 97.0}

    def point(state: str, acceptance: float, **more: float) -> list[dict]:
        found = [row(name, rate, acceptance) for name, rate in {**rates, **more}.items()]
        return [{**one, "table": state} for one in found]

    plain = row("none", 50.0, None)
    served, cut = point("served", 0.5, table=99.0), point("served", 0.7)
    failed, none = point("failed", 0.9), point("none", 0.3)
    found = points([plain, *served, *cut, *failed, *none])
    assert [one["acceptance"] for one in found] == [0.3, 0.5, 0.9]
    assert [one.get("table") for one in found] == [0.5, pytest.approx(0.99), None]
    assert summary(found)["table"]["points"] == 2 and summary(found)["live"]["points"] == 3
    assert "table" not in points([plain, *point("refused", 0.9)])[0], "an error is no advice"
    (_, *whole) = point("none", 0.3)
    assert points([plain, *served, *whole])[0]["acceptance"] == 0.5, "a fixed length is missing"
    assert "table" not in summary(points([plain, *failed]))


def test_a_run_goes_on_without_a_table_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Fleet:
        """Servers that answer, but for those of tables."""

        def run(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(url="http://x", metrics=lambda: "vllm_nfp_state 1\n")

        def speculation(self, acceptance: float, table: dict) -> list[str]:
            return ["--speculative-config", json.dumps(table)]

        def start(self, flags: dict, spared_seconds: float) -> None:
            told.append(f"start {[*flags]} sparing {spared_seconds:.0f} s")
            raise ProcessError("the server was not ready in 9 s")

        def pause(self) -> None: ...

        def say(self, text: str) -> None:
            told.append(text)

    monkeypatch.setattr(Turns, "_accept", lambda *_: None)
    monkeypatch.setattr(Turns, "_traffic", lambda *_: None)
    monkeypatch.setattr(Turns, "_asked", lambda *_: {"num_speculative_tokens": 3})
    turns = Turns(Fleet(), (0.7,), (1, 4), tmp_path)  # type: ignore[arg-type]
    turns.recommend()
    assert told[0].startswith("start ['table-0.7'] sparing")
    assert told[1] == "no table is measured: the server was not ready in 9 s"
    measured: list[str] = []
    monkeypatch.setattr(Turns, "_measure", lambda self, name, *_: measured.append(name))
    turns._fleet.left, turns._fleet.set_length = 99.0, lambda *_: None  # type: ignore[misc]
    turns._point(0.7, 1, 0)
    assert set(measured) == {"drafts", "live"}
    assert turns._table_state(0.7) == "failed"


@pytest.mark.parametrize("code", [0, 2])
def test_an_error_of_recommend_is_not_taken_for_advice_against_drafts(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def answer(command: list[str], **_: object) -> SimpleNamespace:
        config = "--speculative-config" in command  # which fails too where no drafts pay
        text = "Error: --draft-cost is needed"
        return SimpleNamespace(stdout="", stderr=text, returncode=2 if config else code)

    monkeypatch.setattr("benchmarks.draft_servers_turns.subprocess.run", answer)
    turns = Turns(SimpleNamespace(head=None, say=told.append), (0.7,), (1,), tmp_path)  # type: ignore[arg-type]
    turns._tables[0.7] = turns._asked("http://x", 0.7, None, "")
    assert turns._table_state(0.7) == ("refused" if code else "none")
    assert ("recommend failed: Error: --draft-cost is needed" in told) == bool(code)


def test_fixed_lengths_alone_start_and_measure_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    measured: list[str] = []
    fleet = SimpleNamespace(
        start=started.extend, speculation=lambda *_: [], left=99.0,
        run=lambda name: None, set_length=lambda *_: None,
    )  # fmt: skip
    monkeypatch.setattr(Turns, "_measure", lambda self, name, policy, *_: measured.append(policy))
    turns = Turns(fleet, (0.7,), (4,), tmp_path, alone=True)  # type: ignore[arg-type]
    turns.begin()
    turns.recommend()
    turns._return_to(0.7)
    turns._point(0.7, 4, 0)
    assert started == ["drafts"]
    assert sorted(measured) == [f"fixed:{k}" for k in FIXED]
    (found,) = points([row("fixed:1", 80.0), row("fixed:3", 100.0), row("fixed:3", 90.0)])
    assert (found["best"], found["rounds"], found["fixed:1"]) == ("fixed:3", 2, 80.0 / 95.0)
    assert summary([found]) == {}
    assert points([row("live", 80.0)]) == [], "cut off before any fixed length"
