"""The answer at a server's live traffic, and what longer drafts might give there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import Schedule, ScheduleRow
from vllm_nfp.draft.schedule import row_at
from vllm_nfp.draft.sources import Source
from vllm_nfp.types import Basis

MOST_TIMES_COUNTED = 2
"""A hint at longer drafts goes no farther than so many times the positions that were counted: what
is accepted beyond is a guess, and one that grows with the distance."""


def live_rows(source: Source, demand: Demand, schedule: Schedule) -> tuple[ScheduleRow, ...]:
    """One row for each engine."""
    return tuple(row_at(one.curve, demand, schedule, one.settled) for one in source.live)


def longer_rows(
    source: Source, demand: Demand, schedule: Schedule, live: Sequence[ScheduleRow]
) -> tuple[ScheduleRow, ...]:
    """Live rows whose drafts would be longer if acceptance were known of later tokens."""
    counted = len(demand.acceptance.per_position)
    extended = replace(
        demand,
        acceptance=demand.acceptance.extended(),
        max_draft_length=min(MOST_TIMES_COUNTED * counted, demand.max_draft_length or counted << 8),
    )
    if extended.acceptance == demand.acceptance or not any(row.at_limit for row in live):
        return ()
    found = (row_at(one.curve, extended) for one in source.live)
    return tuple(
        row
        for row, now in zip(found, live, strict=True)
        if row.draft_length > now.draft_length and row.basis != Basis.PREDICTED
    )
