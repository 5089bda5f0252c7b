"""Predicted curves t(N) as CSV, with their errors: what a plot or a table is made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from vllm_nfp.principle.curve_errors import curve_errors
from vllm_nfp.principle.predictions import Predictions

COLUMNS = (
    "model", "hardware", "module", "batch_size", "context", "positions", "tokens", "seconds",
    "ratio", "ratio_low", "ratio_high", "in_graph",
)  # fmt: skip


def curves_csv(founds: Sequence[Predictions]) -> str:
    """A line for each N of each module, batch size and context; a header first.

    ``ratio`` is t(N) / t(1); ``ratio_low`` and ``ratio_high`` are empty where the error of the
    module is not known.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in founds:
        for module, batch_size, context in dict.fromkeys(
            (row.module, row.batch_size, row.context) for row in found.rows
        ):
            cell = found.cell(module, batch_size, context)
            errors = curve_errors(cell, found.shape, found.target)
            for at, (n, seconds) in enumerate(zip(cell.positions, cell.seconds, strict=True)):
                ratio = seconds / cell.seconds[0]
                low, high = _interval(ratio, None if errors is None else errors[at])
                writer.writerow((
                    found.model, found.hardware, module, batch_size, context, n, n * batch_size,
                    f"{seconds:.6g}", f"{ratio:.5g}", low, high,
                    int(n <= cell.in_graphs),
                ))  # fmt: skip
    return text.getvalue()


def _interval(ratio: float, error: float | None) -> tuple[str, str]:
    """The measured ratio is the predicted one over 1 + e, |e| up to the error."""
    if error is None:
        return "", ""
    return f"{ratio / (1 + error):.5g}", f"{ratio / (1 - error):.5g}" if error < 1 else ""
