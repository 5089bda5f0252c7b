"""On a CUDA GPU: a server that verifies adaptively, fed with measured costs.

pytest -m gpu tests/gpu/test_adaptive_verification.py

It needs the GPU for itself: beside other tests pairs scatter too much to know a step's costs by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from generate import prompts
from prometheus_client.parser import text_string_to_metric_families
from serving import Running

from vllm_nfp.start import requests
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import Server, serve_command

pytestmark = pytest.mark.gpu

SPECULATION = {
    "method": "draft_model", "num_speculative_tokens": 3, "enable_adaptive_verification": True,
}  # fmt: skip
SETTINGS = {
    "overhead_budget": 0.5, "step_share": 1.0, "publish_seconds": 0.5,
    "contexts": [128], "positions": [1, 2, 3, 4], "max_positions": 4,
}  # fmt: skip
"""A small table near the traffic: a tiny model's steps are short, so that their pairs scatter."""
STARTED_WITHIN_SECONDS = 150.0
LIMIT_SECONDS = 240.0
"""From the test's begin to its last round of requests; with the end of the last requests and of the
server it stays below the 330 s that GPU tests are given."""
REQUEST_SECONDS = 20.0
TOLD = (
    "vllm_nfp_verification_", "vllm_nfp_state", "vllm_nfp_probes_", "vllm_nfp_surface_jumps_",
    "vllm_nfp_live_", "vllm_nfp_delayed_steps_", "vllm_nfp_overhead_ratio", "vllm_nfp_steps_total",
)  # fmt: skip
"""Beginnings of the metrics that a failure prints."""


@contextmanager
def telling(running: Running) -> Iterator[None]:
    """What the server said is printed if the block fails: nothing of it is kept."""
    try:
        yield
    except BaseException:
        try:
            lines = running.metrics().splitlines()
            print(*(line for line in lines if line.startswith(TOLD)), sep="\n")
        except Exception as error:
            print(f"no metrics: {error!r}")
        print(running.log_text()[-12000:])
        raise


def values(text: str, name: str, label: str = "engine") -> dict[str, float]:
    """The metric's values by one of its labels."""
    samples = text_string_to_metric_families(text)
    return {
        sample.labels[label]: sample.value
        for family in samples
        for sample in family.samples
        if sample.name == name
    }


TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it needs two GPUs")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=TWO_GPUS)])
def test_a_server_is_fed_once_its_steps_are_measured(
    ranks: int, dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model drafts for itself, so that vLLM learns to trust its drafts.

    Ranks that cut drafts differently would wait for each other for ever.
    """
    end = time.monotonic() + LIMIT_SECONDS
    monkeypatch.setattr(requests, "TIMEOUT_SECONDS", REQUEST_SECONDS)
    port = free_port()
    speculation = json.dumps({**SPECULATION, "model": str(dense_model)})
    command = serve_command(
        dense_model, port, "--dtype", "bfloat16", "--max-model-len", "512",
        "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(256 << 20),
        "--gpu-memory-utilization", "0.1", "--tensor-parallel-size", str(ranks),
        "--speculative-config", speculation, "--nfp-probe", "--nfp-verification-costs",
        "--nfp-config", json.dumps(SETTINGS),
    )  # fmt: skip
    with Server(command, tmp_path / "server.log", port, {}) as started:
        running = Running(started, str(dense_model))
        with telling(running):
            started.wait_until_healthy(STARTED_WITHIN_SECONDS)
            text = ""
            assert running.complete(prompts(1)[0])
            rounds, steps, seconds = 0, dict[str, float](), dict[str, float]()
            while not (steps.get("measured") and "measured" in seconds) and time.monotonic() < end:
                running.concurrent()
                rounds += 1
                text = running.metrics()
                steps = values(text, "vllm_nfp_verification_steps_total", "costs")
                seconds = values(text, "vllm_nfp_verification_step_seconds", "source")
            why = values(text, "vllm_nfp_verification_measured_costs", "reason")
            assert steps.get("measured"), f"{steps} after {rounds} rounds, because of {why}"
            assert steps["vllm"] > 0.0, "its own costs were in force first"
            assert set(seconds) == {"real", "vllm", "measured"}
            admitted = values(text, "vllm_nfp_verification_admitted_drafts_total")
            scheduled = values(text, "vllm_nfp_verification_scheduled_drafts_total")
            assert 0.0 < sum(admitted.values()) <= sum(scheduled.values())
            assert admitted != scheduled, "some drafts were cut"
            said = running.log_text()
            assert "fault in stage" not in said
            assert "drafts are cut as vLLM does it" not in said
