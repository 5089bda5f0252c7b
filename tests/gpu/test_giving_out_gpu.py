"""On a CUDA GPU: drafts are given out in graphs as vLLM gives them out.

pytest -m gpu tests/gpu/test_giving_out_gpu.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vllm_nfp.adapter.cut_steps import MOST_SLOTS, prepared
from vllm_nfp.probe.cuda_graph import SmallGraphs

pytestmark = pytest.mark.gpu

REQUESTS, DRAFTS = 300, 4


def made_manager() -> Any:
    """vLLM's manager, with what giving out needs."""
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager

    manager = object.__new__(AdaptiveVerificationManager)
    manager.num_speculative_steps, manager.num_bonus_tokens = DRAFTS, 1
    manager._batch_budget, manager._copy_admitted_drafts_to_host = None, False
    whole = {"dtype": torch.int32, "device": "cuda"}
    manager.query_start_loc = torch.zeros(REQUESTS + 1, **whole)
    manager._cu_num_logits = torch.zeros(REQUESTS + 1, **whole)
    manager._num_non_draft_tokens = torch.zeros(REQUESTS, **whole)
    manager._batch_draft_capacity = torch.zeros(REQUESTS, **whole)
    torch.manual_seed(3)
    manager._confidence_probs = torch.rand(REQUESTS, DRAFTS, device="cuda")
    return manager


def test_graphs_give_out_what_vllm_gives_out() -> None:
    manager = made_manager()
    taken = torch.cuda.memory_reserved()
    steps = prepared(manager, SmallGraphs().capture)
    assert steps is not None
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - taken <= 4 << 20
    # Written over what was freed since the capture, if graphs read it.
    filled = [torch.full((64 << size,), -1, device="cuda") for size in range(9) for _ in range(32)]
    generator, replays = np.random.default_rng(5), 0
    with torch.inference_mode():
        for _ in range(300):
            count = int(generator.integers(1, REQUESTS + 1))
            names = [f"r{index}" for index in range(count)]
            drafts = generator.integers(0, DRAFTS + 1, count)
            budget = (
                dict(zip(names, drafts.tolist(), strict=True)),
                dict(zip(names, generator.integers(1, 3, count).tolist(), strict=True)),
                int(generator.integers(0, max(1, drafts.sum()))),
            )
            slots = torch.tensor(generator.permutation(REQUESTS)[:count], device="cuda")
            manager._batch_budget = budget
            found = steps.give_out(names, slots)
            fits = count <= MOST_SLOTS // DRAFTS and bool(budget[2] < drafts.sum())
            assert (found is not None) is fits
            if found is None:
                continue
            replays += 1
            seen = found[0].tolist(), found[1].tolist(), found[2]
            manager._batch_budget = budget
            ends, query_start_loc, admitted, *_ = manager.reallocate_drafts(names, slots)
            assert seen == (ends.tolist(), query_start_loc.tolist(), admitted)
            manager._confidence_probs.copy_(torch.rand_like(manager._confidence_probs))
    assert replays >= 200
    del filled
