"""What a recommendation assumes, and what to know before serving it: one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_nfp import releases
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.drafting import LOOKUPS
from vllm_nfp.draft.rows import RowBasis, Schedule, ScheduleRow
from vllm_nfp.draft.sources import Source
from vllm_nfp.types import Basis

LONG_FOR_A_CONSTANT = 8
"""Draft length from which a constant acceptance is warned of. No public figure of acceptance by
position (:mod:`vllm_nfp.draft.typical`) stays constant over so many."""
WORTH_A_TABLE = 0.02
"""Gain from which another table for one context is named: what is still called good elsewhere
(docs/draft-lengths.md) is within this of the best."""
NOISY = 0.4
"""Width of a gain's 95 % interval, as a fraction of the gain, from which it is warned of."""
MOST_LISTED = 8
"""Probabilities of acceptance that are written out."""
_BASES: Mapping[RowBasis, str] = {
    Basis.MEASURED: "this step was measured",
    Basis.INFERRED: "other steps were measured that tell most of it",
    "between": "batch sizes around it were measured",
    Basis.PREDICTED: "nothing like it was measured yet",
}


def assumptions(source: Source, demand: Demand, method: str) -> tuple[str, ...]:
    """What the draft lengths rest on."""
    predicted = source.kind == "prediction"
    return (
        _acceptance(demand),
        _cost(demand, method),
        "between known draft lengths the slower neighbour counts; between batch sizes up to "
        "twice apart the step time is interpolated at equal tokens, between others the slower one "
        "counts; batch sizes outside those known are inferred from the nearest one",
        _host(demand, predicted),
    )


def warnings(
    source: Source, demand: Demand, schedule: Schedule, vllm: str | None
) -> tuple[str, ...]:
    """Why these draft lengths may not do as they say.

    Args:
        vllm: version of vLLM that will serve them; None: not known.
    """
    return (
        *_release(vllm),
        *_losses(schedule.rows),
        *_constant(demand, schedule.rows),
        *_uncounted(demand, schedule.rows),
        *_elsewhere(schedule.rows),
        *_noisy(schedule.rows),
        *_predicted(source, schedule.rows),
        *_without_graphs(source, demand, schedule.rows),
        *(note.removesuffix(".") for note in source.notes),
    )


def basis_text(basis: RowBasis) -> str:
    """What a draft length rests on, in words."""
    return _BASES[basis]


def size_range(first: int, last: int) -> str:
    """Batch sizes as 8 or 9-31."""
    return str(first) if first == last else f"{first}-{last}"


def _acceptance(demand: Demand) -> str:
    acceptance = demand.acceptance
    if not acceptance.per_position:
        return f"each drafted token is accepted with probability {acceptance.beyond:g}"
    listed = ", ".join(f"{a:.3g}" for a in acceptance.per_position[:MOST_LISTED])
    more = ", ..." if len(acceptance.per_position) > MOST_LISTED else ""
    later = (
        f"K is at most {len(acceptance.per_position)}"
        if acceptance.beyond is None
        else f"later ones with probability {acceptance.beyond:.3g}"
    )
    return (
        f"drafted tokens are accepted, given those before, with probability {listed}{more}; {later}"
    )


def _cost(demand: Demand, method: str) -> str:
    cost, lookup = demand.cost, method in LOOKUPS
    if cost.note is not None:
        return cost.note
    seconds = cost.seconds_once if lookup else cost.seconds_per_token
    share = cost.share_once if lookup else cost.share_per_token
    if lookup and not seconds and not share:
        return f"{method} lookup is free (change with --draft-cost)"
    parts = (f"{seconds * 1e3:.3g} ms" if seconds else "", f"{share:.3g} t(1)" if share else "")
    amount = " and ".join(filter(None, parts)) or "no time"
    if lookup:
        return f"{method} lookup takes {amount} per step, however long the draft"
    return f"each drafted token takes {amount} with {method}, at every batch size"


def _host(demand: Demand, predicted: bool) -> str:
    if predicted:
        return "sampling is not included, so real tokens/s are lower"
    if not demand.host_seconds:
        return "sampling and host time are not included, so real tokens/s are lower"
    return (
        f"{demand.host_seconds * 1e3:.3g} ms of host time are added to every step: the server's "
        f"real steps take so much longer than their work on the device"
    )


