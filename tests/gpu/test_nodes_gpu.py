"""One engine whose two ranks are started as on two nodes, each with a GPU of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks_probed import WANTED
from serving import wait_for
from test_nodes import PROBED, two_nodes

from vllm_nfp.results import scrape

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ranks_of_two_nodes_are_probed_in_cuda_graphs(dense_model: Path, tmp_path: Path) -> None:
    # vLLM's own all-reduce looks for the other rank's GPU among those that this node sees.
    flags = (
        *PROBED, "--dtype", "bfloat16", "--no-enforce-eager", "--disable-custom-all-reduce",
        "--gpu-memory-utilization", "0.3",
    )  # fmt: skip
    devices = ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"})
    with two_nodes(dense_model, tmp_path, flags, flags, devices) as (running, log):

        def measured() -> bool:
            running.concurrent()
            (status,) = scrape.parse(running.metrics()).statuses
            assert status.state in {"probing", "steady"}, status.reason
            return status.probes["measured"] >= WANTED

        wait_for(measured, what=f"{WANTED} pairs between steps")
        modules = {row.module for row in scrape.parse(running.metrics()).rows}
        assert modules == {"attention", "dense_ffn", "communication", "model"}
        assert "first node, which reports for them" in log.read_text()
