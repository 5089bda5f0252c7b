"""What a server's probe costs, by its own account, and the memory of the server's processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hosts.process_memory import process_mib
from benchmarks.serving import server
from vllm_nfp.results import fetching
from vllm_nfp.start.process import ProcessError


@dataclass(frozen=True, slots=True)
class ProbeCounters:
    """What the probe says of its own cost; it publishes every two seconds or so."""

    overhead_ratio: float | None
    gpu_seconds_total: float | None
    probes_total: Mapping[str, float]
    states: tuple[str, ...]
    delayed_steps_ratio: float | None = None
    startup_seconds: float | None = None
    memory_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)


def require_probe(url: str) -> None:
    """Refuse to measure a probe that has disabled itself: all would be plain servers.

    Raises:
        ProcessError: if the server's probe is off.
    """
    if "disabled" in probe_state(url)["states"]:
        raise ProcessError(f"the probe of {url} is disabled: its log says why")


def probe_state(url: str) -> dict[str, Any]:
    """The probe's own account, from a server's /metrics."""
    return dataclasses.asdict(probe_counters(fetching.fetch(url)))


def probe_counters(metrics: str) -> ProbeCounters:
    """The probe's own account, from a scrape's text; fields are None or empty where it is off."""

    def one(name: str) -> float | None:
        found = server.samples(metrics, name)
        return found[0][1] if found else None

    def by(name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in server.samples(metrics, name)}

    states = by("vllm_nfp_state", "state")
    return ProbeCounters(
        overhead_ratio=one("vllm_nfp_overhead_ratio"),
        gpu_seconds_total=one("vllm_nfp_probe_gpu_seconds_total"),
        probes_total=by("vllm_nfp_probes_total", "outcome"),
        states=tuple(state for state, value in states.items() if value == 1.0),
        delayed_steps_ratio=one("vllm_nfp_delayed_steps_ratio"),
        startup_seconds=one("vllm_nfp_startup_seconds"),
        memory_bytes=by("vllm_nfp_memory_bytes", "kind"),
    )


def resident_mib(leader: int) -> dict[str, float]:
    """Resident memory in MiB of the API server (the leader) and of all others of its group."""
    found = {"api": 0.0, "engine": 0.0}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
            if group == leader:
                part = "api" if int(folder.name) == leader else "engine"
                found[part] += process_mib(folder)
    return found
