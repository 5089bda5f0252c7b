"""Recurrent states of the probe's own, so that its runs write to none of the server's.

Layers with a state find it through their ``kv_cache``. While a probe runs, or is captured, they
have another one, which lies in memory of the probe's. States of different layers lie apart as long
as that memory suffices; see :class:`StateRoom`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.server_limits import server_limits
from vllm_nfp.adapter.state_layers import StateGroup, bound, on_other_states, state_groups
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.state_room import StateRoom

logger = logging.getLogger("vllm.nfp")

NO_DRAFTS = -1
"""What vLLM's builders take for a row that verifies nothing, such as padding."""


class ProbeStates:
    """States for probes, and the metadata that names them.

    Args:
        groups: the server's layers with a state.
        room: for how many states there is memory.
        shapes: (batch size, positions) that may be asked for.

    Raises:
        RuntimeError: if the memory is not there.
    """

    def __init__(
        self,
        groups: Sequence[StateGroup],
        room: StateRoom,
        shapes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        self.groups = tuple(groups)
        self.room = room
        self._device = device
        self._layers = [layer for group in groups for layer in group.layers]
        size = room.wanted_bytes(shapes)
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        self._caches: dict[tuple[int, int], list[Any]] = {}
        self._builders: dict[tuple[int, int], Any] = {}
        self._tables: dict[tuple[int, int, int], torch.Tensor] = {}
        self._verified: dict[tuple[int, int, int], dict[str, torch.Tensor]] = {}
        self._tell(shapes)

    @property
    def held_bytes(self) -> int:
        """Memory of all states."""
        return int(self._memory.numel())

    def numbers(self, batch_size: int, positions: int) -> range:
        """The states that a run writes, by their place in each layer's."""
        return range(1, 1 + batch_size * positions)

    def layers_apart(self, batch_size: int, positions: int) -> int:
        """Layers whose states of this shape are no other layer's."""
        return self.room.layers_apart(batch_size, positions, self.held_bytes)

    @contextmanager
    def lent(self, batch_size: int, positions: int) -> Iterator[None]:
        """Let the server's layers work on the probe's states while the context lasts."""
        caches = self._caches_of(batch_size, positions)
        with on_other_states(self._layers, caches, positions - 1):
            yield

    def metadata(
        self,
        batch_size: int,
        positions: int,
        metadata_class: type,
        common: Mapping[str, Any],
        for_capture: bool,
    ) -> dict[str, Any]:
        """Metadata by layer, as a server of this draft length builds it.

        Args:
            metadata_class: vLLM's CommonAttentionMetadata.
            common: its fields without the block table, padding included.
            for_capture: build what a CUDA graph may keep.
        """
        rows = int(common["num_reqs"])
        table = self._table(batch_size, positions, rows)
        made = metadata_class(**common, block_table_tensor=table)
        result: dict[str, Any] = {}
        for index, group in enumerate(self.groups):
            builder = self._builder(index, positions)
            if for_capture:
                built = builder.build_for_cudagraph_capture(made)
            elif positions == 1:
                built = builder.build(0, made)
            else:
                built = builder.build(0, made, **self._drafts(batch_size, positions, rows))
            result.update(dict.fromkeys(group.layer_names, built))
        return result

    def close(self) -> None:
        """Give up the memory."""
        for kept in (self._caches, self._builders, self._tables, self._verified):
            kept.clear()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _drafts(self, batch_size: int, positions: int, rows: int) -> dict[str, torch.Tensor]:
        """Each sequence begins at its first state, and verifies all its drafts; made once."""
        key = (batch_size, positions, rows)
        if key not in self._verified:
            drafts = torch.full((rows,), NO_DRAFTS, dtype=torch.int32)
            drafts[:batch_size] = positions - 1
            ones = torch.ones(rows, dtype=torch.int32, device=self._device)
            self._verified[key] = {
                "num_accepted_tokens": ones,
                "num_decode_draft_tokens_cpu": drafts,
            }
        return self._verified[key]

    def _builder(self, group: int, positions: int) -> Any:
        """One for each number of positions: graphs keep the buffers that it fills."""
        key = (group, positions)
        if key not in self._builders:
            self._builders[key] = self.groups[group].builder(positions)
        return self._builders[key]

    def _table(self, batch_size: int, positions: int, rows: int) -> torch.Tensor:
        """Which states each sequence has, [rows, positions]; those of padding are null."""
        key = (batch_size, positions, rows)
        if key not in self._tables:
            table = torch.zeros((rows, positions), dtype=torch.int32, device=self._device)
            numbers = self.numbers(batch_size, positions)
            own = torch.arange(numbers.start, numbers.stop, dtype=torch.int32, device=self._device)
            table[:batch_size] = own.view(batch_size, positions)
            self._tables[key] = table
        return self._tables[key]

    def _caches_of(self, batch_size: int, positions: int) -> list[Any]:
        """What stands in for each layer's ``kv_cache``; made once."""
        key = (batch_size, positions)
        if key not in self._caches:
            page = self.room.page_bytes(positions)
            size = self.room.layer_bytes(batch_size, positions)
            apart = self.layers_apart(batch_size, positions)
            self._caches[key] = [
                bound(
                    layer,
                    self._memory[place * size : (place + 1) * size].view(-1, 1, 1, page),
                    positions - 1,
                )
                for place, layer in ((i % apart, layer) for i, layer in enumerate(self._layers))
            ]
        return self._caches[key]

    def _tell(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Say what the states take, and how many of them there are."""
        room = self.room
        held = [shape for shape in shapes if room.missing(*shape) is None]
        kinds = ", ".join(dict.fromkeys(group.kind for group in self.groups))
        least = min((self.layers_apart(*shape) for shape in held), default=0)
        logger.info(
            "vllm-nfp: %.0f MiB for recurrent states of the probe's own (%s; state_memory_mib %d): "
            "%.2f MiB for each position of a layer; %d of %d shapes fit, and %d of %d layers have "
            "states of their own in the largest",
            self.held_bytes / (1 << 20),
            kinds,
            room.limit_mib,
            room.page_bytes(1) / (1 << 20),
            len(held),
            len(shapes),
            least,
            room.layers,
        )


def states_of(view: RunnerView, config: ProbeConfig) -> ProbeStates | None:
    """States for probes, if the model's layers keep any.

    Raises:
        UnknownVllmError: naming a kind of state that a probe does not know.
        RuntimeError: if the memory is not there.
    """
    runner, vllm_config = view.runner, view.vllm_config
    num_blocks = runner.kv_cache_config.num_blocks
    groups = state_groups(runner.attn_groups, num_blocks, vllm_config, view.device)
    if not groups:
        return None
    first, second = (max(group.state_bytes(n) for group in groups) for n in (1, 2))
    layers = sum(len(group.layers) for group in groups)
    room = StateRoom(config.state_memory_mib, layers, first, second - first)
    server = server_limits(vllm_config)
    shapes = [
        (b, n)
        for b in config.batch_sizes
        for n in config.grid
        if b <= server.max_batch_size and b * n <= server.max_step_tokens
    ]
    return ProbeStates(groups, room, shapes, view.device)
