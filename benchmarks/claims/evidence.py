"""The page with all claims."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.claims.checking import Checked
from benchmarks.claims.claim import Planned, Run

PAGE = "docs/evidence.md"
HEAD = """# Evidence

Figures that the documentation quotes, with the runs they come from.
`python -m benchmarks.claims evidence` writes this page from the records.
`python -m benchmarks.claims check` computes each figure again and fails if a page quotes another
one. It prints a claim as stale if code that its record rests on has changed since the run. Comments
and docstrings do not count.

On a GPU host, `python -m benchmarks.claims run NAME --out DIR` makes the record again, with
`--within SECONDS` where a run can be cut short. A goal that is missed stands as it is, with the
reason on the page that quotes it.

| claim | figures | interval | n | record and commit | date, GPU |
| --- | --- | --- | --- | --- | --- |
"""
PLANNED = """## Not run yet

| claim | what the run shows | why there is no record |
| --- | --- | --- |
"""


def page(found: Sequence[Checked], planned: Sequence[Planned]) -> str:
    """The text of docs/evidence.md."""
    rows = "".join(_row(one) for one in found if one.claim.record is not None)
    return HEAD + rows + "\n" + _outside(found) + _planned(planned) + _commands(found, planned)


def _row(found: Checked) -> str:
    claim, figures = found.claim, found.figures
    assert figures is not None
    sentence, interval, count = (
        text.format(**figures) for text in (claim.sentence, claim.interval, claim.count)
    )
    commit = claim.commit or f"not recorded; added with {claim.added}"
    record = f"[record](../{claim.record}), {commit}"
    return (
        f"| `{claim.name}` | {sentence} | {interval} | {count} | {record} | "
        f"{claim.date}, {claim.gpu} |\n"
    )


def _outside(found: Sequence[Checked]) -> str:
    """Claims whose record is not in the checkout: their figures stand where they are quoted."""
    rows = []
    for one in found:
        claim = one.claim
        if claim.record is None:
            places = ", ".join(sorted({quote.path for quote in claim.quotes}))
            links = re.sub(r"docs/(\S+)", r"[\1](\1)", places)
            rows.append(f"- `{claim.name}`: {claim.sentence} The figures are in {links}.\n")
    head = "Records that are not in the repository; `check --public FILE` computes them again:\n\n"
    return head + "".join(rows) + "\n" if rows else ""


def _planned(planned: Sequence[Planned]) -> str:
    rows = "".join(f"| `{one.name}` | {one.shows} | {one.reason} |\n" for one in planned)
    return PLANNED + rows + "\n" if planned else ""


def _commands(found: Sequence[Checked], planned: Sequence[Planned]) -> str:
    lines = ["## Commands", ""]
    runs: list[tuple[str, Run]] = [
        *((one.claim.name, one.claim.run) for one in found),
        *((one.name, one.run) for one in planned),
    ]
    for name, run in runs:
        lines += [f"`{name}`:", "", "```sh", *run.filled("DIR"), "```", ""]
    return "\n".join(lines)
