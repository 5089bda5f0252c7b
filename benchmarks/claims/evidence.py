"""The page with all claims."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.checking import Checked

PAGE = "docs/evidence.md"
HEAD = """# Evidence

Figures that the documentation quotes, with the runs they come from.
`python -m benchmarks.claims evidence` writes this page from the records.
`python -m benchmarks.claims check` fails if a page quotes another figure, and names the claims
whose code has changed since their run.

On a GPU host, `python -m benchmarks.claims run NAME --out DIR` makes the record again.

| claim | figures | interval | n | record and commit | date, GPU |
| --- | --- | --- | --- | --- | --- |
"""


def page(found: Sequence[Checked]) -> str:
    """The text of docs/evidence.md."""
    return HEAD + "".join(_row(one) for one in found) + "\n" + _commands(found)


def _row(found: Checked) -> str:
    claim = found.claim
    sentence, interval, count = (
        text.format(**found.figures) for text in (claim.sentence, claim.interval, claim.count)
    )
    commit = claim.commit or "not recorded"
    record = f"[record](../{claim.record}), {commit}"
    return (
        f"| `{claim.name}` | {sentence} | {interval} | {count} | {record} | "
        f"{claim.date}, {claim.gpu} |\n"
    )


def _commands(found: Sequence[Checked]) -> str:
    lines = ["## Commands", ""]
    for one in found:
        lines += [f"`{one.claim.name}`:", "", "```sh"]
        lines += [command.format(out="DIR") for command in one.claim.commands]
        lines += ["```", ""]
    return "\n".join(lines)
