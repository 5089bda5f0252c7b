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

from benchmarks.drafts.acceptance import Acceptance, read_acceptance
from benchmarks.drafts.fleet import EACH_LENGTH, FIXED, MAX_NUM_SEQS
from benchmarks.drafts.servers import GpuPlan, kv_gib_of, read_plan
from benchmarks.drafts.servers_rates import counted, counted_rates
from benchmarks.drafts.servers_score import points, summary
from benchmarks.drafts.servers_turns import (
    AGAIN_SCALE,
    FIRST_WARM_UP_SECONDS,
    TRAFFIC_SCALE,
    WARM_UP_SECONDS,
    Turns,
    lost,
)
from benchmarks.serving import talk
from benchmarks.serving.speculation import speculative_config
from benchmarks.serving.traffic import Load, request_bodies
from vllm_nfp.start.process import ProcessError

ALIKE = Acceptance(0.7, 0.7)


def test_a_plan_is_read_and_others_are_refused() -> None:
    falling = Acceptance(0.9, 0.5)
    assert read_plan("1:0.7,0.9..0.5:1,16,128") == GpuPlan("1", (ALIKE, falling), (1, 16, 128))
    wrong = ("1", "0:2:1", "0:0.5:", "0:0.5:0", "0:a:1", "0:0.5..0.9:1", "0:0.5..:1", "0:0.5:129")
    for text in wrong:
        with pytest.raises(click.BadParameter, match="INDEX:ACCEPTANCES:BATCH_SIZES"):
            read_plan(text)


def test_acceptance_is_alike_or_falls_in_equal_steps() -> None:
    assert (ALIKE.name, ALIKE.rates) == ("0.7", [0.7] * 8)
    assert reached(ALIKE, 3) == pytest.approx([0.7, 0.49, 0.343])
    falling = read_acceptance("0.9..0.55")
    assert falling.name == "0.9..0.55"
    assert falling.rates == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55])
    assert reached(falling, 2) == pytest.approx([0.9, 0.765])


def reached(acceptance: Acceptance, longest: int) -> list[float]:
    """Of each draft and all before it, as vLLM gets it."""
    config = speculative_config("ngram_gpu", longest, None, acceptance.rates)
    assert config["num_speculative_tokens"] == longest
    found: list[float] = config["synthetic_acceptance_rates"]
    return found


def test_a_kv_cache_holds_the_most_streams_and_the_traffic_before() -> None:
    few, many = (GpuPlan("0", (ALIKE,), sizes) for sizes in ((1, 4), (16, 128)))
    each = 25 * 2 * 8 * 128 * 2 / 2**30  # of a token, with the head's layer
    found = kv_gib_of("qwen3-8b", 24, 1024, [few, many])
    assert found == pytest.approx(1.04 * 128 * (1024 + 512) * each)
    assert kv_gib_of("qwen3-8b", 24, 256, [few]) == pytest.approx(1.04 * 40_000 * each)


def test_prompts_that_talk_follow_the_cycle_after_two_ids_that_differ() -> None:
    talks = Load("http://x", "m", 1000, 2, 40, 8, seconds=1.0, talks=True)
    one, two = itertools.islice(request_bodies(talks, 1), 2)
    first, second = (json.loads(body)["prompt"] for body in (one, two))
    assert first[2:] == second[2:] == talk.prompt(1, 38) and first[:2] != second[:2]
    other = json.loads(next(request_bodies(talks, 2)))["prompt"]
    assert other[2] != first[2]


def test_the_table_holds_every_length_without_gaps() -> None:
    assert [k for *_, k in EACH_LENGTH] == list(range(FIXED[-1] + 1))
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


