"""vLLM's ``--worker-extension-cls`` that switches a server's hooks on and off while it serves.

Its methods are called on all workers at once, between two steps, by ``POST /collective_rpc``, which
vLLM offers with ``VLLM_SERVER_DEV_MODE=1``. For :mod:`benchmarks.overhead.switched`; imported by
workers alone, since it begins to watch at once what vLLM captures.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from typing import Any

import torch

from benchmarks.overhead.hooks import OFF, Hooks, background_seconds
from benchmarks.overhead.resident import MIB, Growth, StageGrowth, kinds, resident
from vllm_nfp.adapter import idle, presence
from vllm_nfp.adapter.graph_place import CaptureWatch
from vllm_nfp.adapter.patch import PatchSet

OPERATORS_ENV_VAR = "NFP_BENCH_OPERATORS"
"""Set it to 1 to record growth of memory by operator."""


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
    """The extension's state in one worker's process."""

    def __init__(self) -> None:
        # Imported when the worker's class is made: before the warm-up, and before the loop begins.
        self.captures = CaptureWatch().open()
        self.idle = _Idle()
        idle.install(PatchSet(), self.idle)
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

        The answer holds the growth of resident memory by variant.
        """
        from vllm_nfp.config import config_from_mapping

        _WORKER.captures.close()
        _WORKER.before = begun = resident()
        for variant, given in json.loads(settings).items():
            config = config_from_mapping(given)
            _announce(config)
            before, started = resident(), time.monotonic()
            with _WORKER.stages:
                _WORKER.hooks[variant] = Hooks(
                    config,
                    self.vllm_config,
                    self.model_runner,
                    _WORKER.captures.place,
                )
            _WORKER.attached[variant] = {
                "active": _WORKER.hooks[variant].as_asked,
                "seconds": time.monotonic() - started,
                **resident().since(before).summary(),
                "after_trim_mib": _trimmed(before),
            }
        return json.dumps({"before": begun.summary(), **_WORKER.attached})

    def nfp_switch(self, variant: str) -> str:
        """Put one variant's hooks in place and no other's.

        The answer holds the cost of the previous hooks, the resident memory, and the CPU time that
        all threads of the probe have taken so far.
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
        spent = {n: cost for n, cost in costs.items() if cost["steps"] or cost.get("idle_probes")}
        return json.dumps(
            {
                "hooks": spent,
                "resident_mib": kinds().get("VmRSS", 0) / MIB,
                "background_seconds": background_seconds(),
            }
        )

    def nfp_account(self) -> str:
        """The sessions' own account of their cost, and where resident memory grew."""
        return json.dumps(
            {
                "sessions": {name: hooks.account() for name, hooks in _WORKER.hooks.items()},
                "resident": resident().since(_WORKER.before).summary(),
                "attached": _WORKER.attached,
                "stages": _WORKER.stages.summary(),
            }
        )


def _announce(config: Any) -> None:
    """Tell the other ranks of this one's probe, as a server does before its warm-up."""
    if torch.distributed.get_world_size() > 1:
        presence.announce(config)
        torch.distributed.barrier()  # no rank finds the note of the variant before


def _trimmed(before: Growth) -> dict[str, float] | None:
    """Growth in MiB without what the C library holds free; None where it is not glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return None
    grown = resident().since(before).summary()["mib"]
    assert isinstance(grown, dict)
    return grown
