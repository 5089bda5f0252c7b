"""A recommendation in a notebook: the verdict and a table of the measured batch sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vllm_nfp.draft.rows import ScheduleRow

MOST_ROWS = 60
"""Rows that a notebook shows; the rest is in ``to_dataframe``."""


def html_table(sentences: Iterable[str], rows: Sequence[ScheduleRow]) -> str:
    """The sentences as paragraphs, and a row for each measured batch size at each context."""
    shown = [row for row in rows if not row.between]
    cells = "".join(
        f"<tr><td>{row.context}</td><td>{row.batch_size_first}</td><td>{row.length_text}</td>"
        f"<td>{row.gain_text}</td><td>{row.basis}</td></tr>"
        for row in shown[:MOST_ROWS]
    )
    more = f"<p>{len(shown) - MOST_ROWS} more rows: to_dataframe()</p>" * (len(shown) > MOST_ROWS)
    said = "".join(f"<p>{escape(text)}</p>" for text in sentences)
    head = "".join(f"<th>{name}</th>" for name in ("L", "B", "K", "gain", "basis"))
    return f"{said}<table><tr>{head}</tr>{cells}</table>{more}"
