"""What :mod:`benchmarks.verification.compare` keeps of a server's /metrics."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.serving.server import Sample, all_samples

COUNTERS = (
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm_nfp_verification_scheduled_drafts_total",
    "vllm_nfp_verification_admitted_drafts_total",
    "vllm_nfp_verification_steps_total",
)
"""What is kept as the difference over a load."""
OURS = "vllm_nfp_"
STEP_SECONDS = "vllm_nfp_verification_step_seconds"
MEASURED_COSTS = "vllm_nfp_verification_measured_costs"


def counters(metrics: str) -> dict[str, float]:
    """Those of COUNTERS that a server has, by name and what distinguishes its samples."""
    return _counters(all_samples(metrics))


def _counters(samples: Mapping[str, list[Sample]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in COUNTERS:
        for labels, value in samples[name]:
            costs = f":{labels['costs']}" if "costs" in labels else ""
            found[name + costs] = found.get(name + costs, 0.0) + value
    return found


def verification(metrics: str) -> dict[str, Any]:
    """What a server with the probe says of its adaptive verification; empty of others.

    Counts are totals since the start. The server publishes every 2 s, so that the difference over a
    load lacks steps, and totals show which load has them.
    """
    samples = all_samples(metrics)
    told = [(labels["reason"], value) for labels, value in samples[MEASURED_COSTS]]
    if not told:
        return {}
    (reason, value), *_ = told
    seconds = {labels["source"]: value for labels, value in samples[STEP_SECONDS]}
    totals = {name: n for name, n in _counters(samples).items() if name.startswith(OURS)}
    return {"measured_costs": value, "reason": reason, "step_seconds": seconds, "totals": totals}


def keep(metrics: str, path: Path) -> None:
    """Write the probe's lines, compressed; nothing where there are none."""
    lines = [line for line in metrics.splitlines(keepends=True) if line.startswith(OURS)]
    if lines:
        path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
