"""The table of models that were run on GPUs."""

from __future__ import annotations

from benchmarks.prediction.measured_models import RECORDS, section


def test_every_record_has_its_rows_and_says_how_it_was_made() -> None:
    lines = section().splitlines()
    for record in RECORDS:
        assert sum(line.startswith(f"| {record.model} |") for line in lines) == 3
        (run,) = [line for line in lines if line.startswith(f"| [{record.model}]")]
        assert record.how in run
        assert "H200, 0.3" in run
        assert "2026-11-2" in run


def test_a_row_has_boundaries_with_intervals_and_milliseconds() -> None:
    (row,) = [line for line in section().splitlines() if line.startswith("| Qwen3-8B in FP8 | 8 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # As its record has them: NFP 2, since 24 tokens exceed a tile of 16.
    assert cells[2:6] == ["2 [2, 2]", "3.93", "2 [2, 2]", "4.77"]
    assert cells[7] == "-", "a dense model has no linear attention"


def test_what_an_answer_rests_on_and_a_limit_of_the_grid_are_marked() -> None:
    rows = [line for line in section().splitlines() if line.startswith("| Qwen2.5-VL-7B | 1 |")]
    assert "~32+ [32, 32]" in rows[0]
