"""Says in a server's log why its engine made no step: stacks, collections, the GPU's allocator.

Set ``NFP_BENCH_STALLS=1`` for a server whose worker extension calls :func:`watch_if_asked`
(:mod:`benchmarks.drafts.extension`, :mod:`benchmarks.verification.extension`). Then its log has

- the stacks of all threads of the worker's process, if 0.25 s after a step no other has begun.
  With one GPU the engine core is in that process. Steps without requests end the wait;
- when the next step begins, a line with the gap, and how often PyTorch's allocator has allocated
  GPU memory or tried again since it was last looked at, a second ago or less before the gap;
- a line for each garbage collection of 50 ms and more.

A server that is stopped (SIGSTOP) with requests left says so too, when it goes on. Each step costs
a microsecond more, and once a second the time of ``torch.cuda.memory_stats``. A thread of Python's
takes the stacks, so they come once the interpreter's lock is free. The watchdog of ``faulthandler``
does not wait for it: two engine cores crashed while it read the frames of a running thread.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

VARIABLE = "NFP_BENCH_STALLS"
GAP_SECONDS = 0.25
"""Far more than a step: 128 requests with 8 drafts took 26 to 37 ms without CUDA graphs (H200,
Qwen3-8B, 12 layers, 2026-11-28)."""
LOOKS_IN_A_GAP = 5
COLLECTION_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""Between two looks at the allocator."""
COUNTERS = ("num_alloc_retries", "num_device_alloc", "num_device_free")
"""Of ``torch.cuda.memory_stats``."""
_STANDARD_ERROR = 2


def allocations() -> dict[str, int]:
    """COUNTERS since the process began; none without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    stats = torch.cuda.memory_stats()
    return {name: int(stats.get(name, 0)) for name in COUNTERS}


class StallWatch:
    """Watches one process.

    Args:
        descriptor: of the file that takes what is seen; standard error is the server's log.
        gap_seconds: after which a step counts as late.
        counters: the allocator's, so far.
    """

    def __init__(
        self,
        descriptor: int = _STANDARD_ERROR,
        gap_seconds: float = GAP_SECONDS,
        counters: Callable[[], Mapping[str, int]] = allocations,
    ) -> None:
        self._descriptor, self._gap, self._counters = descriptor, gap_seconds, counters
        self._begun: float | None = None
        """When the last step with requests began; None: the next one is not waited for."""
        self._told: float | None = None
        """The beginning whose stacks are in the log."""
        self._looked, self._seen = float("-inf"), dict[str, int]()
        self._collecting = 0.0

    def install(self, worker: type) -> None:
        """Watch ``execute_model`` of a class of workers, and this process's collections."""
        original = worker.execute_model  # type: ignore[attr-defined]

        @functools.wraps(original)
        def execute_model(this: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self.step(len(scheduled.num_scheduled_tokens))
            return original(this, scheduled, *args, **kwargs)

        worker.execute_model = execute_model  # type: ignore[attr-defined]
        gc.callbacks.append(self.collection)
        threading.Thread(target=self._wait_for_steps, name="stall-watch", daemon=True).start()
        self._say(f"watches {worker.__name__}: steps {self._gap:g} s apart show all stacks")

    def step(self, requests: int) -> None:
        """A step of so many requests begins."""
        now = time.monotonic()
        if self._begun is not None and now - self._begun > self._gap:
            seconds, grown = now - self._begun, self._look(now)
            late = f"{seconds:.2f} s after the last; {grown}"
            self._say(f"a step of {requests} requests begins {late}")
        elif now - self._looked > LOOK_SECONDS:
            self._look(now)
        self._begun = time.monotonic() if requests else None

    def _wait_for_steps(self) -> None:
        """Write all stacks once for each step that is late; never returns."""
        while True:
            time.sleep(self._gap / LOOKS_IN_A_GAP)
            begun = self._begun
            late = begun is not None and time.monotonic() - begun > self._gap
            if late and begun != self._told:
                self._told = begun
                self._say("no step follows; all stacks:\n" + _stacks())

    def collection(self, phase: str, about: Mapping[str, int]) -> None:
        """What ``gc.callbacks`` calls before and after a collection."""
        if phase == "start":
            self._collecting = time.monotonic()
        elif (seconds := time.monotonic() - self._collecting) >= COLLECTION_SECONDS:
            self._say(f"a collection of generation {about['generation']} took {seconds:.2f} s")

    def _look(self, now: float) -> str:
        before, self._seen, self._looked = self._seen, dict(self._counters()), now
        return ", ".join(
            f"{name} +{count - before.get(name, 0)}" for name, count in self._seen.items()
        ) or "no GPU"  # fmt: skip

    def _say(self, text: str) -> None:
        at = time.strftime("%m-%d %H:%M:%S", time.localtime())
        # One write: lines of other threads and processes do not mix with it.
        os.write(self._descriptor, f"stall_watch {at}.{time.time_ns() % 10**9 // 10**6:03}: "
                                   f"{text}\n".encode())  # fmt: skip


def _stacks() -> str:
    """Of all threads but the one that asks, each with its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def watch_if_asked() -> None:
    """Watch vLLM's workers in this process, if VARIABLE is 1."""
    if os.environ.get(VARIABLE) == "1":
        from vllm.v1.worker.gpu_worker import Worker

        StallWatch().install(Worker)  # the worker for CPUs is one too
