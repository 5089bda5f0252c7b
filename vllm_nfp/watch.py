"""What a server says of its probe, its traffic and its drafts, from one scrape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_nfp.crossing import usual_epsilon
from vllm_nfp.draft.server import LIVE_RATIO
from vllm_nfp.results.scrape import (
    Row,
    Samples,
    Scrape,
    Status,
    count,
    read_samples,
    refusing_strange_labels,
    scrape_of,
)
from vllm_nfp.types import Basis

_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_RECOMMENDED = "vllm_nfp_recommended_draft_length"
_LIVE_RECOMMENDED = "vllm_nfp_live_recommended_draft_length"
_LIVE_BASIS = f"{LIVE_RATIO}_basis"
choose_epsilon = usual_epsilon


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
    """Smallest reported batch size and context that hold the step; None: none does."""
    free_tokens: Mapping[float, int]
    """Tokens that fit in beside the step's own, by epsilon; of its real batch size and context."""
    bases: Mapping[int, Basis] = field(default_factory=dict)
    """What its curve rests on, by positions; empty of an older server."""
    draft_length: int | None = None
    """Recommended at its batch size and context; None: not known, or of an older server."""

    def basis(self, epsilon: float) -> Basis | None:
        """The weaker of what the last free position and the next one rest on; None: not known."""
        free = self.positions + self.free_tokens.get(epsilon, 0) // max(1, self.batch_size)
        below = [n for n in self.bases if n <= free]
        above = [n for n in self.bases if n > free]
        ends = (*sorted(below)[-1:], *sorted(above)[:1])
        return max((self.bases[n] for n in ends), key=tuple(Basis).index, default=None)


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
    """vllm_nfp_recommended_draft_length by batch size."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a scrape says."""

    scrape: Scrape
    engines: tuple[EngineReading, ...]

    def rows_of(self, engine: str, epsilon: float | None = None) -> list[Row]:
        """Answers of one engine, at one tolerance or all."""
        return [
            row
            for row in self.scrape.rows
            if row.engine == engine
            and row.epsilon in (row.epsilon if epsilon is None else epsilon,)
        ]

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Tolerances measured, ascending."""
        return tuple(sorted({row.epsilon for row in self.scrape.rows}))


def read(text: str, end: float | None = None) -> Reading:
    """Read a scrape's text.

    Args:
        end: by when it has to be read, see :func:`vllm_nfp.results.fetching.deadline`; None: as if
            fetching began now.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, has no probe in it, or cannot be read
            in time.
    """
    samples = read_samples(text, (_DRAFTS, _DRAFTED, _ACCEPTED), end)
    scrape = scrape_of(samples)
    with refusing_strange_labels():
        by_engine = _by_engine(samples)
        engines = tuple(_engine(by_engine[one.engine], one) for one in scrape.statuses)
    return Reading(scrape, engines)


_SHOWN = (
    _DRAFTS, _DRAFTED, _ACCEPTED, _RECOMMENDED, "vllm_nfp_overhead_budget_ratio",
    "vllm_nfp_live_batch_size", "vllm_nfp_live_context", "vllm_nfp_live_positions",
    "vllm_nfp_live_cell_info", "vllm_nfp_free_tokens", _LIVE_BASIS, _LIVE_RECOMMENDED,
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
    bases = {count(of["positions"]): Basis(of["basis"]) for of, _ in samples.get(_LIVE_BASIS, ())}
    lengths = [int(value) for _, value in samples.get(_LIVE_RECOMMENDED, ())]
    return Live(
        batch_size, context, positions, cells[0] if cells else None, free, bases,
        lengths[0] if lengths else None,
    )  # fmt: skip
