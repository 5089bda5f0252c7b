"""Says once in the server's log that there are results, and how to see them."""

from __future__ import annotations

import logging

from vllm_nfp.crossing import usual_epsilon
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import Basis, Module

logger = logging.getLogger("vllm.nfp")


def announce(snapshot: Snapshot) -> None:
    """Log the first answer that rests on a measurement, and the commands that show all."""
    rows = [row for row in snapshot.boundaries if row.module == Module.MODEL]
    if not rows:
        return
    epsilon = usual_epsilon([row.epsilon for row in rows])
    order = tuple(Basis)
    first = min(
        (row for row in rows if row.epsilon == epsilon),
        key=lambda row: (order.index(row.basis), row.batch_size, row.context),
    )
    logger.info(
        "vllm-nfp: first results: %d%s free positions per sequence at B=%d, L=%d within %g %% "
        "(%s). See all: vllm-nfp table http://HOST:PORT; draft lengths: vllm-nfp recommend "
        "http://HOST:PORT",
        first.positions,
        "+" if first.at_limit else "",
        first.batch_size,
        first.context,
        100 * epsilon,
        first.basis,
    )
