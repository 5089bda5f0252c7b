"""The answer in a sentence or two: keep the draft length that runs, or what another would give."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import Schedule, ScheduleRange, ScheduleRow
from vllm_nfp.draft.sources import Source
from vllm_nfp.types import Basis

ALL = 0.95
"""Fraction of steps with a draft from which all steps are meant."""
_UNSURE = (Basis.INFERRED, Basis.PREDICTED)


def verdict(
    source: Source,
    demand: Demand,
    schedule: Schedule,
    live: Sequence[ScheduleRow],
    longer: Sequence[ScheduleRow] = (),
) -> tuple[str, ...]:
    """What to do, one sentence each.

    Args:
        live: of a server, at its last step.
        longer: the same if acceptance held beyond the positions that were counted.
    """
    tried = [one.settled for one in source.live]
    said = [
        _at_traffic(row, _drafted(demand), row.draft_length == settled)
        for row, settled in zip(live, tried, strict=True)
    ] or [_of_table(schedule, demand)]
    said += [_longer(row, demand) for row in longer]
    if source.kind == "prediction" and not source.whole:
        where = "at any batch size and context of this table"
        said.insert(0, f"{source.model} does not fit on one {source.device} rank {where}")
    if source.cut_layers is not None:
        timed, whole = source.cut_layers
        said.insert(
            0,
            f"Only {timed} of {whole} layers were timed: the draft lengths are a guide, no "
            f"tokens/s are given",
        )
    return tuple(said)


def percent(gain: float, lower: float | None, upper: float | None) -> str:
    """A gain and its 95 % interval, as in +12 % [8, 15]."""
    if lower is None or upper is None or not math.isfinite(upper) or lower <= 0.0:
        return f"{gain - 1.0:+.0%}".replace("%", " %")
    ends = ", ".join(f"{100 * (end - 1.0):.0f}" for end in (lower, upper))
    return f"{100 * (gain - 1.0):+.0f} % [{ends}]"


def _drafted(demand: Demand) -> str:
    """Which steps a gain over no speculation holds for."""
    found = demand.drafted_fraction
    return f" in the {found:.0%} of steps that had a draft" if found and found < ALL else ""


def _at_traffic(row: ScheduleRow, drafted: str, tried: bool) -> str:
    """What to do at live traffic.

    Args:
        tried: draft control chose this length by real steps.
    """
    where = f"live traffic: B={row.batch_size_first}, L={row.context}{_mark(row.basis)}"
    running, length = row.running_draft_length, row.draft_length
    over_none = percent(row.gain, row.gain_lower, row.gain_upper)
    if running is None:
        return f"K={length} gives {over_none} over no speculation{drafted} ({where})"
    if running == length:
        than = f"; {over_none} over no speculation{drafted}" if length else ""
        if tried and row.gain < 1.0:
            # It chooses among what it has tried: no speculation may not have had its turn.
            best = "the best that draft control has tried here so far"
            return f"{_runs(running)}, {best} ({where}; estimated {than.removeprefix('; ')})"
        return f"{_runs(running)}; keep it ({where}{than})"
    if row.gain_over_running is None:
        return f"{_runs(running)}, and K={length} is recommended ({where})"
    over = percent(row.gain_over_running, row.gain_over_running_lower, row.gain_over_running_upper)
    doubt = (row.gain_over_running_lower or 0.0) <= 1.0
    certain = ", which is not certain" if doubt else ""
    what = "no speculation, which you run" if running == 0 else f"the K={running} that you run"
    name = f"K={length}" if length else "No speculation (K=0)"
    return f"{name} would give {over} over {what}{certain} ({where})"


def _runs(length: int) -> str:
    return f"You run K={length}" if length else "You run without speculation (K=0)"


def _mark(basis: object) -> str:
    return "" if basis == Basis.MEASURED else f", {basis}"


def _of_table(schedule: Schedule, demand: Demand) -> str:
    if not schedule.pays:
        return "Serve without speculation: drafts pay at no batch size"
    running = demand.running
    lengths = {entry.draft_length for entry in schedule.ranges}
    if running is not None and lengths == {running}:
        return f"{_runs(running)}; keep it at all batch sizes ({_gains(schedule.rows)})"
    served = _entries(schedule.ranges)
    compared = [r for r in schedule.rows if r.gain_over_running is not None]
    if running is not None and compared:
        over = [row.gain_over_running or 1.0 for row in compared]
        return f"Serve {served}: {_between(over)} over the K={running} that you run"
    return f"Serve {served}: {_gains(schedule.rows)}"


def _entries(ranges: Sequence[ScheduleRange]) -> str:
    first, *others = ranges
    named = (
        [f"K={first.draft_length}"]
        if not others
        else [
            f"K={first.draft_length} up to B={first.batch_size_last}",
            *(f"{r.draft_length} up to {r.batch_size_last}" for r in others),
        ]
    )
    weak = [basis for basis in _UNSURE if any(r.basis == basis for r in ranges)]
    every = "" if any(r.basis not in _UNSURE for r in ranges) else "all "
    mark = f" ({every or 'partly '}{' and '.join(weak)})" if weak else ""
    return f"{', '.join(named)}{mark}"


def _gains(rows: Sequence[ScheduleRow]) -> str:
    gains = [row.gain for row in rows if row.draft_length]
    return f"{_between(gains)} over no speculation"


def _between(gains: Sequence[float]) -> str:
    low, high = (f"{100 * (gain - 1.0):+.0f}" for gain in (min(gains), max(gains)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _longer(row: ScheduleRow, demand: Demand) -> str:
    counted = len(demand.acceptance.per_position)
    over = (
        ""
        if row.gain_over_running is None
        else f", {percent(row.gain_over_running, None, None)} over what you run"
    )
    return (
        f"Longer drafts may pay: K={row.draft_length}{over}, if tokens after the {counted} counted "
        f"ones are accepted like the last; num_speculative_tokens {row.draft_length} would count "
        f"them"
    )
