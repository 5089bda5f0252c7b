"""Uses the time in which no request is there: the engine's loop then waits at its input queue.

Only where the worker lives in the engine's own process, on the loop's own thread, as it does with
one rank. Elsewhere nothing is hooked, and probes run between steps alone.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Protocol

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet


class Idler(Protocol):
    """What can use idle time: a ``StepObserver``, for one."""

    @property
    def active(self) -> bool:
        """Whether it wants to be called at all."""
        ...

    def idle(self) -> float:
        """Do a little; returns the seconds until the next call."""
        ...


def install(patches: PatchSet, idler: Idler) -> None:
    """Let the engine's loop, once it starts in this process, call the idler while it waits."""
    if not targets.RUN_BUSY_LOOP.is_imported:
        return

    def run_busy_loop(original: Any) -> Any:
        def wrapped(engine: Any, *args: Any, **kwargs: Any) -> Any:
            patches.wrap(targets.QUEUE_GET, lambda get: asking(get, idler), on=engine.input_queue)
            return original(engine, *args, **kwargs)

        return wrapped

    patches.wrap(targets.RUN_BUSY_LOOP, run_busy_loop)


def asking(get: Callable[..., Any], idler: Idler) -> Callable[..., Any]:
    """A queue's ``get`` that calls the idler as long as it would wait without limit.

    A request that comes is returned at once, unless the idler is at work in that moment.
    """

    def asking_get(block: bool = True, timeout: float | None = None) -> Any:
        while block and timeout is None and idler.active:
            try:
                return get(True, idler.idle())
            except queue.Empty:
                continue
        return get(block, timeout)

    return asking_get
