"""How a probe ends: hooks are removed, the reason is written, memory is given back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.session.output import Output
from vllm_nfp.session.started import Started
from vllm_nfp.types import State

logger = logging.getLogger("vllm.nfp")


def end(
    started: Started | None,
    identity: Snapshot,
    reason: str,
    output: Output,
    unhook: Callable[[], None],
) -> None:
    """End the probe permanently. Whatever fails here is only logged.

    Args:
        started: what was serving; None if the start has not ended.
        identity: what is known of the engine if nothing was serving.
        unhook: removes the hooks.
    """
    output.end()
    try:
        unhook()
        lead = None if started is None else started.lead
        if lead is not None:
            lead.publisher.stop()
            if lead.experts is not None:
                lead.experts.close()

        def last() -> Snapshot:
            known = identity if lead is None else lead.publisher.last_snapshot()
            return replace(known, state=State.DISABLED, reason=reason)

        output.write_last(last)
        if started is not None and started.engine is not None:
            started.engine.close()
        output.close()
    except Exception:
        logger.exception("vllm-nfp: /metrics may not show that the probe is disabled")
