"""Draft lengths by batch size and context, and what each rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vllm_nfp.types import Basis

RowBasis: TypeAlias = Basis | Literal["between", "unknown"]
"""What a row rests on: the step's time at its K; ``between``: measured batch sizes that are far
apart; ``unknown``: nothing."""
_WEAKER: tuple[RowBasis, ...] = (
    Basis.MEASURED, Basis.INFERRED, "between", Basis.PREDICTED, "unknown",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """The best draft length for a range of batch sizes at one context."""

    context: int
    batch_size_first: int
    batch_size_last: int
    basis: RowBasis
    draft_length: int
    """Best K at this context; 0 where drafts lose or nothing was measured."""
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
    """Goodput over that without speculation; between measured batch sizes a lower bound. Below 1
    where the draft model costs more time than any K saves."""
    free_draft_length: int | None
    """NFP - 1: drafted tokens that keep the step within (1 + epsilon) t(1); None: not known."""
    free_at_limit: bool
    """Still free at the largest N measured: more may be free."""
    at_limit: bool
    """K is the longest that is known: a longer draft may be better."""
    scheduled_draft_length: int
    """K of the table for all contexts."""
    scheduled_gain: float | None
    """Gain of that K here; None: not known, since it comes from other contexts."""
    between: bool = False
    """From the curves of the batch sizes around it."""
    gain_lower: float | None = None
    """Lower end of the gain's 95 % interval; None: not known."""
    gain_upper: float | None = None
    """Upper end."""

    @property
    def length_text(self) -> str:
        """K as text: 7, 7+ at the limit, 0? where nothing was measured."""
        if self.basis == "unknown":
            return "0?"
        return f"{self.draft_length}{'+' if self.at_limit else ''}"

    @property
    def gain_text(self) -> str:
        """The gain and the farther end of its interval, where it is known: 1.52x ±3%."""
        lower, upper = self.gain_lower, self.gain_upper
        if lower is None or upper is None or not self.draft_length:
            return f"{self.gain:.2f}x"
        return f"{self.gain:.2f}x ±{max(upper / self.gain - 1.0, 1.0 - lower / self.gain):.0%}"


@dataclass(frozen=True, slots=True)
class ScheduleRange:
    """One entry of a table by batch size."""

    batch_size_first: int
    batch_size_last: int
    draft_length: int
    basis: RowBasis = Basis.MEASURED
    """The weakest of its rows'; unknown only where no context has one."""


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

    @property
    def pays(self) -> bool:
        """Whether drafts beat a server without speculation anywhere."""
        return any(
            row.scheduled_draft_length and (row.scheduled_gain or 0.0) > 1.0 for row in self.rows
        )


def weakest_of(bases: Iterable[RowBasis]) -> RowBasis:
    """Of rows together; unknown if there is none."""
    return max(bases, key=_WEAKER.index, default="unknown")