def test_what_a_load_drafted_is_counted() -> None:
    def metrics(drafts: int, tokens: int, trials: int) -> str:
        return (
            "# TYPE vllm:spec_decode_num_drafts counter\n"
            f"vllm:spec_decode_num_drafts_total {drafts}\n"
            "# TYPE vllm:spec_decode_num_draft_tokens counter\n"
            f"vllm:spec_decode_num_draft_tokens_total {tokens}\n"
            "# TYPE vllm_nfp_draft_control_trial_steps counter\n"
            f"vllm_nfp_draft_control_trial_steps_total {trials}\n"
        )

    found = counted(metrics(100, 300, 7), metrics(160, 660, 9))
    assert found == {"drafts": 60.0, "draft_tokens": 360.0, "trial_steps": 2.0}
    assert counted("", "") == {}, "a server without drafts counts none"


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

        shape = SimpleNamespace(prompt_tokens=256)

        def speculation(self, acceptance: Acceptance, table: dict) -> list[str]:
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
    turns = Turns(Fleet(), (ALIKE,), (1, 4), tmp_path, own_tables=True)  # type: ignore[arg-type]
    turns._fleet.left = 200.0  # type: ignore[misc]
    turns.recommend()
    assert told[0].startswith("start ['table-0.7'] sparing")
    assert told[1] == "no table is measured: the server was not ready in 9 s"
    measured: list[str] = []
    monkeypatch.setattr(Turns, "_measure", lambda self, name, *_: measured.append(name))
    turns._fleet.left, turns._fleet.set_lengths = 99.0, lambda *_: None  # type: ignore[misc]
    turns._later_round(ALIKE, 1, 1)
    assert set(measured) == {"drafts", "live"}
    assert turns._table_state(ALIKE) == "failed"


@pytest.mark.parametrize("code", [0, 2])
def test_an_error_of_recommend_is_not_taken_for_advice_against_drafts(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def answer(command: list[str], **_: object) -> SimpleNamespace:
        config = "--speculative-config" in command  # which fails too where no drafts pay
        text = "Error: --draft-cost is needed"
        return SimpleNamespace(stdout="", stderr=text, returncode=2 if config else code)

    monkeypatch.setattr("benchmarks.drafts.servers_turns.subprocess.run", answer)
    turns = Turns(SimpleNamespace(head=None, say=told.append), (ALIKE,), (1,), tmp_path)  # type: ignore[arg-type]
    turns._tables[ALIKE] = turns._asked("http://x", ALIKE, None, "")
    assert turns._table_state(ALIKE) == ("refused" if code else "none")
    assert ("recommend failed: Error: --draft-cost is needed" in told) == bool(code)


def test_fixed_lengths_alone_start_and_measure_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    measured: list[str] = []
    fleet = SimpleNamespace(
        start=started.extend, speculation=lambda *_: [], left=99.0,
        run=lambda name: None, set_lengths=lambda *_: None,
        shape=SimpleNamespace(prompt_tokens=256),
    )  # fmt: skip
    monkeypatch.setattr(Turns, "_measure", lambda self, name, policy, *_: measured.append(policy))
    turns = Turns(fleet, (ALIKE,), (4,), tmp_path, alone=True)  # type: ignore[arg-type]
    turns.begin()
    turns.recommend()
    turns._return_to(ALIKE)
    turns._later_round(ALIKE, 4, 1)
    assert started == ["drafts"]
    assert sorted(measured) == [f"fixed:{k}" for k in FIXED]
    (found,) = points([row("fixed:1", 80.0), row("fixed:3", 100.0), row("fixed:3", 90.0)])
    assert (found["best"], found["rounds"], found["fixed:1"]) == ("fixed:3", 2, 80.0 / 95.0)
    assert summary([found]) == {}
    assert points([row("live", 80.0)]) == [], "cut off before any fixed length"


class Measured:
    """A fleet whose loads take the time of the real ones; rates by what is in force."""

    gpu, now = "0", 0.0
    shape = SimpleNamespace(prompt_tokens=256)

    def __init__(self, rates: dict[str, float], left: float = 1e9) -> None:
        self.rates, self.left = rates, left
        self.told: list[object] = []

    def run(self, name: str) -> SimpleNamespace:
        self.name = name
        return SimpleNamespace(url="http://x", metrics=lambda: "")

    def set_lengths(self, name: str, table: list[list[int]]) -> None:
        self.told.append((name, table))

    def say(self, text: str) -> None:
        self.told.append(text)


def turns_of(
    fleet: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: bool
) -> tuple[Turns, list[float]]:
    """Turns whose loads are given, and the warm-ups that they are asked for."""
    turns = Turns(fleet, (ALIKE,), (4, 16), tmp_path, **more)  # type: ignore[arg-type]
    turns._tables = {ALIKE: {"num_speculative_tokens": 5}}
    turns._at = {"drafts": ALIKE, "live": ALIKE}
    warm_ups: list[float] = []

    def run(asked: SimpleNamespace, warm_up: float) -> SimpleNamespace:
        warm_ups.append(warm_up)
        fleet.left -= 3.0 + warm_up
        length = fleet.told[-1][1][0][2] if fleet.name == "drafts" else "live"  # type: ignore[index]
        found = {"tokens_per_second": fleet.rates[str(length)], "silent_seconds": 0.0}
        return SimpleNamespace(summary=lambda: found)

    monkeypatch.setattr("benchmarks.drafts.servers_turns.load.run", run)
    monkeypatch.setattr(Turns, "_load", lambda *_: None)
    return turns, warm_ups


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_the_judged_policies_come_first_and_long_losers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"live": 97.0, "5": 99.0, "1": 80.0, "2": 100.0, "3": 94.0, "4": 90.0}
    turns, warm_ups = turns_of(Measured(rates), tmp_path, monkeypatch)
    turns._first_round(ALIKE, 4, 1)
    rows = rows_of(tmp_path)
    assert [row["policy"] for row in rows] == ["live", "table", *(f"fixed:{k}" for k in FIXED)]
    assert [row["policy"] for row in rows if row.get("left_out")] == ["fixed:6", "fixed:8"]
    assert rows[1]["server"] == "drafts", "no other server has to start"
    assert set(warm_ups) == {FIRST_WARM_UP_SECONDS}
    turns._later_round(ALIKE, 4, 1)
    again = rows_of(tmp_path)[len(rows) :]
    assert {row["policy"] for row in again} == {"live", "table", *(f"fixed:{k}" for k in FIXED[:4])}
    assert set(warm_ups[6:]) == {WARM_UP_SECONDS}, "each has been visited"
    (found,) = points([row("none", 50.0, None), *rows, *again])
    assert (found["best"], found["rounds"]) == ("fixed:2", 2)
    assert found["table"] == pytest.approx(0.99) and "fixed:6" not in found


