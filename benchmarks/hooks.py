"""Puts the probe's hooks into a running engine and takes them away again, to compare the two.

Servers that are started one beside the other differ by more than the probe costs, and so do two
minutes of one host. So one engine serves all variants in turns: without hooks (``off``), with hooks
that time real steps (``passive``), with the probe at its defaults (``active``).

:class:`Hooks` is for an engine in this process. :class:`SwitchedHooks` is vLLM's
``--worker-extension-cls`` for a server: its methods are called on all workers at once, between two
steps, by ``POST /collective_rpc``.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.resident import MIB, Growth, StageGrowth, kinds, resident
from vllm_nfp.engine import idle
from vllm_nfp.engine.graph_place import CaptureWatch

OFF = "off"
OPERATORS_ENV_VAR = "NFP_BENCH_OPERATORS"
"""Set it to 1 to have growth of memory told by operator."""
EXTENSION = "benchmarks.hooks.SwitchedHooks"


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
        from vllm_nfp.engine.rank_session import session_for

        self._runner = runner
        self._on = False
        self._seconds: dict[str, list[float]] = {"step": [], "begin": [], "end": []}
        """Of each call of the hooks since :meth:`take_cost`."""
        self.session = session = session_for(config, vllm_config)
        session.attach(runner, place)
        publisher: Any = session._publisher
        if publisher is not None:
            publish = publisher._publish
            # Its thread goes on; what it does is left out while the hooks are off.
            publisher._publish = lambda: publish() if self._on else None
        hooks: Any = session
        step, mark = session.step, session.mark
        hooks.step = lambda output: self._timed("step", step, output)
        hooks.mark = lambda begin: self._timed("begin" if begin else "end", mark, begin)

    @property
    def active(self) -> bool:
        """Whether the session takes part at all."""
        return self.session.active

    def _timed(self, name: str, call: Callable[[Any], None], argument: Any) -> None:
        begun = time.perf_counter()
        call(argument)
        self._seconds[name].append(time.perf_counter() - begun)

    def switch(self, on: bool) -> None:
        """Put the hooks in place, or take them away."""
        if on == self._on or not self.active:
            return
        self._on = on
        if on:
            from vllm_nfp.engine.worker_hook import _hook_runner

            _hook_runner(self._runner, self.session)
        else:
            self.session.on_disable()

    def take_cost(self) -> dict[str, Any]:
        """What the hooks have taken the host since the last call, a step of the engine each."""
        calls = {name: sorted(found) for name, found in self._seconds.items() if found}
        self._seconds = {name: [] for name in self._seconds}
        return {
            "seconds": sum(map(sum, calls.values())),
            "steps": max(map(len, calls.values()), default=0),
            "median_us": {n: round(1e6 * found[len(found) // 2], 1) for n, found in calls.items()},
        }

    def account(self) -> dict[str, Any]:
        """What the probe says of its own cost; empty on a rank that does not publish."""
        publisher: Any = self.session._publisher
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


class _Idle:
    """Lets the engine's loop ask whichever session is switched on."""

    def __init__(self) -> None:
        self.session: Any = None

    @property
    def active(self) -> bool:
        """Whether a session is on."""
        return self.session is not None and bool(self.session.active)

    def idle(self) -> float:
        """Seconds until the next call."""
        return float(self.session.idle())


class _Worker:
    """What the extension knows in one worker's process."""

    def __init__(self) -> None:
        # Imported when the worker's class is made: before the warm-up, and before the loop begins.
        self.captures = CaptureWatch().open()
        self.idle = _Idle()
        idle.install(self.idle)
        self.hooks: dict[str, Hooks] = {}
        self.stages = StageGrowth(operators=os.environ.get(OPERATORS_ENV_VAR) == "1")
        self.attached: dict[str, Any] = {}
        self.before = Growth({}, {})


_WORKER = _Worker()


class SwitchedHooks:
    """Methods that vLLM adds to its workers; arguments and answers are JSON."""

    vllm_config: Any
    model_runner: Any

    def nfp_attach(self, settings: str) -> str:
        """Attach a session for each variant, ``{variant: settings of the probe}``; hooks stay off.

        The answer tells by how much resident memory has grown, by variant.
        """
        from vllm_nfp.config import config_from_mapping

        _WORKER.captures.close()
        _WORKER.before = begun = resident()
        for variant, given in json.loads(settings).items():
            before, started = resident(), time.monotonic()
            with _WORKER.stages:
                _WORKER.hooks[variant] = Hooks(
                    config_from_mapping(given),
                    self.vllm_config,
                    self.model_runner,
                    _WORKER.captures.place,
                )
            _WORKER.attached[variant] = {
                "active": _WORKER.hooks[variant].active,
                "seconds": time.monotonic() - started,
                **resident().since(before).summary(),
                "after_trim_mib": _trimmed(before),
            }
        return json.dumps({"before": begun.summary(), **_WORKER.attached})

    def nfp_switch(self, variant: str) -> str:
        """Put one variant's hooks in place and no other's.

        The answer tells what the hooks before it have cost, and how much is resident by now.
        """
        costs = {}
        for name, hooks in _WORKER.hooks.items():
            if name != variant:
                hooks.switch(False)
                costs[name] = hooks.take_cost()
        _WORKER.idle.session = None
        if variant != OFF:
            chosen = _WORKER.hooks[variant]
            chosen.switch(True)
            _WORKER.idle.session = chosen.session
        spent = {name: cost for name, cost in costs.items() if cost["steps"]}
        return json.dumps({"hooks": spent, "resident_mib": kinds().get("VmRSS", 0) / MIB})

    def nfp_account(self) -> str:
        """What the sessions say of their cost, and where resident memory grew."""
        return json.dumps(
            {
                "sessions": {name: hooks.account() for name, hooks in _WORKER.hooks.items()},
                "resident": resident().since(_WORKER.before).summary(),
                "attached": _WORKER.attached,
                "stages": _WORKER.stages.summary(),
            }
        )


def _trimmed(before: Growth) -> dict[str, float] | None:
    """Growth in MiB without what the C library holds free; None where it is not glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return None
    grown = resident().since(before).summary()["mib"]
    assert isinstance(grown, dict)
    return grown


def require_active(answers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to measure a probe that did not attach.

    Raises:
        RuntimeError: naming the variant.
    """
    for variant, found in answers[0].items():
        if variant != "before" and not found["active"]:
            raise RuntimeError(f"the session of {variant!r} did not attach; see the server's log")
