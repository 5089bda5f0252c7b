"""Ranks that probe together: the capture of graphs on all of them, and a wire between them.

The wire is a process group of the probe's own, on the hosts' network (gloo) and in threads of its
own. vLLM's groups stay in the order in which vLLM uses them, and a busy GPU delays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch

from vllm_nfp.adapter.out_of_memory import is_out_of_memory

EXCHANGE_LIMIT = timedelta(seconds=120)
"""A rank that is silent for this long is gone, and the server with it."""
MOST_CAPTURED_COLLECTIVES = 24_000
"""vLLM's custom all-reduce has room for 65 536 in captured graphs; most are left to the server."""


class Ranks(Protocol):
    """The ranks that run a probe together."""

    @property
    def alone(self) -> bool:
        """Whether this is the only one."""
        ...

    def all(self, possible: bool, topic: str) -> bool:
        """Whether all ranks can; each asks at the same point of its start."""
        ...

    def least(self, value: int, topic: str) -> int:
        """The smallest of all ranks' values; each asks at the same point of its start."""
        ...

    def capturing(self, stream: Any) -> Any:
        """A context around the capture of one graph on the stream."""
        ...


class Alone:
    """One rank."""

    alone = True

    def all(self, possible: bool, topic: str) -> bool:
        """What it can itself."""
        return possible

    def least(self, value: int, topic: str) -> int:
        """Its own."""
        return value

    @contextmanager
    def capturing(self, stream: Any) -> Iterator[None]:
        """Make the stream the current one."""
        with torch.cuda.stream(stream):
            yield


class SeveralRanks:
    """The tensor-parallel ranks of one engine, or of all engines that take their steps together.

    Args:
        agree: whether all ranks can do what is asked; see :meth:`Ranks.all`. Raises where another
            rank has a fault, or asks something else.
        least: see :meth:`Ranks.least`; raises as ``agree`` does.
    """

    alone = False

    def __init__(
        self, agree: Callable[[bool, str], bool], least: Callable[[int, str], int]
    ) -> None:
        self._agree = agree
        self._least = least
        self._captured = 0

    def all(self, possible: bool, topic: str) -> bool:
        """Whether all ranks can."""
        return self._agree(possible, topic)

    def least(self, value: int, topic: str) -> int:
        """The smallest of all ranks' values."""
        return self._least(value, topic)

    @contextmanager
    def capturing(self, stream: Any) -> Iterator[None]:
        """vLLM's own capture context, with its end agreed on.

        At its end the custom all-reduce tells the other ranks the addresses that the graph reads,
        which must be equally many on all. So the ranks first agree that each has captured. If one
        has not, none tells any.

        Raises:
            CaptureEndedError: on all ranks, if one has run out of memory or of room for the
                addresses; no graph can be captured from then on.
        """
        from vllm.distributed.parallel_state import (
            GraphCaptureContext,
            get_dp_group,
            get_tp_group,
        )

        group, engines = get_tp_group(), get_dp_group()
        custom: Any = getattr(group.device_communicator, "ca_comm", None)
        registers = custom is not None and not custom.disabled
        failure: Exception | None = None
        try:
            context = GraphCaptureContext(stream)
            with group.graph_capture(context), engines.graph_capture(context):
                try:
                    yield
                except Exception as error:
                    failure = error
                try:
                    self._agree_on_capture(failure, custom if registers else None)
                except Exception:
                    if registers:
                        custom.disabled = True  # its exit then tells nothing
                    raise
        finally:
            if registers:
                custom.disabled = False

    def _agree_on_capture(self, failure: Exception | None, custom: Any) -> None:
        out_of_memory = isinstance(failure, RuntimeError) and is_out_of_memory(failure)
        if failure is not None and not out_of_memory:
            raise failure
        added = 0 if custom is None or failure else _captured_collectives(custom)
        fits = failure is None and self._captured + added <= MOST_CAPTURED_COLLECTIVES
        if not self._agree(fits, "is the graph captured"):
            # The addresses of this capture stay behind in the custom all-reduce, so that no
            # later one may be told to the others.
            raise CaptureEndedError("a rank has no room for another CUDA graph") from failure
        self._captured += added


class CaptureEndedError(torch.OutOfMemoryError):  # type: ignore[misc]
    """A rank had no room for a graph; no further one may be captured."""


def _captured_collectives(custom: Any) -> int:
    """Collectives in graphs captured since the last that were told to the other ranks."""
    from vllm import _custom_ops

    _, offsets = _custom_ops.get_graph_buffer_ipc_meta(custom._ptr)
    return len(offsets)


class GlooWire:
    """Exchanges over a process group of the probe's own; made on all ranks at the same point.

    Its methods raise RuntimeError if another rank cannot be reached.

    Args:
        ranks: global ranks of the group's members.

    Raises:
        RuntimeError: if the group cannot be made within :data:`EXCHANGE_LIMIT`.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self._group = torch.distributed.new_group(
            list(ranks),
            timeout=EXCHANGE_LIMIT,
            backend="gloo",
            use_local_synchronization=True,
            group_desc="vllm-nfp",
        )
        self.rank = torch.distributed.get_rank(self._group)
        self.size = len(ranks)

    def begin(self, values: Sequence[int]) -> Any:
        """Put in this rank's values; waits for nothing."""
        # Steps run in inference mode, whose tensors gloo's threads may not write.
        with torch.inference_mode(False):
            numbers = torch.tensor(values, dtype=torch.int64)
            work = torch.distributed.all_reduce(
                numbers, torch.distributed.ReduceOp.MAX, self._group, async_op=True
            )
        return work, numbers

    def finish(self, handle: Any) -> Sequence[int]:
        """The maxima, once all ranks have put their values in."""
        work, numbers = handle
        work.wait()
        result: list[int] = numbers.tolist()
        return result


def tensor_wire() -> GlooWire:
    """A wire to the other tensor-parallel ranks; each calls this at the same point."""
    from vllm.distributed.parallel_state import get_tp_group

    return GlooWire(get_tp_group().ranks)


def world_wire() -> GlooWire:
    """A wire to all ranks of all engines that take their steps together; each calls this.

    With experts vLLM makes one world of them (``init_distributed_environment``).
    """
    from vllm.distributed.parallel_state import get_world_group

    return GlooWire(get_world_group().ranks)
