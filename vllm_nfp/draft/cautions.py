"""Why chosen draft lengths may not hold: guessed acceptance, other contexts, noisy times."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.rows import ScheduleRow
from vllm_nfp.draft.server_steps import RealStep

LONG_FOR_A_CONSTANT = 8
"""Draft length from which a constant acceptance is warned of. No public figure of acceptance by
position (:mod:`vllm_nfp.draft.typical`) stays constant over so many."""
WORTH_A_TABLE = 0.02
"""Gain from which another table for one context is named: what is still called good elsewhere
(docs/draft-lengths.md) is within this of the best."""
LONGER = 1.25
"""Period of a real step over what is charged for it, from which it is warned of. Of 125 steps with
n-grams 121 took up to 1.05 times as long as probed, two more up to 1.13 (docs/draft-results.md)."""
NOISY = 0.4
"""Width of a gain's 95 % interval, as a fraction of the gain, from which it is warned of."""


def size_range(first: int, last: int) -> str:
    """Batch sizes as 8 or 9-31."""
    return str(first) if first == last else f"{first}-{last}"


def spans(rows: Sequence[ScheduleRow]) -> list[tuple[int, int]]:
    """Batch sizes of the rows, neighbours together."""
    found: list[tuple[int, int]] = []
    for first, last in sorted({(row.batch_size_first, row.batch_size_last) for row in rows}):
        follows = found and first == found[-1][1] + 1
        found.append((found.pop()[0] if follows else first, last))
    return found


def constant(demand: Demand, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """One probability for all positions makes long drafts look better than they are."""
    acceptance, longest = demand.acceptance, max(row.draft_length for row in rows)
    if acceptance.per_position or longest < LONG_FOR_A_CONSTANT:
        return ()
    return (
        f"the same acceptance, {acceptance.beyond:g}, is assumed at every position, but counted "
        f"acceptance falls with the position: K={longest} is too long unless yours does not; give "
        f"--acceptance-rates, or --acceptance-from a server that speculates",
    )


def uncounted(demand: Demand, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Drafts beyond those whose acceptance was counted."""
    known = len(demand.acceptance.per_position)
    longest = max(row.draft_length for row in rows)
    if not known or demand.acceptance.beyond is None or longest <= known:
        return ()
    return (
        f"acceptance is known of {known} drafted tokens, later ones are assumed to be accepted "
        f"like the last of them: K={longest} is a guess, so count it with num_speculative_tokens "
        f"{longest}",
    )


def elsewhere(rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Contexts that would do clearly better with another K."""
    found = [
        row
        for row in rows
        if not row.between and (row.alone_gain or 0.0) >= (1.0 + WORTH_A_TABLE) * row.gain
    ]
    if not found:
        return ()
    worst = max(found, key=lambda row: (row.alone_gain or 0.0) / row.gain)
    more = (worst.alone_gain or 0.0) / worst.gain - 1.0
    return (
        f"vLLM's table has no context: at L={worst.context}, "
        f"B={size_range(worst.batch_size_first, worst.batch_size_last)} alone "
        f"K={worst.alone_draft_length} would give {more:+.0%}; if your traffic is there, add "
        f"--contexts {worst.context}",
    )


def unexplained(
    steps: Sequence[RealStep], curves: Sequence[StepCurve], demand: Demand
) -> tuple[str, ...]:
    """Real steps that take clearly longer than verification, drafts and host time that are charged.

    The rest may be the host's or the drafter's, and nothing tells how much of it a server without
    speculation has too.
    """
    by_cell = {(curve.batch_size, curve.context): curve for curve in curves}
    found = []
    for step in steps:
        curve = by_cell.get((step.batch_size, step.context))
        if curve is None or not 1 < step.positions <= curve.largest:
            continue
        whole = curve.ratio(step.positions) + demand.cost.ratio(step.positions - 1, curve)
        charged = curve.seconds_at_one * whole + demand.host_seconds
        if step.period_seconds > LONGER * charged:
            found.append((step.period_seconds / charged, charged, step))
    if not found:
        return ()
    _, charged, step = max(found, key=lambda one: one[0])
    return (
        f"real steps with K={step.positions - 1} at B={step.batch_size} L={step.context} take "
        f"{step.period_seconds * 1e3:.3g} ms, of which {charged * 1e3:.3g} ms are explained: the "
        f"host or the drafter takes the rest, so gains over no speculation may be much smaller "
        f"than shown",
    )


def noisy(rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Measured step times that scatter so much that the gain is hardly known."""
    wide = [
        row
        for row in rows
        if row.draft_length
        and row.gain_lower is not None
        and row.gain_upper is not None
        and row.gain_upper - row.gain_lower > NOISY * row.gain
    ]
    if not wide:
        return ()
    sizes = ", ".join(size_range(*span) for span in spans(wide))
    return (
        f"at batch sizes {sizes} the gain is not known within {NOISY / 2:.0%}: step times are "
        f"noisy, or few; measure for longer, without other work on the device",
    )
