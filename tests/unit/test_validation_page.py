"""The tables of docs/validation.md: what counts as a boundary, and where they are put."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.prediction.score_public import Scored
from benchmarks.prediction.validation_cells import Cell
from benchmarks.prediction.validation_page import own_rows, public_rows, write_page
from vllm_nfp.types import Module

CELL = Cell(
    "reference", "kernel", "qwen3-14b", Module.DENSE_FFN, "causal", 1, 0, (1, 2, 8, 64, 256),
    (1.0, 1.0, 1.0, 1.08, 1.3), (1.0, 1.0, 1.0, 1.15, 1.3), 1e-5, 1e-5, 300,
    {1: 1, 2: 1, 8: 8, 64: 32, 256: 64},
)  # fmt: skip
DENSE = Scored(
    "dense_products/made", ("dense_products", "L40S", "bfloat16"), False,
    np.array([1.0, 2, 4, 8]), np.array([1.0, 1.0, 1.15, 1.4]), np.array([1.0, 1.0, 1.04, 1.4]),
)  # fmt: skip
MARKS = "".join(
    f"<!-- {mark}: written by benchmarks.prediction.validate -->old<!-- end of {mark} -->\n"
    for mark in ("own", "public")
)


def test_boundaries_count_where_they_can_miss() -> None:
    (row,) = own_rows([CELL])
    assert row.names == ("dense ffn", "kernel", "BF16", "seen")
    assert row.errors[2] == pytest.approx(1.15 / 1.08 - 1)
    # At 0.1 measured 64 and predicted 8, further than a step of 32; at 0.2 both are 64.
    assert row.agreeing == (False, True)
    wide = replace(CELL, step_at={**CELL.step_at, 64: 64})
    assert own_rows([wide])[0].agreeing == (), "a step as large as the boundary cannot miss"
    censored = replace(CELL, measured_ratio=(1.0,) * 5)
    assert own_rows([censored])[0].agreeing == ()


def test_public_sets_are_told_by_kind_and_type() -> None:
    (row,) = public_rows([DENSE])
    assert row.names == ("dense products", "L40S", "bfloat16", "unseen")
    assert row.agreeing == (True, True), "one point apart at 0.1, the same point at 0.2"


def test_tables_are_put_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS}after\n")
    write_page(page, [CELL], [DENSE])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| dense ffn | kernel | BF16 | seen | 4 | 75 % | 100 % | 100 % | 2 | 50 % |" in text
    write_page(page, [CELL], [DENSE])
    assert page.read_text() == text, "written twice it stays the same"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks of the table 'own'"):
        write_page(page, [CELL], [DENSE])
