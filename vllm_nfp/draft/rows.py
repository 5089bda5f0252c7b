"""Draft lengths by batch size and context, and what each rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from vllm_nfp.types import Basis

RowBasis: TypeAlias = Basis | Literal["between"]
"""What a row rests on: the step's time at its K; ``between``: measured batch sizes that are far
apart."""
_WEAKER: tuple[RowBasis, ...] = (Basis.MEASURED, Basis.INFERRED, "between", Basis.PREDICTED)


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """The best draft length for a range of batch sizes at one context."""

    context: int
    batch_size_first: int
    batch_size_last: int
    basis: RowBasis
    draft_length: int
    """K of these batch sizes, the same in all contexts; 0 where drafts lose."""
    expected_tokens: float
    """E(K), a sequence's tokens per step."""
    step_ratio: float
    """t(K + 1) / t(1), without the time of drafting."""
    draft_ratio: float
    """t_draft(K) / t(1)."""
    tokens_per_second: float | None
    """Goodput of the whole batch; None for batch sizes that were not measured."""
    tokens_per_second_without: float | None
    """The same without speculation."""
    gain: float
    """Goodput over that without speculation, at most the tokens of a step; between measured batch
    sizes a lower bound. Below 1 where the draft model costs more time than any K saves."""
    free_draft_length: int | None
    """NFP - 1: drafted tokens that keep the step within (1 + epsilon) t(1); None: not known."""
    free_at_limit: bool
    """Still free at the largest N measured: more may be free."""
    at_limit: bool
    """K is the longest that is known: a longer draft may be better."""
    scheduled_draft_length: int
    """The same as ``draft_length``; older versions chose another K for each context."""
    scheduled_gain: float | None
    """The same as ``gain``."""
    between: bool = False
    """From the curves of the batch sizes around it."""
    gain_lower: float | None = None
    """Lower end of the gain's 95 % interval; None: not known."""
    gain_upper: float | None = None
    """Upper end."""
    alone_draft_length: int | None = None
    """Best K for this context alone, where that is clearly better; None elsewhere."""
    alone_gain: float | None = None
    """Its gain."""
    running_draft_length: int | None = None
    """K that the server runs now; None: not known."""
    gain_over_running: float | None = None
    """Goodput over that of the K that runs; None: not known."""
    gain_over_running_lower: float | None = None
    """Lower end of its 95 % interval."""
    gain_over_running_upper: float | None = None
    """Upper end."""

    @property
    def length_text(self) -> str:
        """K as text: 7, or 7+ at the limit."""
        return f"{self.draft_length}{'+' if self.at_limit else ''}"

    def without_rates(self) -> ScheduleRow:
        """The same without tokens per second."""
        return replace(self, tokens_per_second=None, tokens_per_second_without=None)

    @property
    def gain_text(self) -> str:
        """The gain and its 95 % interval, where it is known: 1.52x [1.48, 1.56]."""
        lower, upper = self.gain_lower, self.gain_upper
        if lower is None or upper is None or not self.draft_length:
            return f"{self.gain:.2f}x"
        return f"{self.gain:.2f}x [{lower:.2f}, {upper:.2f}]"


@dataclass(frozen=True, slots=True)
class ScheduleRange:
    """One entry of a table by batch size."""

    batch_size_first: int
    batch_size_last: int
    draft_length: int
    basis: RowBasis = Basis.MEASURED
    """The weakest of its rows'."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Draft lengths by batch size."""

    ranges: tuple[ScheduleRange, ...]
    """Merged, from batch size 1 on; over all contexts."""
    rows: tuple[ScheduleRow, ...]
    """Each range of batch sizes at each context, before merging."""

    @property
    def longest(self) -> int:
        """Largest K in it."""
        return max(entry.draft_length for entry in self.ranges)

    def length_of(self, batch_size: int) -> int:
        """K of a batch size; beyond the last range its K, as vLLM reads the table."""
        of = next((r for r in self.ranges if batch_size <= r.batch_size_last), self.ranges[-1])
        return of.draft_length

    def without_rates(self) -> Schedule:
        """The same without tokens per second, of a model that was cut."""
        return replace(self, rows=tuple(row.without_rates() for row in self.rows))

    @property
    def pays(self) -> bool:
        """Whether drafts beat a server without speculation anywhere."""
        return any(row.draft_length and row.gain > 1.0 for row in self.rows)


def weakest_of(bases: Iterable[RowBasis]) -> RowBasis:
    """Of rows together."""
    return max(bases, key=_WEAKER.index)
