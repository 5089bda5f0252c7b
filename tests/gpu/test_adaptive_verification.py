"""On a CUDA GPU: a server that verifies adaptively, fed with measured costs.

pytest -m gpu tests/gpu/test_adaptive_verification.py
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from generate import prompts
from prometheus_client.parser import text_string_to_metric_families
from serving import Running

from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import running_server, serve_command

pytestmark = pytest.mark.gpu

SPECULATION = {
    "method": "draft_model", "num_speculative_tokens": 3, "enable_adaptive_verification": True,
}  # fmt: skip
FED_WITHIN_SECONDS = 240.0


def values(text: str, name: str, label: str = "engine") -> dict[str, float]:
    """The metric's values by one of its labels."""
    samples = text_string_to_metric_families(text)
    return {
        sample.labels[label]: sample.value
        for family in samples
        for sample in family.samples
        if sample.name == name
    }


def test_a_server_is_fed_once_its_steps_are_measured(dense_model: Path, tmp_path: Path) -> None:
    """The model drafts for itself, so that vLLM learns to trust its drafts."""
    port = free_port()
    speculation = json.dumps({**SPECULATION, "model": str(dense_model)})
    settings = json.dumps({"overhead_budget": 0.5, "max_positions": 8, "publish_seconds": 0.5})
    command = serve_command(
        dense_model, port, "--dtype", "bfloat16", "--max-model-len", "512",
        "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(256 << 20),
        "--gpu-memory-utilization", "0.1", "--speculative-config", speculation, "--nfp-probe",
        "--nfp-verification-costs", "--nfp-config", settings,
    )  # fmt: skip
    with running_server(command, tmp_path / "server.log", port, {}) as started:
        running = Running(started, str(dense_model))
        assert running.complete(prompts(1)[0])
        end, steps = time.monotonic() + FED_WITHIN_SECONDS, {"measured": 0.0}
        while not steps.get("measured") and time.monotonic() < end:
            running.concurrent()
            steps = values(running.metrics(), "vllm_nfp_verification_steps_total", "costs")
        text = running.metrics()
    assert steps["measured"] > 0.0, running.log_text()[-3000:]
    assert steps["vllm"] > 0.0, "its own costs were in force first"
    seconds = values(text, "vllm_nfp_verification_step_seconds", "source")
    assert set(seconds) == {"real", "vllm", "measured"}
    admitted = values(text, "vllm_nfp_verification_admitted_drafts_total")
    scheduled = values(text, "vllm_nfp_verification_scheduled_drafts_total")
    assert 0.0 < sum(admitted.values()) <= sum(scheduled.values())
    assert "fault" not in running.log_text()
