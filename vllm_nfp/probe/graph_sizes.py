"""Finds out, at the start, how large CUDA graphs may be and what they take."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.out_of_memory import is_out_of_memory
from vllm_nfp.probe.cuda_graph import GraphPool
from vllm_nfp.probe.device_memory import DeviceMemory
from vllm_nfp.probe.limits import GRAPHED_SHAPES
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.shapes import PreparedShape, ShapeKey

logger = logging.getLogger("vllm.nfp")


def largest_live_graph(rules: GraphRules, decode_positions: int) -> int:
    """Tokens of vLLM's own largest FULL graph; 0 if it has none.

    Args:
        decode_positions: positions per sequence of a decode step of the server.
    """
    sizes = rules.capture_sizes
    if not rules.full_mixed:
        sizes = tuple(size for size in sizes if size <= rules.max_num_seqs * decode_positions)
    return max(sizes, default=0)


class GraphSizes:
    """Learns what graphs take by capturing the first ones.

    Args:
        preparer: makes shapes ready.
        pool: where graphs lie.
        device: the device's memory.
        give_back: returns what is left in PyTorch's cache, and counts what is not.
        live_tokens: of vLLM's own largest FULL graph.
    """

    def __init__(
        self,
        preparer: Preparer,
        pool: GraphPool,
        device: DeviceMemory,
        give_back: Callable[[], None],
        live_tokens: int,
    ) -> None:
        self._preparer = preparer
        self._captures = preparer.captures
        self._availability = preparer.availability
        self._shapes = preparer.availability.shapes
        self._graphs = preparer.availability.graphs
        self._pool = pool
        self._device = device
        self._give_back = give_back
        self._live_tokens = live_tokens

    def learn(self, keys: list[ShapeKey], time_is_up: Callable[[], bool]) -> None:
        """Find out how many tokens a graph may have, and what the graphs of a shape take.

        Args:
            keys: shapes that need graphs; the first two that fit are captured for it. If they do
                not fit the limit, the next two are: another process may have taken memory during
                the first look, as one that starts on the same GPU does.
        """
        if self._pool.exists:
            free = self._device.largest_free_block(self._pool.place)
            self._graphs.allow(self._live_tokens, free)
        else:
            self._graphs.allow(0)
        self._try_large_graphs(keys, time_is_up)
        fitting = [key for key in keys if self._availability.memory_missing(key) is None]
        first, others = fitting[:GRAPHED_SHAPES], fitting[GRAPHED_SHAPES : 2 * GRAPHED_SHAPES]
        self._capture(first, time_is_up, keep=first)
        if self._do_not_fit and others:
            before = self._graphs.measure_again()
            self._capture(others, time_is_up, keep=first + others)
            self._graphs.settle(before)
        if self._do_not_fit:
            for key in first + others:
                if key in self._graphs:
                    self._graphs.evict(key)

    @property
    def _do_not_fit(self) -> bool:
        capacity = self._graphs.room.capacity
        return capacity is not None and capacity < GRAPHED_SHAPES

    def _capture(
        self, keys: list[ShapeKey], time_is_up: Callable[[], bool], keep: list[ShapeKey]
    ) -> None:
        try:
            for key in keys:
                while not self._shapes.is_complete(key) and not time_is_up():
                    self._preparer.make_piece(key, keep)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("vllm-nfp: no GPU memory for the first CUDA graphs: %s", error)

    def _try_large_graphs(self, keys: list[ShapeKey], time_is_up: Callable[[], bool]) -> None:
        """Allow more tokens than vLLM's graphs have where the limit holds their activations."""
        tried: int | None = None
        for key in sorted(keys, key=lambda key: (-key[0] * key[1], key)):
            size = self._availability.limits.placement(*key).padded_tokens
            if size <= (self._graphs.room.largest_tokens or 0) or time_is_up():
                break
            logits = self._availability.limits.server.logits_bytes(key[0] * key[1])
            if (tried is not None and size > tried // 2) or logits > self._graphs.limit // 2:
                continue
            tried = size
            with self._pool.trial():
                grown = self._try_graph(self._shapes[key])
            if grown is not None:
                self._graphs.allow_growth(size, grown)
                break
        self._give_back()

    def _try_graph(self, shape: PreparedShape) -> int | None:
        """Bytes of activations of a shape's graphs; None if they exceed half of the limit."""
        meter = self._device.meter()
        try:
            self._captures.warm_up(shape, late=False)
            self._give_back()
            grown = meter.track(lambda: self._captures.capture_step(shape)).pool
            grown += meter.track(lambda: self._captures.capture_modules(shape)).pool
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            shape.give_up_graphs()
        return grown if grown <= self._graphs.limit // 2 else None
