"""A prediction in a notebook: what was understood of the model, and NFP by cell; its curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from vllm_nfp.principle.curve_errors import curve_errors
from vllm_nfp.principle.notes import notes
from vllm_nfp.types import Module

if TYPE_CHECKING:
    from vllm_nfp.principle.predictions import Predictions

MOST_ROWS = 60
"""Rows that a notebook shows; the rest is in ``to_dataframe``."""


@dataclass(frozen=True, slots=True)
class PredictedPoint:
    """One point of a predicted curve.

    Attributes:
        module: as in the rows.
        batch_size: sequences in the step.
        context: cached tokens of each.
        positions: N, positions of each sequence.
        seconds: t(N).
        ratio: t(N) / t(1).
        error: of the ratio, as a fraction, see docs/predict.md; None: not known.
    """

    module: Module
    batch_size: int
    context: int
    positions: int
    seconds: float
    ratio: float
    error: float | None


def points(found: Predictions) -> Iterator[PredictedPoint]:
    """Every point of every curve, in the order of the rows."""
    cells = dict.fromkeys((row.module, row.batch_size, row.context) for row in found.rows)
    for module, batch_size, context in cells:
        cell = found.cell(module, batch_size, context)
        errors: Sequence[float | None] | None = curve_errors(cell, found.shape, found.target)
        if errors is None:
            errors = (None,) * len(cell.positions)
        first = cell.seconds[0]
        for n, seconds, error in zip(cell.positions, cell.seconds, errors, strict=True):
            yield PredictedPoint(module, batch_size, context, n, seconds, seconds / first, error)


def html_table(found: Predictions) -> str:
    """NFP of the whole step by batch size and context, a column for each tolerance."""
    rows = [row for row in found.rows if row.module == Module.MODEL]
    cells = list(dict.fromkeys((row.context, row.batch_size) for row in rows))
    nfp = {
        (row.context, row.batch_size, row.epsilon): f"{row.nfp}{'+' * row.at_limit}" for row in rows
    }
    titles = ("L", "B", *(f"within {epsilon:.3g}" for epsilon in found.epsilons))
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for context, size in cells[:MOST_ROWS]:
        shown = (nfp[context, size, epsilon] for epsilon in found.epsilons)
        values = "".join(f"<td>{value}</td>" for value in (context, size, *shown))
        body += f"<tr>{values}</tr>"
    more = f"<p>{len(cells) - MOST_ROWS} more rows: to_dataframe()</p>" * (len(cells) > MOST_ROWS)
    said = "".join(f"<li>{escape(note)}</li>" for note in notes(found))
    return (
        f"<p>{escape(found.model)} on {escape(found.hardware)}: "
        f"{escape(found.model_facts.sentence())}.</p><p>Predicted free positions per sequence "
        f"(NFP) of the whole step, not measured</p><table><tr>{head}</tr>{body}</table>{more}"
        f"<ul>{said}</ul>"
    )
