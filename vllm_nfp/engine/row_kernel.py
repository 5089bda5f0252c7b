"""A Triton kernel that copies rows of a matrix; imported on a GPU alone, where vLLM has Triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def copy_rows(weight: Any, ids: Any, rows: Any, width: Any, COLUMNS: tl.constexpr) -> None:
    """Program (i, j) copies part j of row ids[i] to row i.

    Args:
        weight: [number of rows, width], contiguous.
        ids: [n], integers.
        rows: [n, width], contiguous; written.
        width: columns.
        COLUMNS: of a part.
    """
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    source = tl.load(ids + place).to(tl.int64)
    values = tl.load(weight + source * width + column, mask=inside)
    tl.store(rows + place * width + column, values, mask=inside)
