"""Which shapes can be probed: limits of the server, of the KV cache, and of the probe's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.dispatch import Execution, GraphRules, Placement, place
from vllm_nfp.adapter.server_limits import ServerLimits
from vllm_nfp.probe.graph_cache import GraphRoom
from vllm_nfp.probe.state_room import StateRoom

TABLE_BYTES = 4
"""Of an entry of a block table."""
MOST_TABLES = 1 / 4
"""Of the memory limit, for the block tables of the largest batch."""
GRAPHED_SHAPES = 2
"""Shapes that must have their graphs at the same time: those of a pair."""
_LIMIT = "graph_memory_mib"


@dataclass(frozen=True, slots=True)
class ShapeLimits:
    """The limits that decide which shapes can be probed."""

    server: ServerLimits
    grid: tuple[int, ...]
    """Positions that the settings ask for, ascending."""
    groups: tuple[AttentionGroup, ...]
    rules: GraphRules
    graph_memory_mib: int
    on_gpu: bool
    head_in_graph: bool
    """The LM head is a graph too, which lies in the graphs' memory pool."""
    states: StateRoom | None = None
    """Where layers keep a recurrent state."""
    fewest_blocks: tuple[int, ...] | None = None
    """KV blocks of each group on the rank that has the fewest; None: as the groups say."""

    def cell_refusal(self, batch_size: int, context: int) -> str | None:
        """Why the cell cannot be probed at all; None if at least two positions can be."""
        server = self.server
        if batch_size > server.max_batch_size:
            return f"batch size {batch_size} exceeds --max-num-seqs {server.max_batch_size}"
        if context + 2 > server.max_context:
            return (
                f"context {context} leaves no room for 2 positions in {server.max_context} tokens"
            )
        return (
            self._tables_missing(batch_size)
            or self._blocks_missing(batch_size, context + 2)
            or self._states_missing(batch_size, 2)
            or self._taken_for_a_prompt(2)
        )

    @property
    def table_widths(self) -> list[int]:
        """Columns of each group's block table: as the server's own, up to the longest context."""
        return [-(-self.server.max_context // group.block_tokens) for group in self.groups]

    def holds_tables(self, batch_size: int) -> bool:
        """Whether the block tables of so many sequences leave room for graphs."""
        size = TABLE_BYTES * batch_size * sum(self.table_widths)
        return not self.on_gpu or size <= MOST_TABLES * (self.graph_memory_mib << 20)

    def _tables_missing(self, batch_size: int) -> str | None:
        if self.holds_tables(batch_size):
            return None
        size = TABLE_BYTES * batch_size * sum(self.table_widths)
        return (
            f"block tables of {batch_size} sequences, {size / (1 << 20):.0f} MiB for "
            f"--max-model-len {self.server.max_context}, exceed a quarter of {_LIMIT} "
            f"{self.graph_memory_mib}"
        )

    def _blocks_missing(self, batch_size: int, tokens: int) -> str | None:
        counts = self.fewest_blocks or [group.num_blocks for group in self.groups]
        for group, blocks in zip(self.groups, counts, strict=True):
            needed = group.blocks_needed(batch_size, tokens)
            if needed >= blocks:
                return f"{needed} distinct KV blocks are needed, the cache has {blocks - 1}"
        return None

    def _states_missing(self, batch_size: int, positions: int) -> str | None:
        return None if self.states is None else self.states.missing(batch_size, positions)

    def _taken_for_a_prompt(self, positions: int) -> str | None:
        bounds = (group.bound for group in self.groups if group.bound is not None)
        return next(filter(None, (bound.refusal(positions) for bound in bounds)), None)

    def positions(
        self, batch_size: int, context: int, can_probe: Callable[[int, int], bool]
    ) -> tuple[int, ...]:
        """Position counts of the grid that fit the model, the KV cache, and the limits.

        None without one position, which every pair runs.

        Args:
            can_probe: of (batch size, positions): whether memory allows it.
        """
        fitting = tuple(
            n
            for n in self.grid
            if context + n <= self.server.max_context
            and batch_size * n <= self.server.max_step_tokens
            and self._blocks_missing(batch_size, context + n) is None
            and self._states_missing(batch_size, n) is None
            and self._taken_for_a_prompt(n) is None
            and can_probe(batch_size, n)
        )
        return fitting if fitting[:1] == (1,) else ()

    def placement(self, batch_size: int, positions: int) -> Placement:
        """How serving would launch the shape."""
        return place(self.rules, batch_size, positions)

    def memory_missing(self, batch_size: int, positions: int, room: GraphRoom) -> str | None:
        """Why the memory limit forbids the shape; None if it does not, as far as is known."""
        if not self.on_gpu:
            return None
        placement = self.placement(batch_size, positions)
        logits = self.server.logits_bytes(batch_size * positions)
        if placement.execution is Execution.FULL:
            return self._graph_missing(placement.padded_tokens, logits, room)
        if not self.head_in_graph:
            return self._logits_missing(logits)
        if logits > self.most_logits_bytes:
            # Activations are no larger than those of a prompt, but of a prompt few logits are made.
            return (
                f"logits of {logits >> 20} MiB without a CUDA graph exceed half of {_LIMIT} "
                f"{self.graph_memory_mib}"
            )
        return None

    @property
    def most_logits_bytes(self) -> int:
        """Bytes of logits outside vLLM's own memory: half of the limit."""
        return self.graph_memory_mib << 19

    def _graph_missing(self, tokens: int, logits: int, room: GraphRoom) -> str | None:
        limit = self.graph_memory_mib
        if limit == 0 or (room.capacity is not None and room.capacity < GRAPHED_SHAPES):
            return (
                f"the CUDA graphs of {GRAPHED_SHAPES} shapes, {room.shape_bytes / (1 << 20):.0f} "
                f"MiB each, do not fit {_LIMIT} {limit}"
            )
        if room.largest_tokens is None:  # not learned yet, or any
            return None
        if tokens > room.largest_tokens:
            return (
                f"a step of {tokens} tokens is larger than vLLM's own CUDA graphs, and what it "
                f"takes does not fit {_LIMIT} {limit}"
            )
        if not self.head_in_graph:
            return self._logits_missing(logits)
        if logits > max(room.pool_bytes, self.most_logits_bytes):
            return f"logits of {logits >> 20} MiB exceed what vLLM's graphs and {_LIMIT} hold"
        return None

    def _logits_missing(self, logits: int) -> str | None:
        """With several ranks logits lie outside graphs: they may take what the sampler takes.

        For a full batch it has the logits in parts, put together, and once more in 32 bits; vLLM
        has kept memory back for that, and none of it is in use while a probe runs.
        """
        full_batch = 4 * self.server.logits_bytes(self.server.max_batch_size)
        if 2 * logits > max(full_batch, self.graph_memory_mib << 20):
            return f"logits of {logits >> 20} MiB exceed those of a full batch and half of {_LIMIT}"
        return None
