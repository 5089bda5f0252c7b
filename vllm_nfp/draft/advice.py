"""What a recommendation assumes, and what to know before serving it: one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_nfp import releases
from vllm_nfp.draft import cautions, served_with
from vllm_nfp.draft.cautions import size_range, spans
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.methods import LOOKUPS, Drafts, drafts_of
from vllm_nfp.draft.rows import RowBasis, Schedule, ScheduleRow
from vllm_nfp.draft.sources import Source
from vllm_nfp.types import Basis

MOST_LISTED = 8
"""Probabilities of acceptance that are written out."""
_BASES: Mapping[RowBasis, str] = {
    Basis.MEASURED: "this step was measured",
    Basis.INFERRED: "other steps were measured that tell most of it",
    "between": "batch sizes around it were measured",
    Basis.PREDICTED: "nothing like it was measured yet",
}


def assumptions(
    source: Source, demand: Demand, method: str, parallel: bool = False
) -> tuple[str, ...]:
    """What the draft lengths rest on.

    Args:
        parallel: one pass of the drafter makes all drafts.
    """
    predicted = source.kind == "prediction"
    return (
        _acceptance(demand),
        _cost(demand, method, parallel),
        "between known draft lengths the slower neighbour counts; between batch sizes up to "
        "twice apart the step time is interpolated at equal tokens, between others the slower one "
        "counts; batch sizes outside those known are inferred from the nearest one",
        _host(demand, predicted),
    )


def warnings(
    source: Source,
    demand: Demand,
    schedule: Schedule,
    method: str,
    vllm: str | None,
    parallel: bool = False,
) -> tuple[str, ...]:
    """Why these draft lengths may not do as they say.

    Args:
        method: how drafts are made, in vLLM's words.
        vllm: version of vLLM that will serve them; None: not known.
        parallel: one pass of the drafter makes all drafts.
    """
    return (
        *_release(vllm),
        *_losses(schedule.rows, method, source.kind == "prediction"),
        *cautions.constant(demand, schedule.rows),
        *cautions.uncounted(demand, schedule.rows),
        *cautions.elsewhere(schedule.rows),
        *cautions.noisy(schedule.rows),
        *_predicted(source, schedule.rows),
        *_without_graphs(source, demand, schedule.rows),
        *served_with.cautions(source, schedule, method, parallel),
        *(note.removesuffix(".") for note in source.notes),
    )


def basis_text(basis: RowBasis) -> str:
    """What a draft length rests on, in words."""
    return _BASES[basis]


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


def _cost(demand: Demand, method: str, parallel: bool) -> str:
    cost, lookup = demand.cost, method in LOOKUPS
    once = drafts_of(method, parallel) is not Drafts.TOKEN and not cost.seconds_per_token
    if cost.note is not None:
        return cost.note
    seconds = cost.seconds_once if once else cost.seconds_per_token
    share = cost.share_once if once else cost.share_per_token
    if lookup and not seconds and not share:
        return f"{method} lookup is free (change with --draft-cost)"
    parts = (f"{seconds * 1e3:.3g} ms" if seconds else "", f"{share:.3g} t(1)" if share else "")
    amount = " and ".join(filter(None, parts)) or "no time"
    if lookup:
        return f"{method} lookup takes {amount} per step, however long the draft"
    if once:
        return (
            f"one pass of {method} makes all drafts of a step and takes {amount}, at every K and "
            f"batch size, K=0 included (vLLM 0.33 skips it there)"
        )
    if len(cost.by_batch) > 1:
        (first, least), (last, most) = cost.by_batch[0], cost.by_batch[-1]
        return (
            f"each drafted token takes {least * 1e3:.3g} ms at B={first} and {most * 1e3:.3g} ms "
            f"at B={last} with {method}, as the server measured at {len(cost.by_batch)} batch sizes"
        )
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


def _release(vllm: str | None) -> tuple[str, ...]:
    if vllm is None:
        return ()
    found = releases.draft_schedule_refusal(vllm) or releases.draft_schedule_warning(vllm)
    return () if found is None else (found,)


def _losses(rows: Sequence[ScheduleRow], method: str, predicted: bool) -> tuple[str, ...]:
    """Where a server that speculates is slower than one that does not, at every K."""
    losing = [row for row in rows if row.gain < 1.0]
    if not losing:
        return ()
    first = min(row.batch_size_first for row in losing)
    last = max(row.batch_size_last for row in losing)
    worst = min(row.gain for row in losing)
    return (
        f"at batch sizes {first} to {last} speculation can be slower than none ({worst:.2f}x), "
        f"because {_at_no_drafts(method, predicted)}, even at K = 0: serve without speculation if "
        f"most batches are of these sizes",
    )


def _at_no_drafts(method: str, predicted: bool) -> str:
    """What a step without drafts costs on a server that speculates."""
    if method not in LOOKUPS:
        return "the drafter runs on every step"
    if predicted:  # whose host time is that of an engine that speculates
        return "the host takes longer for a step with speculation"
    return "the lookup runs on every step"


def _predicted(source: Source, rows: Sequence[ScheduleRow]) -> tuple[str, ...]:
    """Where measured sources answer with the prediction."""
    found = [row for row in rows if row.basis == Basis.PREDICTED]
    if source.kind == "prediction" or not found:
        return ()
    sizes = ", ".join(size_range(*span) for span in spans(found))
    return (
        f"at batch sizes {sizes} some draft lengths are predicted: nothing like these steps was "
        f"measured yet; let the server serve such traffic, or run vllm-nfp measure",
    )


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
