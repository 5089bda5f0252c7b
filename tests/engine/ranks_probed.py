"""What a server with several ranks must show: it is probed on all, and no output changes."""

from __future__ import annotations

import json
import urllib.request

from serving import Running, wait_for

from vllm_nfp.results import scrape

EXTENSION = "rank_extension.ProbeExtension"
"""For --worker-extension-cls; its methods can be called with VLLM_SERVER_DEV_MODE=1."""
PROBE = json.dumps({
    "batch_sizes": [1, 4], "contexts": [32, 128], "max_positions": 4, "startup_seconds": 1.0,
    "publish_seconds": 0.3, "overhead_budget": 0.5, "step_share": 1.0, "min_samples": 2,
    "capture_seconds": 60.0,
})  # fmt: skip
WANTED = 10
"""Pairs between steps."""


def check_probes_change_no_output(running: Running) -> None:
    """Outputs while pairs run, and once all ranks have taken their probes off."""
    probed: list[list[list[int]]] = []

    def measured() -> bool:
        probed.append(running.concurrent())
        (status,) = scrape.parse(running.metrics()).statuses
        assert status.state in {"probing", "steady"}, status.reason
        return status.probes["measured"] >= WANTED

    wait_for(measured, what=f"{WANTED} pairs between steps")
    modules = {row.module for row in scrape.parse(running.metrics()).rows}
    assert modules == {"attention", "dense_ffn", "communication", "model"}
    _on_all_ranks(running, "nfp_fault", "publish")  # the leader alone publishes

    def off() -> bool:
        running.concurrent()
        return scrape.parse(running.metrics()).statuses[0].state == "disabled"

    wait_for(off, what="the end of the probe on all ranks")
    plain = running.concurrent()
    assert len(set(map(tuple, plain))) > 10, "the model repeats itself"
    assert all(outputs == plain for outputs in probed)


def _on_all_ranks(running: Running, method: str, *arguments: str) -> None:
    """Calls a method of rank_extension.py."""
    body = json.dumps({"method": method, "args": arguments}).encode()
    request = urllib.request.Request(
        f"{running.url}/collective_rpc", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60.0).close()
