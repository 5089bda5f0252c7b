"""On two CUDA GPUs: experts' loads are those of the traffic, with and without probes.

pytest -m gpu tests/gpu/test_eplb.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gpu import PROBE, check, generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="experts are spread over two GPUs"),
]

BALANCED: dict[str, Any] = {
    "tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True,
    "eplb_config": {
        "log_balancedness": True, "log_balancedness_interval": 1, "num_redundant_experts": 2,
        "window_size": 20, "step_interval": 200,
    },
}  # fmt: skip
LOADS = re.compile(r"EPLB step: (\d+) .*?avg_tokens=([\d.]+), max_tokens=(\d+)")


def loads(log: Path) -> list[tuple[str, ...]]:
    """(step, mean tokens of a rank, those of the fullest) of each step, as vLLM logs them."""
    return LOADS.findall(log.read_text())


def test_a_probe_is_not_counted_among_the_experts_loads(moe_model: Path, tmp_path: Path) -> None:
    plain = generate(moe_model, tmp_path / "plain.json", None, **BALANCED)
    expected = loads(tmp_path / "plain.log")
    assert len(expected) > 100 and len({load for _, load, _ in expected}) >= 3
    probe = {**PROBE, "run_dir": str(tmp_path)}
    assert generate(moe_model, tmp_path / "probed.json", probe, **BALANCED) == plain
    snapshot = check(tmp_path)
    assert loads(tmp_path / "probed.log") == expected
    print(f"{snapshot.probes['measured']} pairs, {len(expected)} steps")
