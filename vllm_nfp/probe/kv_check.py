"""The check at the start that probes change no byte of the KV cache."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch

from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.config import ProbeConfig
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.kv_proof import KvCacheWrittenError
from vllm_nfp.probe.kv_sums import checksum
from vllm_nfp.probe.launcher import Launcher
from vllm_nfp.probe.runtime import Runtime
from vllm_nfp.probe.shapes import ShapeKey
from vllm_nfp.types import Shape, ShapeRefusedError, Timing


class KvCacheCheck:
    """Sums the whole KV cache up before and after the runs of the start.

    Args:
        config: the smallest cell is the first of its batch sizes and contexts.
        caches: finds the tensors of the KV cache.
        runtime: what runs are made with.
        availability: which shapes can be probed.
        launcher: runs them.
    """

    def __init__(
        self,
        config: ProbeConfig,
        caches: Callable[[], Iterable[torch.Tensor]],
        runtime: Runtime,
        availability: Availability,
        launcher: Launcher,
    ) -> None:
        self._config = config
        self._caches = caches
        self._forward = runtime.forward
        self._ranks = runtime.ranks
        self._availability = availability
        self._shapes = availability.shapes
        self._launcher = launcher
        self._before: bytes | None = None

    def run(self) -> None:
        """Prove that probes change no byte of the KV cache; before shapes are prepared, and after.

        The first call sums the whole cache up, and runs the smallest cell without graphs. The
        second runs the smallest and the largest shape of each kind of execution that is ready,
        graphs among them, and sums the whole cache up again: all runs of the start lie between.

        Raises:
            KvCacheWrittenError: if one did.
            ShapeRefusedError: if the smallest cell cannot be run on every rank.
        """
        if self._before is None:
            self._before = self.checksum()
            self._run_smallest_cell()
            return
        with self._forward.slots_of_a_step():
            for shape in self._ready_shapes():
                possible = self._ranks.alone or self._launcher.can_launch(shape)
                if self._ranks.all(possible, f"proof of {shape}"):
                    with suppress(ShapeRefusedError):
                        self._run_now(shape)
        if self.checksum() != self._before:
            raise KvCacheWrittenError("a probe at the start")

    def checksum(self) -> bytes:
        """Of the whole KV cache; waits for the device.

        Raises:
            UnknownVllmError: if no cache is found.
        """
        caches = list(self._caches())
        if not caches:
            raise UnknownVllmError("the layers of this vLLM have no kv_cache to be looked at")
        return checksum(caches)

    def _run_smallest_cell(self) -> None:
        b, context = self._config.batch_sizes[0], self._config.contexts[0]
        possible_here = self._availability.refusal(b, context) is None
        counts = self._availability.positions(b, context) if possible_here else ()
        for n in dict.fromkeys((*counts[:1], *counts[-1:])):
            shape = Shape(b, context, n)
            possible = self._ranks.alone or self._launcher.can_launch(shape)
            if not self._ranks.all(possible, "can the KV cache be checked"):
                raise ShapeRefusedError(f"{shape} cannot run on every rank")
            self._run_now(shape)
            prepared = self._shapes[b, n]
            prepared.warm = not prepared.full  # a capture takes other kernels

    def _ready_shapes(self) -> list[Shape]:
        """The smallest and the largest shape of each kind of execution, of those that are ready."""
        kinds: dict[Execution, list[ShapeKey]] = defaultdict(list)
        for key in self._shapes:
            if self._shapes.is_complete(key):
                kinds[self._shapes[key].batch.placement.execution].append(key)
        extremes = [key for _, keys in sorted(kinds.items()) for key in (min(keys), max(keys))]
        return [
            Shape(b, contexts[0], n)
            for b, n in dict.fromkeys(extremes)
            if (contexts := [c for c in self._config.contexts if self._availability.holds(b, c, n)])
        ]

    def _run_now(self, shape: Shape) -> None:
        """Launch and wait; for the start only."""
        ticket = self._launcher.launch(shape)
        wait_for(lambda: self._launcher.poll(ticket))


def wait_for(poll: Callable[[], Timing | None], limit_seconds: float = 60.0) -> Timing:
    """Poll until there is a timing; for the start only, where nobody waits.

    Raises:
        TimeoutError: if the device does not get there.
    """
    deadline = time.monotonic() + limit_seconds
    while (timing := poll()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"a probe did not finish within {limit_seconds:g} s")
        time.sleep(0.0005)
    return timing
