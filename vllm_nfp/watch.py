"""What a live terminal view shows of a server, from one scrape and the one before it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vllm_nfp.crossing import usual_epsilon
from vllm_nfp.results.scrape import (
    MOST_DRAWN_ROWS,
    Row,
    Samples,
    Scrape,
    ScrapeError,
    Status,
    count,
    read_samples,
    refusing_strange_labels,
    scrape_of,
)
from vllm_nfp.text import printable
from vllm_nfp.types import reading_order

_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_RECOMMENDED = "vllm_nfp_recommended_draft_length"
OVER_BUDGET = 1.1
"""A share this many times the budget is marked; the alert NfpOverheadAboveBudget takes the same."""
choose_epsilon = usual_epsilon
STATE_STYLES = {
    "steady": "green",
    "probing": "yellow",
    "warming": "cyan",
    "passive": "magenta",
    "disabled": "bold red",
}


@dataclass(frozen=True, slots=True)
class Drafting:
    """vLLM's counters of speculative decoding, since its start."""

    drafts: float
    drafted: float
    """Tokens drafted."""
    accepted: float
    """Drafted tokens that were accepted."""

    def since(self, before: Drafting | None) -> Drafting:
        """What was added since the earlier reading; all, if there is none or nothing was.

        After a restart the counters are smaller than before: then all is new.
        """
        if before is None or self.drafts <= before.drafts:
            return self
        return Drafting(
            self.drafts - before.drafts,
            self.drafted - before.drafted,
            self.accepted - before.accepted,
        )

    @property
    def draft_length(self) -> float:
        """Tokens drafted in a draft, the mean."""
        return self.drafted / self.drafts if self.drafts else 0.0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True, slots=True)
