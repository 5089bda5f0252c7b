"""Servers whose probes measure NFP tables under load; starts them, loads them, keeps results."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hosts import environment
from benchmarks.hosts.packing import pack
from benchmarks.serving import load, server, shapes
from benchmarks.serving.traffic import Load
from vllm_nfp.start.ports import free_ports
from vllm_nfp.start.process import ProcessError

GIB = 1 << 30
OUTPUT_TOKENS = 400
PUBLISH_SECONDS = 2.5
"""Wait before results are read: the probe publishes every two seconds at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One server."""

    name: str
    shape: str
    layers: int
    kv_gib: float
    """KV cache of each rank; fixed, so that servers can start side by side."""
    probe: Mapping[str, object] | None
    """Settings of the probe; None leaves the probe out."""
    tensor_parallel: int = 1
    expert_parallel: bool = False
    flags: tuple[str, ...] = ()
    """Further flags of vllm serve."""
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: int | None = None
    """Index of the server's only GPU among those that are visible; None for all."""


class Session:
    """Servers that run side by side and are loaded one at a time.

    Args:
        out: directory for results.
        work: directory for models, logs and caches.
        limit_seconds: of everything.
    """

    def __init__(self, out: Path, work: Path, limit_seconds: float) -> None:
        self.out = out
        self.work = work
        self._begun = time.monotonic()
        self._limit = limit_seconds
        self.urls: dict[str, str] = {}
        self.environment: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._begun + self._limit - time.monotonic()

    def say(self, text: str) -> None:
        """Print with the time since the start."""
        print(f"[{time.monotonic() - self._begun:5.0f} s] {text}", flush=True)

    def start(self, stack: ExitStack, plans: Sequence[Plan]) -> None:
        """Start all servers at once; name those that fail and keep their logs."""
        started = [
            (plan, stack.enter_context(self._spec(plan, port).start()))
            for plan, port in zip(plans, free_ports(len(plans)), strict=True)
        ]
        self.environment = environment.record()
        for plan, one in started:
            try:
                one.wait_until_healthy(max(1.0, self.left - 60.0))
                self.urls[plan.name] = one.url
                self.say(f"{plan.name} is up")
            except ProcessError as error:
                self.say(f"{plan.name} FAILED: {error}")
                one.child.stop()  # its GPU memory is for the others
            self.keep_log(plan)

    def _spec(self, plan: Plan, port: int) -> server.Spec:
        extra = {"VLLM_CACHE_ROOT": str(self.work / f"cache-{plan.name}"), **plan.environment}
        if plan.gpu is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
            extra["CUDA_VISIBLE_DEVICES"] = visible[plan.gpu]
        return server.Spec(
            model=shapes.write_model(self.model(plan), plan.shape, plan.layers),
            log=self.work / f"{plan.name}.log",
            port=port,
            flags=(
                "--kv-cache-memory-bytes", str(int(plan.kv_gib * GIB)),
                "--tensor-parallel-size", str(plan.tensor_parallel),
                *(("--enable-expert-parallel",) if plan.expert_parallel else ()),
                "--max-num-seqs", "256", "--max-num-batched-tokens", "2048", *plan.flags,
            ),
            probe=plan.probe,
            output_dir=None if plan.probe is None else self.work / f"probe-{plan.name}",
            extra=extra,
        )  # fmt: skip

    def model(self, plan: Plan) -> Path:
        """The directory of a server's model."""
        return self.work / f"model-{plan.name}"

    def measure(
        self, plan: Plan, phases: Sequence[tuple[int, int]], seconds: float
    ) -> dict[str, Any]:
        """Load a server; its snapshot, which is written as NAME-table.json beside all pairs.

        Args:
            phases: (streams, prompt tokens) of each part of the load.
            seconds: of the whole load.
        """
        for streams, prompt_tokens in phases:
            part = Load(
                self.urls[plan.name], str(self.model(plan)), shapes.vocab_size(plan.shape),
                streams, prompt_tokens, OUTPUT_TOKENS,
                max(1.0, seconds / len(phases) - 1.0), seed=streams,
            )  # fmt: skip
            load.run(part, warmup_seconds=1.0)
        time.sleep(PUBLISH_SECONDS)
        folder = self.work / f"probe-{plan.name}"
        snapshot: dict[str, Any] = json.loads((folder / "engine-0.json").read_text())
        self.write(
            f"{plan.name}-table",
            {
                "shape": plan.shape,
                "layers": plan.layers,
                "tensor_parallel": plan.tensor_parallel,
                "expert_parallel": plan.expert_parallel,
                "flags": plan.flags,
                "environment": self.environment,
                "after": environment.gpu_state(),
                "probe": plan.probe,
                "snapshot": snapshot,
            },
        )
        pack(folder / "samples-0.jsonl", self.out / f"{plan.name}-pairs.jsonl.gz")
        self.keep_log(plan)
        self.say(f"{plan.name}: {snapshot['state']} {snapshot['reason']} {snapshot['probes']}")
        return snapshot

    def write(self, name: str, result: object) -> None:
        """Keep a result."""
        (self.out / f"{name}.json").write_text(json.dumps(result))

    def keep_log(self, plan: Plan) -> None:
        """Keep what a server has logged so far."""
        shutil.copy(self.work / f"{plan.name}.log", self.out / f"{plan.name}-server.log")
