"""The live view of a server in the terminal, from one reading and the one before it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vllm_nfp.cli.nfp_filter import Filter
from vllm_nfp.cli.nfp_table import Line, aligned, legend, lines_of
from vllm_nfp.results.scrape import Row, Status
from vllm_nfp.text import printable
from vllm_nfp.types import reading_order
from vllm_nfp.watch import Drafting, EngineReading, Live, Reading

OVER_BUDGET = 1.1
"""A share this many times the budget is marked; the alert NfpOverheadAboveBudget takes the same."""
STATE_STYLES = {
    "steady": "green",
    "probing": "yellow",
    "warming": "cyan",
    "passive": "magenta",
    "disabled": "bold red",
}
_PRIORS = {
    "predicted": "rows without measurements: predicted from model and GPU",
    "generic": "rows without measurements: a rough guess with wide intervals",
    "profile": "rows without measurements: from an earlier profile",
}


def render(
    reading: Reading,
    before: Reading | None,
    epsilon: float,
    problem: str = "",
    shown: Filter | None = None,
) -> RenderableType:
    """The view of a reading.

    Args:
        before: the reading before it, for rates.
        problem: why the server cannot be read now; the reading is then an old one.
        shown: batch sizes and contexts of the tables; None: all.

    Raises:
        Refusal: for a batch size or context that the server does not report.
    """
    earlier = {engine.status.engine: engine for engine in before.engines} if before else {}
    parts: list[RenderableType] = []
    for engine in reading.engines:
        parts += [heading(engine), step_line(engine, epsilon)]
        last = earlier.get(engine.status.engine)
        if engine.drafting is not None:
            recent = engine.drafting.since(last.drafting if last else None)
            parts.append(_drafts(recent, _recommended(engine)))
        parts += prior_lines(engine.status)
        rows = reading.rows_of(engine.status.engine, epsilon)
        parts += _tables(rows, engine.live, epsilon, shown or Filter())
    if problem:
        parts.append(Text(f"{problem} Trying again; the values above are old.", "bold red"))
    return Group(*parts)


def heading(engine: EngineReading) -> Text:
    """Model, engine, state, overhead and pairs."""
    status = engine.status
    budget = "" if engine.overhead_budget is None else f" of {engine.overhead_budget:.2%} allowed"
    probes = ", ".join(f"{pairs} {outcome}" for outcome, pairs in status.probes.items())
    budgeted = engine.overhead_budget
    over = budgeted is not None and status.overhead_ratio > OVER_BUDGET * budgeted
    return Text.assemble(
        (printable(status.model_name), "bold"),
        f"  engine {printable(status.engine)}  ",
        (printable(status.state), STATE_STYLES.get(status.state, "")),
        "  overhead ",
        (f"{status.overhead_ratio:.2%}{budget}", "yellow" if over else ""),
        f"  probe pairs: {printable(probes) or 'none'}",
    )


def step_line(engine: EngineReading, epsilon: float) -> Text:
    """The last real step and what is free in it, at its own batch size and context."""
    live = engine.live
    if live is None:
        return Text("no decode step yet", "dim")
    step = (
        f"last step: batch {live.batch_size}, context {live.context}, "
        f"{live.positions} position{'s' * (live.positions > 1)} per sequence"
    )
    if epsilon not in live.free_tokens:
        return Text(step)
    tokens = live.free_tokens[epsilon]
    more = f"{tokens or 'no'} more {'token is' if tokens == 1 else 'tokens are'} free"
    more = f"{more} within {100 * epsilon:g}%"
    basis = live.basis(epsilon)
    return Text.assemble(
        f"{step}; ", (more, "green" if tokens else "yellow"), f" ({basis})" if basis else ""
    )


def prior_lines(status: Status) -> Sequence[Text]:
    """What answers rest on where nothing was measured, and how often measurements jumped."""
    lines = []
    if status.prior:
        reason = f" ({printable(status.prior_reason)})" if status.prior_reason else ""
        named = _PRIORS.get(status.prior, printable(status.prior))
        lines.append(Text(f"{named}{reason}", "dim"))
    if status.jumps:
        lines.append(
            Text(
                f"{status.jumps} jump{'s' * (status.jumps > 1)}: new measurements contradicted old "
                f"ones",
                "yellow",
            )
        )
    return lines


def _recommended(engine: EngineReading) -> str:
    """The recommended draft length where traffic is; empty where there is none."""
    if engine.live is None:
        return ""
    live = engine.live
    if live.draft_length is not None:
        return f", K={live.draft_length} recommended"
    if live.cell is None or live.cell[0] not in engine.recommended:
        return ""
    return f", K={engine.recommended[live.cell[0]]} recommended at B={live.cell[0]}"


def _drafts(drafting: Drafting, recommended: str) -> Text:
    if not drafting.drafts:
        return Text("speculation: nothing drafted yet", "dim")
    return Text(
        f"speculation: K={f'{drafting.draft_length:.1f}'.removesuffix('.0')} runs{recommended}; "
        f"{drafting.acceptance:.0%} of drafted tokens accepted"
    )


def _tables(
    rows: Sequence[Row], live: Live | None, epsilon: float, shown: Filter
) -> Sequence[RenderableType]:
    """The whole step first; beside it the one module that does not depend on the context."""
    if not rows:
        return [Text("No answer yet: the probe has just started.", "dim")]
    lines = shown.applied(lines_of(rows))
    modules = sorted({line.module for line in lines if line.context is not None}, key=reading_order)
    beside = [line for line in lines if line.context is None]
    parts: list[RenderableType] = [
        Text(f"\nFree positions per sequence within {100 * epsilon:g}% [95 % interval]", "italic")
    ]
    blocks = [
        [line for line in lines if line.module == module and line.context is not None]
        for module in modules
    ]
    if blocks and len({line.module for line in beside}) == 1:
        blocks[0] += beside
    elif beside:
        blocks.append(beside)
    parts += [_table(block, live) for block in blocks]
    parts.append(Text(notes(lines, live), "dim"))
    return parts


def notes(lines: Sequence[Line[Row]], live: Live | None) -> str:
    """The marks that the lines show."""
    marks = legend(row for line in lines for row in line.answers.values())
    return f"{marks}; > traffic" if any(is_live(line, live) for line in lines) else marks


def _table(lines: Sequence[Line[Row]], live: Live | None) -> Table:
    """A row for each batch size; a column for each context, and each module that has none."""
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("B", justify="right", no_wrap=True)
    columns = list(dict.fromkeys((line.module, line.context) for line in lines))
    for place, (module, context) in enumerate(columns):
        named = place == 0 or context is None
        name = f"{printable(module)}\n" if named else "\n"
        where = "any L" if context is None else f"L={context}"
        table.add_column(Text(f"{name}{where}"), no_wrap=True)
    found = {(line.batch_size, line.module, line.context): line for line in lines}
    batch_sizes = sorted({line.batch_size for line in lines})
    shown = [_column([found.get((b, *column)) for b in batch_sizes], live) for column in columns]
    for batch_size, *cells in zip(batch_sizes, *shown, strict=True):
        table.add_row(str(batch_size), *cells)
    return table


def is_live(line: Line[Row], live: Live | None) -> bool:
    """Whether traffic is there: the smallest reported batch size and context that hold it."""
    if live is None or live.cell is None:
        return False
    batch_size, context = live.cell
    return line.batch_size == batch_size and line.context in (None, context)


def _column(lines: Sequence[Line[Row] | None], live: Live | None) -> Sequence[Text]:
    texts = aligned([None if line is None else next(iter(line.answers.values())) for line in lines])
    here = [line is not None and is_live(line, live) for line in lines]
    return [
        Text(f"{'> ' if marked else '  '}{text}", "bold" if marked else "")
        for text, marked in zip(texts, here, strict=True)
    ]
