"""Installs the probe's hooks in a running engine and removes them, to compare the two.

Servers that run side by side differ by more than the probe costs, and so do two minutes of one
host. So one engine serves all variants in turns: without hooks (``off``), with hooks
that time real steps (``passive``), with the probe at its defaults (``active``), with one that
delays many more steps (``raised``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.overhead.pauses import pause_by
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.types import State

OFF = "off"
THREADS, CONTROL_THREAD = "nfp-", "nfp-draft-control"
"""The names of the package's threads begin with the first; the draft control's has the second."""
LONG_SECONDS = 1e-3
"""A call of a hook that takes longer ran or prepared a probe, or waited for the interpreter."""


class Parking:
    """Pauses of :mod:`vllm_nfp.give_way` in which threads rest whose session's hooks are off.

    A thread finishes in many pieces what it has begun, with pauses between them. Without this it
    would go on in turns without hooks, in which no session says that a prompt's step is launched,
    for which it would wait.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def park_while_unset(self, gate: threading.Event) -> None:
        """Let this thread rest at its next pause until the event is set."""
        self._mine.gate = gate

    def sleep(self, seconds: float) -> None:
        """A pause; of a thread that is parked, it ends with the parking."""
        gate: threading.Event | None = getattr(self._mine, "gate", None)
        if gate is not None:
            gate.wait()
        time.sleep(seconds)


_PARKING = Parking()


def background_seconds() -> float:
    """CPU time of the probe's threads of this process, those of all sessions together.

    The draft control's thread is none of them: it is the engine core's.
    """
    return thread_seconds(THREADS) - thread_seconds(CONTROL_THREAD)


def thread_seconds(begins: str) -> float:
    """CPU time of the threads of this process whose names begin so.

    It bounds the time for which they held the interpreter, without what they waited for it.
    """
    found = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith(begins) and thread.ident is not None:
            found += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return found


class Hooks:
    """A session whose hooks, and whose publishing, can be switched on and off.

    On a rank that takes no part (passive timing is the first rank's alone) switching does nothing.

    Args:
        config: settings of the probe.
        vllm_config: the engine's configuration.
        runner: its model runner.
        place: memory pool and stream of its CUDA graphs.
    """

    def __init__(self, config: Any, vllm_config: Any, runner: Any, place: Any) -> None:
        from vllm_nfp.adapter.patch import PatchSet
        from vllm_nfp.session import open_session

        self._config = config
        self._runner = runner
        self._patches = PatchSet()
        self._on = threading.Event()
        self._seconds: dict[str, list[float]] = {"before_step": [], "after_step": []}
        """Of each call of the hooks since :meth:`take_cost`."""
        self._counted: Mapping[str, float] = {}
        self.session = session = open_session(config, vllm_config, time.monotonic())
        session.after_warm_up(runner, place, self._patches.restore)
        publisher: Any = self._publisher
        if publisher is not None:
            publisher._work = self._while_on(publisher._work)
        hooks: Any = session
        before, after = session.before_step, session.after_step
        hooks.before_step = lambda output: self._timed("before_step", before, output)
        hooks.after_step = lambda: self._timed("after_step", after)

    def _while_on(self, work: Callable[..., None]) -> Callable[..., None]:
        """Its work while the hooks are on; what it has begun rests while they are off."""
        pause_by(_PARKING.sleep)

        def parked(*how: Any, **more: Any) -> None:
            _PARKING.park_while_unset(self._on)
            if self._on.is_set():
                work(*how, **more)

        return parked

    @property
    def _publisher(self) -> Any:
        """None on a rank that does not publish."""
        started = self.session._started
        return None if started is None or started.lead is None else started.lead.publisher

    @property
    def active(self) -> bool:
        """Whether the session takes part at all."""
        return self.session.active

    @property
    def as_asked(self) -> bool:
        """Whether it takes part, and probes where it should; the first rank alone knows."""
        probes = self._config.passive or self.account().get("state") != State.PASSIVE
        return self.active and probes

    def _timed(self, name: str, call: Callable[..., None], *arguments: Any) -> None:
        begun = time.perf_counter()
        call(*arguments)
        self._seconds[name].append(time.perf_counter() - begun)

    def switch(self, on: bool) -> None:
        """Put the hooks in place, or take them away."""
        if on == self._on.is_set() or not self.active:
            return
        if on:
            from vllm_nfp.adapter.hooks import hook_runner

            hook_runner(self._patches, self._runner, self.session)
            self._on.set()
        else:
            self._on.clear()
            self._patches.restore()

    def take_cost(self) -> dict[str, Any]:
        """What the hooks have taken the host since the last call, a step of the engine each."""
        calls = {name: sorted(found) for name, found in self._seconds.items() if found}
        long = [one for found in calls.values() for one in found if one > LONG_SECONDS]
        self._seconds = {name: [] for name in self._seconds}
        before, self._counted = self._counted, self._counts()
        return {
            **{name: now - before.get(name, 0) for name, now in self._counted.items()},
            "seconds": sum(map(sum, calls.values())),
            "long_seconds": sum(long),
            "long_calls": len(long),
            "steps": max(map(len, calls.values()), default=0),
            "median_us": {n: round(1e6 * found[len(found) // 2], 1) for n, found in calls.items()},
        }

    def _counts(self) -> dict[str, float]:
        """Decode steps, those that a probe delayed, and probes, since the start."""
        started = self.session._started
        watcher = None if started is None or started.lead is None else started.lead.watcher
        if not isinstance(watcher, Prober):
            return {}
        counted = watcher.counters()
        return {
            "decode_steps": watcher.budget.decode_steps,
            "delayed_steps": watcher.budget.probed_steps,
            "probe_seconds": counted.probe_seconds,
            "idle_probes": counted.probes["idle"],
            "idle_probe_seconds": counted.idle_probe_seconds,
        }

    def account(self) -> dict[str, Any]:
        """What the probe says of its own cost; empty on a rank that does not publish."""
        publisher = self._publisher
        if publisher is None:
            return {}
        snapshot = publisher.full_snapshot()
        return {
            "state": snapshot.state,
            "probes": dict(snapshot.probes),
            "overhead_ratio": snapshot.overhead_ratio,
            "delayed_steps_ratio": snapshot.step_ratio,
            "startup_seconds": snapshot.startup_seconds,
            "gpu_bytes": snapshot.graph_bytes,
            "host_bytes": snapshot.host_bytes,
            "missing_pairs": snapshot.missing_pairs,
        }


def require_active(answers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to measure a probe that did not attach, or that is passive and should probe.

    Raises:
        RuntimeError: naming the variant.
    """
    for variant, found in answers[0].items():
        if variant != "before" and not found["active"]:
            raise RuntimeError(
                f"the session of {variant!r} did not attach as asked; see the server's log"
            )
