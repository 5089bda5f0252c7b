"""Uses the time in which no request is there: the engine's loop then waits at its input queue.

Only where the worker lives in the engine's own process, on the loop's own thread, as it does with
one rank; elsewhere nothing is hooked, and probes run between steps alone.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from typing import Any, Protocol

from vllm_nfp.adapter.patch import PatchSet

_CORE = "vllm.v1.engine.core"


class IdleSession(Protocol):
    """What is asked while nothing else is to do."""

    @property
    def active(self) -> bool:
        """Whether it wants to be asked at all."""
        ...

    def idle(self) -> float:
        """Do a little; seconds until it wants to be asked again."""
        ...


def install(session: IdleSession) -> None:
    """Let the engine's loop, once it starts in this process, ask the session while it waits."""
    core = sys.modules.get(_CORE)
    if core is None:
        return

    def run_busy_loop(original: Any) -> Any:
        def wrapped(engine: Any, *args: Any, **kwargs: Any) -> Any:
            PatchSet().wrap(engine.input_queue, "get", lambda get: asking(get, session))
            return original(engine, *args, **kwargs)

        return wrapped

    PatchSet().wrap(core.EngineCoreProc, "run_busy_loop", run_busy_loop)


def asking(get: Callable[..., Any], session: IdleSession) -> Callable[..., Any]:
    """A queue's ``get`` that asks the session as long as it would wait without limit.

    A request that comes is returned at once, unless the session is at work in that moment.
    """

    def asking_get(block: bool = True, timeout: float | None = None) -> Any:
        while block and timeout is None and session.active:
            try:
                return get(True, session.idle())
            except queue.Empty:
                continue
        return get(block, timeout)

    return asking_get
