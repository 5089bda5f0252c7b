"""vLLM's ``--worker-extension-cls`` for :mod:`benchmarks.verification.compare`.

It puts :mod:`benchmarks.verification.replay` into a server's runner, and rewrites the server's
table of draft lengths. Its methods are called by ``POST /collective_rpc``, which vLLM offers with
``VLLM_SERVER_DEV_MODE=1``. Imported by workers alone, since it changes two classes of vLLM at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.v1.core.sched.scheduler import Scheduler

from benchmarks.overhead.wake_latency import WAYS
from benchmarks.serving import length_graphs, stall_watch
from benchmarks.serving.traces import read_traces
from benchmarks.verification.host_parts import HostParts, follow_runner
from benchmarks.verification.replay import install, own_costs, substitution
from benchmarks.verification.streams import make_streams


class Scheduled:
    """The engine's scheduler. One GPU's worker is in its process, and is made before it."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        begin = Scheduler.__init__

        def begun(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            begin(scheduler, *args, **kwargs)
            self.scheduler = scheduler

        Scheduler.__init__ = begun

    def hold(self, length: int) -> None:
        """Have this many tokens drafted at each batch size from the next step on.

        Raises:
            RuntimeError: if the worker is not in the engine's process.
        """
        if self.scheduler is None:
            raise RuntimeError("the scheduler is in another process: run on one GPU")
        table = self.scheduler.dynamic_sd_lookup
        table[:] = [length] * len(table)


stall_watch.watch_if_asked()
length_graphs.settle()
# An EAGLE-3 head's own LM head is known by the names of loaded weights, which dummy ones lack.
Eagle3LlamaForCausalLM.has_own_lm_head = True
_SCHEDULED = Scheduled()


class ReplayedDrafts:
    """Methods that vLLM adds to its workers; arguments and answers are JSON."""

    model_runner: Any
    bench_parts: HostParts
    bench_profiler: Any

    def bench_replay(self, settings: str) -> str:
        """Begin: ``{"traces", "streams", "places", "vocabulary"}``."""
        asked: Mapping[str, Any] = json.loads(settings)
        traces, _ = read_traces(Path(asked["traces"]))
        streams = make_streams(traces, asked["streams"], asked["places"], asked["vocabulary"])
        runner = self.model_runner
        with torch.inference_mode():
            install(runner, substitution(runner.req_states, streams, runner.device))
        manager = runner.adaptive_verification
        if manager is None:
            return json.dumps({"adaptive": False})
        return json.dumps({"adaptive": True, "own_costs": own_costs(manager)})

    def bench_time_host(self, _: str) -> str:
        """Time the host's parts of each step from now on."""
        self.bench_parts = follow_runner(self.model_runner)
        return json.dumps({})

    def bench_host_parts(self, _: str) -> str:
        """Their times since the last call."""
        return json.dumps(self.bench_parts.take())

    def bench_wait(self, way: str) -> str:
        """Have the thread that waits for confidences sleep, as vLLM has it, or poll."""
        manager = self.model_runner.adaptive_verification
        torch.accelerator.synchronize()
        events = [torch.cuda.Event(blocking=WAYS[way]) for _ in manager._copy_events]
        for event in events:
            event.record()
            if hasattr(self, "bench_parts"):
                self.bench_parts.follow(event, "synchronize", "wait for confidences")
        manager._copy_events[:] = events
        return json.dumps({})

    def bench_timeline(self, path: str) -> str:
        """Begin to keep what the device does; with a path, end that and write it there."""
        if not path:
            self.bench_profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self.bench_profiler.start()
            return json.dumps({})
        torch.accelerator.synchronize()
        self.bench_profiler.stop()
        self.bench_profiler.export_chrome_trace(path)
        return json.dumps({})

    def bench_draft_length(self, length: str) -> str:
        """Hold a draft length, of those that the server's table names."""
        _SCHEDULED.hold(int(length))
        return json.dumps({})