def test_the_judged_policies_are_measured_everywhere_when_time_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = dict.fromkeys(("live", "5", *map(str, FIXED)), 90.0)
    fleet = Measured(rates, left=24.0)
    turns, _ = turns_of(fleet, tmp_path, monkeypatch)
    turns._first_round(ALIKE, 4, 1)
    turns._first_round(ALIKE, 16, 0)
    rows = rows_of(tmp_path)
    judged = [(r["policy"], r["batch_size"]) for r in rows if "fixed" not in r["policy"]]
    assert judged == [("live", 4), ("table", 4), ("live", 16), ("table", 16)]
    assert fleet.left > 0.0


def test_two_lengths_in_a_row_must_lose() -> None:
    assert not lost([]) and not lost([100.0, 92.0]) and not lost([100.0, 92.0, 103.0])
    assert lost([100.0, 94.0, 94.9]) and not lost([100.0, 94.0, 95.1])


def test_the_traffic_leaves_the_time_of_the_first_round(tmp_path: Path) -> None:
    fleet = SimpleNamespace(left=600.0, shape=SimpleNamespace(prompt_tokens=256))
    turns = Turns(fleet, (ALIKE,), (4, 16), tmp_path)  # type: ignore[arg-type]
    assert turns._traffic_scale(1) == TRAFFIC_SCALE
    first = turns._round_seconds()
    turns._fleet.left = first + 60.0  # type: ignore[misc]
    assert AGAIN_SCALE < turns._traffic_scale(1) < TRAFFIC_SCALE
    turns._fleet.left = first  # type: ignore[misc]
    assert turns._traffic_scale(1) == AGAIN_SCALE
