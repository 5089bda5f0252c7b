"""A prediction in Python: its curves as a DataFrame, and what a notebook shows of it."""

from __future__ import annotations

import html

import pytest
from test_principle_models import QWEN_3_8B

from vllm_nfp import predict
from vllm_nfp.principle import PredictionError
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.predictions import Predictions


def found(name: str = "a model", sizes: tuple[int, ...] = (1, 8)) -> Predictions:
    config = {**QWEN_3_8B, "_name_or_path": name}
    return predict(config, "H100-SXM", sizes, (1024,), (0.1, 0.2), max_positions=16)


def test_curves_become_a_dataframe() -> None:
    pytest.importorskip("pandas")
    predicted = found()
    frame = predicted.to_dataframe("curves")
    for row in predicted.rows:
        mask = (frame.module == row.module) & (frame.batch_size == row.batch_size)
        curve = frame[mask & (frame.context == row.context)]
        cell = predicted.cell(row.module, row.batch_size, row.context)
        assert curve.positions.tolist() == list(cell.positions)
        assert curve.seconds.tolist() == list(cell.seconds)
        assert curve.ratio.tolist()[0] == 1.0
        assert curve.error.tolist()[0] == 0.0
    with pytest.raises(PredictionError, match="table must be rows or curves, not 'cells'"):
        predicted.to_dataframe("cells")  # type: ignore[arg-type]


def test_a_notebook_shows_the_model_the_answers_and_every_note() -> None:
    predicted = found("<b>odd</b>")
    page = predicted._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;odd" in page
    assert predicted.model_facts.sentence() in page
    assert "<th>L</th><th>B</th><th>within 0.1</th><th>within 0.2</th>" in page
    rows = [row for row in predicted.rows if row.module == "model" and row.batch_size == 8]
    answers = "".join(f"<td>{row.nfp}{'+' * row.at_limit}</td>" for row in rows)
    assert f"<tr><td>1024</td><td>8</td>{answers}</tr>" in page
    assert "not measured" in page
    assert all(html.escape(note) in page for note in notes(predicted))


def test_a_long_table_is_cut_and_says_so() -> None:
    page = found(sizes=tuple(range(1, 65)))._repr_html_()
    assert page.count("<tr>") == 1 + 60
    assert "4 more rows: to_dataframe()" in page
