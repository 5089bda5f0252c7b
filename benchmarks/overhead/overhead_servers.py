"""The servers of ``overhead``: they differ only in the probe, and run one at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hosts import environment
from benchmarks.overhead.overhead_summary import VARIANTS
from benchmarks.serving import server
from benchmarks.serving.saturation import Traffic
from vllm_nfp.start.ports import free_ports
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import Server

ENDING_SECONDS = 40.0
"""Kept back for the end: figures of memory, and servers that take their time to end."""


@dataclass(frozen=True, slots=True)
class Settings(Traffic):
    """What is compared, and how long."""

    shares: tuple[float, ...]
    rounds: int
    seconds: float
    warmup_seconds: float
    probe: Mapping[str, object]
    """Further settings of both probes; for trials on a CPU."""
    flags: tuple[str, ...]
    limit_seconds: float

    @property
    def name(self) -> str:
        """Stem of the output files."""
        return f"overhead-{self.shape}"


@contextlib.contextmanager
def awake(one: Server) -> Iterator[Server]:
    """Let a server that is paused run until the block ends."""
    one.child.resume()
    try:
        yield one
    finally:
        one.child.pause()


def specs(settings: Settings, model: Path, out: Path) -> dict[str, server.Spec]:
    """The servers, which differ only in the probe."""
    ports = free_ports(len(VARIANTS))
    return {
        variant: server.Spec(
            model,
            out / f"{settings.name}-{variant}.log",
            port,
            settings.flags,
            None if probe is None else {**settings.probe, **probe},
            # Side by side, they must not write the same compile cache.
            extra={"VLLM_CACHE_ROOT": str(model.parent / f"cache-{variant}")},
        )
        for (variant, probe), port in zip(VARIANTS.items(), ports, strict=True)
    }


def wait_for_all(servers: Mapping[str, Server], deadline: float) -> dict[str, float]:
    """Seconds that each server took to answer.

    Raises:
        ProcessError: if one ends, or does not answer in time.
    """
    began, seconds = time.monotonic(), dict[str, float]()
    while len(seconds) < len(servers):
        for variant, one in servers.items():
            if variant not in seconds and one.is_healthy():
                seconds[variant] = time.monotonic() - began
        if time.monotonic() > deadline:
            missing = sorted(set(servers) - set(seconds))
            raise ProcessError(f"servers {missing} did not answer in time")
        time.sleep(0.1)
    return seconds


def gpu_used_mib() -> float | None:
    """Memory in use on the GPU; None without one."""
    state = environment.gpu_state()
    return None if state is None else float(state["memory.used"].split()[0])
