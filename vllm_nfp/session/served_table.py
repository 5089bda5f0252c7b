"""Every cell that a server can have."""

from __future__ import annotations

from collections.abc import Callable

from vllm_nfp.adapter.steps import limits_of
from vllm_nfp.results.table import Table, plain_table
from vllm_nfp.session.worker import Worker


def served_table(
    worker: Worker, cached_tokens: float, execution: Callable[[int, int], str]
) -> Table:
    """The cells of the settings within the scheduler's limits and the KV cache.

    Args:
        cached_tokens: that the KV cache holds, of all sequences.
        execution: (batch size, positions) -> how such a step runs.
    """
    config, limits = worker.config, limits_of(worker.vllm_config)

    def holds(batch_size: int, context: int) -> bool:
        tokens = batch_size * (context + 1)
        return batch_size <= limits.sequences and tokens <= cached_tokens

    return plain_table(
        config.batch_sizes,
        config.contexts,
        config.grid,
        int(worker.vllm_config.model_config.max_model_len),
        limits.tokens,
        execution,
        holds,
    )
