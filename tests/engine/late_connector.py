"""A KV connector that behaves like NIXL's on a decode worker: blocks arrive between steps.

It stores as vLLM's ExampleConnector does, into files. What it loads, a thread writes into the KV
cache while steps, and probes, go on; the scheduler hears of it when all has arrived.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import (
    ExampleConnector,
    ExampleConnectorMetadata,
    ReqMeta,
)

CALLS: list[str] = []
"""What the worker's connectors of this process were asked for, in order."""
ARRIVED: list[str] = []
"""Requests whose blocks have arrived."""
UNDER_WAY_SECONDS = 0.02
"""For which each layer's blocks hold something else."""


@dataclass
class LateMetadata(ExampleConnectorMetadata):
    loads: list[tuple[str, ReqMeta]] = field(default_factory=list)


class LateConnector(ExampleConnector):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ordered: list[tuple[str, ReqMeta]] = []
        self._done: set[str] = set()

    # The scheduler's side.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        count, _ = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return count, bool(count)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            order = ReqMeta.make_meta(
                list(request.prompt_token_ids)[:-1], blocks.get_block_ids()[0],
                self._block_size, False, [],
            )  # fmt: skip
            self._ordered.append((request.request_id, order))

    def build_connector_meta(self, scheduler_output: Any) -> LateMetadata:
        stores = super().build_connector_meta(scheduler_output)
        ordered, self._ordered = self._ordered, []
        return LateMetadata(stores.requests, ordered)

    # The worker's side.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        layers = forward_context.no_compile_layers
        for request, order in self._get_connector_metadata().loads:
            threading.Thread(target=self._receive, args=(request, order, layers)).start()

    def _receive(self, request: str, order: ReqMeta, layers: dict[str, Any]) -> None:
        blocks, offsets = (
            order.slot_mapping // self._block_size,
            order.slot_mapping % (self._block_size),
        )
        for name, layer in layers.items():
            cache = getattr(layer, "kv_cache", None)
            if cache is None:
                continue
            file = self._generate_filename_debug(name, order.token_ids, [])
            cache[blocks, :, offsets] = torch.randn(1).item()
            time.sleep(UNDER_WAY_SECONDS)
            cache[blocks, :, offsets] = safetensors.torch.load_file(file)["kv_cache"]
        ARRIVED.append(request)
        self._done.add(request)

    def wait_for_layer_load(self, layer_name: str) -> None:
        CALLS.append("wait")

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        CALLS.append("save")
        super().save_kv_layer(*args, **kwargs)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        done, self._done = self._done, set()
        return None, done
