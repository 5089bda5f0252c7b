"""A recorded run is answered again: real steps of a model with experts count less."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from benchmarks.steps_again import main

RUNS = Path(__file__).parents[2] / "benchmarks/results/2026-11-28-h100-at-defaults"


def test_real_steps_do_not_bend_the_answers_at_their_present_deviation() -> None:
    result = CliRunner().invoke(main, [str(RUNS / "moe-again"), "--truth", str(RUNS / "moe")])
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.output.splitlines()[1:]]
    assert [row[0] for row in rows[-2:]] == ["phase-3, 16, 3"] * 2
    held = {row[1]: float(row[3].split("%")[0]) for row in rows[-2:]}
    assert held["0.01"] <= held["0.05"]
    assert held["0.05"] > 97.0
