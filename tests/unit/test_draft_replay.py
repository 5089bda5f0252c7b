"""The live controller on step times that were recorded on a GPU: its decisions, not their host."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.drafts import replay as draft_replay
from benchmarks.drafts import times as draft_times
from benchmarks.drafts.plan import ACCEPTANCES, LENGTHS, step_times
from vllm_nfp.draft import StepCurve
from vllm_nfp.draft.inputs import source_of

RUNS = ROOT / "benchmarks/results/2026-11-26-h100-draft-lengths"


def read(run: str) -> tuple[dict[draft_times.Cell, dict[int, float]], tuple[StepCurve, ...]]:
    """The points of a whole run, those of 1024 tokens from the later, steadier one."""
    cells: dict[draft_times.Cell, dict[int, float]] = {}
    for folder in (RUNS / run, RUNS / "short" / run):
        cells |= draft_replay.recorded(draft_times.read_rows(folder / "points.jsonl"))
    return cells, source_of(step_times(RUNS / run / "spec")).curves


@pytest.mark.parametrize("run", ["dense", "moe", "eagle3-dense", "eagle3-moe"])
def test_it_settles_near_the_best_length_of_recorded_steps(run: str) -> None:
    cells, curves = read(run)
    found = [one for a in ACCEPTANCES for one in draft_replay.replay(cells, curves, a)]
    assert len(found) == 3 * len(cells) > 20
    assert sum(one.share < 0.98 for one in found) <= 2
    assert min(one.share for one in found) > 0.94
    assert sum(one.from_the_start for one in found) > 0.97 * len(found)


@pytest.mark.parametrize("run", ["dense", "moe"])
def test_on_a_ramp_that_it_knows_it_beats_every_single_length(run: str) -> None:
    cells, curves = read(run)
    rows = draft_times.read_rows(RUNS / run / "ramps.jsonl")
    levels = draft_replay.with_no_drafts(draft_times.length_seconds(rows), cells)
    first, *_, last = draft_replay.replay_ramp(levels, curves, 0.7)
    assert last.over_best_fixed > 1.0
    assert first.over_ideal > 0.9
    assert last.over_ideal > 0.93


def test_steps_without_drafts_are_filled_in_at_the_nearest_point() -> None:
    times = {k: 1.0 + k for k in LENGTHS}
    levels = {(1024, 2): {k: 10 * t for k, t in times.items() if k}}
    points = {(1024, 1): times, (1024, 64): {**times, 0: 99.0}}
    found = draft_replay.with_no_drafts(levels, points)
    assert found == {(1024, 2): {k: pytest.approx(10 * t) for k, t in times.items()}}
    assert draft_replay.replay_ramp(found, (), 0.7) == [], "levels are missing"


def test_the_probes_steps_are_the_engines() -> None:
    for run in ("dense", "moe"):
        found = draft_times.step_over_probe(RUNS / run)
        assert len(found) > 50
        assert sum(abs(one - 1.0) < 0.05 for one in found) >= len(found) - 2
    assert draft_times.step_over_probe(RUNS / "eagle3-dense") == [], "a head's drafts are in there"
