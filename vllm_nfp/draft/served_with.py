"""Whether the settings of the measured server suit the draft lengths, if it goes on with them."""

from __future__ import annotations

from vllm_nfp.draft import lints
from vllm_nfp.draft.methods import METHODS, ONE_LENGTH
from vllm_nfp.draft.missed_graphs import overlooked
from vllm_nfp.draft.rows import Schedule
from vllm_nfp.draft.sources import Source


def cautions(
    source: Source, schedule: Schedule, method: str, parallel: bool = False
) -> tuple[str, ...]:
    """One sentence for each setting that does not suit.

    Args:
        method: how drafts are made, in vLLM's words.
        parallel: one pass of the drafter makes all drafts.
    """
    if not schedule.longest:
        return ()
    found = (
        _engines(source, schedule, method),
        _one_length(schedule, method),
        _step(source, schedule, method, parallel),
        _shorter(schedule, method),
        _overlooked(source, schedule, method),
        _cache(source),
    )
    return tuple(sentence for sentence in found if sentence is not None)


def _engines(source: Source, schedule: Schedule, method: str) -> str | None:
    """A server with several engines is a data-parallel one."""
    if method in ONE_LENGTH or len(schedule.ranges) == 1:
        return None
    return lints.ignored_table(schedule.longest, len(source.live))


def _one_length(schedule: Schedule, method: str) -> str | None:
    """Several lengths for a method that has one."""
    if method not in ONE_LENGTH:
        return None
    return lints.one_length(method, [entry.draft_length for entry in schedule.ranges])


def _shorter(schedule: Schedule, method: str) -> str | None:
    """A table of several lengths for a drafter that always makes the longest draft."""
    lengths = sorted({entry.draft_length for entry in schedule.ranges})
    if method not in METHODS or not METHODS[method].always_longest or len(lengths) < 2:
        return None
    return lints.whole_draft(method, lengths[0], lengths[-1])


def _step(source: Source, schedule: Schedule, method: str, parallel: bool) -> str | None:
    server = source.environment
    if server is None or not server.max_num_seqs or not server.max_num_batched_tokens:
        return None
    longest, lengths = schedule.longest, _lengths(schedule, method, server.max_num_seqs)
    slots = lints.drafting_slots(method, longest, parallel)
    return lints.crowded_step(lengths, slots, server.max_num_batched_tokens)


def _overlooked(source: Source, schedule: Schedule, method: str) -> str | None:
    """Graphs of the table that vLLM will capture and not find; data parallelism drops the table."""
    server = source.environment
    if server is None or not server.max_num_seqs or len(source.live) > 1:
        return None
    if server.enforce_eager or server.cudagraph_mode not in ("FULL_AND_PIECEWISE", ""):
        return None
    return overlooked(
        server.vllm,
        method,
        server.cudagraph_capture_sizes,
        _lengths(schedule, method, server.max_num_seqs),
        whose="the capture sizes of the measured server",
    )


def _lengths(schedule: Schedule, method: str, max_num_seqs: int) -> lints.Tiers:
    table = [(r.batch_size_first, r.batch_size_last, r.draft_length) for r in schedule.ranges]
    return lints.tiers(() if method in ONE_LENGTH else table, schedule.longest, max_num_seqs)


def _cache(source: Source) -> str | None:
    if not (_predicted_flash_2(source) or _served_flash_2(source)):
        return None
    return lints.unsplit_cache(max(curve.context for curve in source.curves))


def _predicted_flash_2(source: Source) -> bool:
    """Whether steps are predicted with FlashAttention 2."""
    if source.kind != "prediction":
        return False
    from vllm_nfp.draft.predictions import PredictedDrafting
    from vllm_nfp.principle.attention.flash_attention_2 import FLASH_ATTN_2

    drafting = source.drafting
    return isinstance(drafting, PredictedDrafting) and drafting.found.backend is FLASH_ATTN_2


def _served_flash_2(source: Source) -> bool:
    """Whether a server runs FlashAttention 2."""
    server = source.environment
    if server is None or "FLASH_ATTN" not in server.attention_backends:
        return False
    # Here, since most recommendations need no predictor, which takes long to import.
    from vllm_nfp.principle.attention.choice import backend_by_name
    from vllm_nfp.principle.attention.flash_attention_2 import FLASH_ATTN_2
    from vllm_nfp.principle.hardware import match_device

    hardware = match_device(server.device.name)
    if hardware is None or hardware.capability_10:  # which runs version 4
        return False
    return backend_by_name("FLASH_ATTN", hardware) is FLASH_ATTN_2