class Live:
    """The last real decode step of an engine."""

    batch_size: int
    context: int
    positions: int
    cell: tuple[int, int] | None
    """Probed batch size and context that the step is filed under; None: no cell holds it."""
    free_tokens: Mapping[float, int]
    """Tokens that fit in beside the step's own, by epsilon."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One engine's part of a reading."""

    status: Status
    overhead_budget: float | None
    live: Live | None
    """None before the first step and while the probe is disabled."""
    drafting: Drafting | None
    """None on a server without speculative decoding."""
    recommended: Mapping[int, int] = field(default_factory=dict)
    """vllm_nfp_recommended_draft_length by probed batch size."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a scrape says."""

    scrape: Scrape
    engines: tuple[EngineReading, ...]

    def rows(self, epsilon: float) -> list[Row]:
        """Estimates at this tolerance."""
        return [row for row in self.scrape.rows if row.epsilon == epsilon]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Tolerances measured, ascending."""
        return tuple(sorted({row.epsilon for row in self.scrape.rows}))


def read(text: str, end: float | None = None) -> Reading:
    """Read a scrape's text.

    Args:
        end: by when it has to be read, see :func:`vllm_nfp.results.scrape.deadline`; None: as if
            fetching began now.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, has no probe in it, cannot be read in
            time, or holds more estimates than can be drawn.
    """
    samples = read_samples(text, (_DRAFTS, _DRAFTED, _ACCEPTED), end)
    scrape = scrape_of(samples)
    most = max(Counter(row.epsilon for row in scrape.rows).values(), default=0)
    if most > MOST_DRAWN_ROWS:
        raise ScrapeError(
            f"the server shows {most} estimates at one tolerance, more than a view of "
            f"{MOST_DRAWN_ROWS} holds: take vllm-nfp table --json"
        )
    with refusing_strange_labels():
        by_engine = _by_engine(samples)
        engines = tuple(_engine(by_engine[one.engine], one) for one in scrape.statuses)
    return Reading(scrape, engines)


_SHOWN = (
    _DRAFTS, _DRAFTED, _ACCEPTED, _RECOMMENDED, "vllm_nfp_overhead_budget_ratio",
    "vllm_nfp_live_batch_size", "vllm_nfp_live_context", "vllm_nfp_live_positions",
    "vllm_nfp_live_cell_info", "vllm_nfp_free_tokens",
)  # fmt: skip
"""What is shown of each engine beside its estimates and its status."""


def _by_engine(samples: Samples) -> Mapping[str, Samples]:
    """The samples of :data:`_SHOWN` of each engine, found in one pass however many there are."""
    found: dict[str, dict[str, list[tuple[Mapping[str, str], float]]]] = defaultdict(dict)
    for name in _SHOWN:
        for labels, value in samples.get(name, ()):
            found[labels["engine"]].setdefault(name, []).append((labels, value))
    return found


def _engine(samples: Samples, status: Status) -> EngineReading:
    def value(name: str) -> float | None:
        found = samples.get(name)
        return found[0][1] if found else None

    drafts = value(_DRAFTS)
    return EngineReading(
        status,
        value("vllm_nfp_overhead_budget_ratio"),
        _live(samples),
        None
        if drafts is None
        else Drafting(drafts, value(_DRAFTED) or 0.0, value(_ACCEPTED) or 0.0),
        {
            count(labels["batch_size"]): int(length)
            for labels, length in samples.get(_RECOMMENDED, ())
        },
    )


def _live(samples: Samples) -> Live | None:
    def mine(name: str) -> Sequence[tuple[Mapping[str, str], float]]:
        return samples.get(f"vllm_nfp_{name}", ())

    step = [mine(f"live_{name}") for name in ("batch_size", "context", "positions")]
    if not all(step):
        return None
    batch_size, context, positions = (int(found[0][1]) for found in step)
    cells = [(count(of["batch_size"]), count(of["context"])) for of, _ in mine("live_cell_info")]
    free = {float(of["epsilon"]): int(value) for of, value in mine("free_tokens")}
    return Live(batch_size, context, positions, cells[0] if cells else None, free)


def render(
    reading: Reading, before: Reading | None, epsilon: float, problem: str = ""
) -> RenderableType:
    """The view of a reading.

    Args:
        before: the reading before it, for rates.
        problem: why the server cannot be read now; the reading is then an old one.
    """
    earlier = {engine.status.engine: engine for engine in before.engines} if before else {}
    parts: list[RenderableType] = []
    for engine in reading.engines:
        last = earlier.get(engine.status.engine)
        parts.append(_heading(engine))
        parts.append(_step(engine, reading, epsilon))
        if engine.drafting is not None:
            recent = engine.drafting.since(last.drafting if last else None)
            parts.append(_drafts(recent, _recommended(engine)))
        parts.append(_table(engine, reading.rows(epsilon), epsilon))
    if problem:
        parts.append(Text(f"{problem} Trying again; the values above are old.", "bold red"))
    return Group(*parts)


def _heading(engine: EngineReading) -> Text:
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
        f"  pairs of probes: {printable(probes) or 'none'}",
    )


def _step(engine: EngineReading, reading: Reading, epsilon: float) -> Text:
    live = engine.live
    if live is None:
        return Text("no decode step yet", "dim")
    step = (
        f"last step: batch {live.batch_size}, context {live.context}, "
        f"{live.positions} positions per sequence"
    )
    free = [
        row.positions
        for row in reading.rows(epsilon)
        if (row.engine, row.module) == (engine.status.engine, "model")
        and (row.batch_size, row.context) == live.cell
    ]
    if not free:
        unheld = "; no probed batch size and context holds it" if reading.epsilons else ""
        return Text(step + unheld)
    tokens = live.free_tokens.get(epsilon, 0)
    return Text.assemble(
        f"{step} of ",
        (f"{free[0]} free", "red" if live.positions > free[0] else "green"),
        f"; {tokens} tokens free",
    )


def _recommended(engine: EngineReading) -> str:
    """The recommended draft length where traffic is; empty where there is none."""
    batch_size = engine.live.cell[0] if engine.live and engine.live.cell else None
    if batch_size is None or batch_size not in engine.recommended:
        return ""
    return f"; recommended at B={batch_size}: {engine.recommended[batch_size]}"


def _drafts(drafting: Drafting, recommended: str) -> Text:
    if not drafting.drafts:
        return Text("speculation: nothing drafted yet", "dim")
    return Text(
        f"speculation: draft length {drafting.draft_length:.1f}, "
        f"{drafting.acceptance:.0%} of drafted tokens accepted{recommended}"
    )


def _table(engine: EngineReading, rows: list[Row], epsilon: float) -> RenderableType:
    mine = [row for row in rows if row.engine == engine.status.engine]
    if not mine:
        return Text("No estimate yet: the probe works while the server decodes.", "dim")
    title = Text(f"\nFree positions per sequence within {epsilon:g} [95 % interval]", "italic")
    table = Table(box=box.SIMPLE, padding=(0, 1))
    batches = sorted({row.batch_size for row in mine})
    table.add_column("module", no_wrap=True)
    table.add_column("context", justify="right", no_wrap=True)
    for batch_size in batches:
        table.add_column(f"B={batch_size}", justify="right", no_wrap=True)
    cells = {(row.module, row.context, row.batch_size): row for row in mine}
    lines = {(row.module, row.context) for row in mine}
    for module, context in sorted(lines, key=lambda line: (reading_order(line[0]), line[1])):
        shown = [cells.get((module, context, batch_size)) for batch_size in batches]
        table.add_row(
            Text(printable(module)), str(context), *(_cell(row, engine.live) for row in shown)
        )
    notes = ["+ this or more"] if any(row.at_limit for row in mine) else []
    if engine.live is not None and engine.live.cell is not None:
        notes.append("highlighted: where traffic is")
    return Group(title, table, Text("; ".join(notes), "dim"))


def _cell(row: Row | None, live: Live | None) -> Text:
    if row is None:
        return Text("-", "dim")
    here = live is not None and live.cell == (row.batch_size, row.context)
    interval = "" if row.lower == row.upper else f" [{row.lower}, {row.upper}]"
    return Text(
        f"{row.positions}{'+' if row.at_limit else ''}{interval}", "reverse" if here else ""
    )
