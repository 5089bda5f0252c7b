"""A profile in a notebook: what it is of, and NFP of the whole step."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vllm_nfp.types import Module

if TYPE_CHECKING:
    from vllm_nfp.results.profile import Profile

MOST_ROWS = 60
"""Rows that a notebook shows; the rest is in ``to_dataframe``."""


def html_table(profile: Profile) -> str:
    """NFP with its 95 % interval by context and batch size, a column for each tolerance."""
    rows = [row for row in profile.boundaries if row.module == Module.MODEL]
    epsilons = sorted({row.epsilon for row in rows})
    cells = sorted({(row.context, row.batch_size) for row in rows})
    found = {(row.context, row.batch_size, row.epsilon): row for row in rows}
    head = "".join(f"<th>{n}</th>" for n in ("L", "B", *(f"within {e:.0%}" for e in epsilons)))
    body = ""
    for context, batch_size in cells[:MOST_ROWS]:
        answers = (found.get((context, batch_size, epsilon)) for epsilon in epsilons)
        shown = "".join(
            f"<td>{'-' if row is None else f'{row.positions} [{row.lower}, {row.upper}]'}</td>"
            for row in answers
        )
        body += f"<tr><td>{context}</td><td>{batch_size}</td>{shown}</tr>"
    more = f"<p>{len(cells) - MOST_ROWS} more rows: to_dataframe()</p>" * (len(cells) > MOST_ROWS)
    return (
        f"<p>{escape(repr(profile))}. Free positions per sequence (NFP) of the whole step "
        f"[95 % interval]</p><table><tr>{head}</tr>{body}</table>{more}"
    )