def _constant(demand: Demand, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """One probability for all positions makes long drafts look better than they are."""
    acceptance, longest = demand.acceptance, max(row.draft_length for row in rows)
    if acceptance.per_position or longest < LONG_FOR_A_CONSTANT:
        return ()
    return (
        f"the same acceptance, {acceptance.beyond:g}, is assumed at every position, but counted "
        f"acceptance falls with the position: K={longest} is too long unless yours does not; give "
        f"--acceptance-rates, or --acceptance-from a server that speculates",
    )


def _uncounted(demand: Demand, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
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


def _elsewhere(rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
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
        f"vLLM's table knows no context: at L={worst.context}, "
        f"B={size_range(worst.batch_size_first, worst.batch_size_last)} alone "
        f"K={worst.alone_draft_length} would give {more:+.0%}; if your traffic is there, add "
        f"--contexts {worst.context}",
    )


def _noisy(rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
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
    sizes = ", ".join(size_range(*span) for span in _spans(wide))
    return (
        f"at batch sizes {sizes} the gain is not known within {NOISY / 2:.0%}: step times are "
        f"noisy, or few; measure for longer, without other work on the device",
    )


def _release(vllm: str | None) -> tuple[str, ...]:
    if vllm is None:
        return ()
    found = releases.draft_schedule_refusal(vllm) or releases.draft_schedule_warning(vllm)
    return () if found is None else (found,)


def _losses(rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Where a server that speculates is slower than one that does not, at every K."""
    losing = [row for row in rows if row.gain < 1.0]
    if not losing:
        return ()
    first = min(row.batch_size_first for row in losing)
    last = max(row.batch_size_last for row in losing)
    worst = min(row.gain for row in losing)
    return (
        f"at batch sizes {first} to {last} speculation can be slower than none ({worst:.2f}x), "
        f"because the draft model runs on every step, even at K = 0: serve without speculation if "
        f"most batches are of these sizes",
    )


def _predicted(source: Source, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Where measured sources answer with the prediction."""
    found = [row for row in rows if row.basis == Basis.PREDICTED]
    if source.kind == "prediction" or not found:
        return ()
    sizes = ", ".join(size_range(*span) for span in _spans(found))
    return (
        f"at batch sizes {sizes} some draft lengths are predicted: nothing like these steps was "
        f"measured yet; let the server serve such traffic, or run vllm-nfp measure",
    )


def _spans(rows: Sequence[ScheduleRow]) -> list[tuple[int, int]]:
    """Batch sizes of the rows, neighbours together."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted({(row.batch_size_first, row.batch_size_last) for row in rows}):
        follows = spans and first == spans[-1][1] + 1
        spans.append((spans.pop()[0] if follows else first, last))
    return spans


def _without_graphs(source: Source, demand: Demand, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Where the best lengths reach the end of the CUDA graphs of the measured server."""
    best = {
        (row.batch_size_first, row.context): row.draft_length for row in rows if not row.between
    }
    edge = []
    for curve in source.curves:
        without, found = curve.without_graph_from, best.get((curve.batch_size, curve.context))
        lengths = demand.lengths(curve)
        if without is None or found is None or lengths[-1] + 1 < without:
            continue
        if found >= max(k for k in lengths if k + 1 < without):
            edge.append((curve.batch_size, without - 1, curve.batch_size * (lengths[-1] + 1)))
    if not edge:
        return ()
    batch_size, length, _ = min(edge)
    tokens = max(tokens for *_, tokens in edge)
    if source.kind == "prediction":
        return (
            f"from B={batch_size} with K={length} on, steps leave the CUDA graphs, and the host's "
            f"launch time is not predicted: longer drafts may be slower than shown, unless graphs "
            f"of up to {tokens} tokens are captured (max_cudagraph_capture_size in "
            f"--compilation-config)",
        )
    return (
        f"from B={batch_size} with K={length} on, steps ran without a CUDA graph and were limited "
        f"by the host: longer drafts may pay with graphs of up to {tokens} tokens "
        f"(max_cudagraph_capture_size in --compilation-config)",
    )
