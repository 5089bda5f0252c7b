"""Run as a program: an EAGLE-3 drafter's first passes in FULL CUDA graphs against passes in pieces.

    drafter_passes.py OUT.json [COMPILATION]

Serves a shape with dummy weights under adaptive verification, with the drafter's graphs captured
like the model's. At each step of decodes so many drafts are verified as a random number says. After
a graph's replay the same pass is launched kernel by kernel on the same inputs, and the drafted
tokens and hidden states are compared. Writes what was seen, as JSON. COMPILATION is vLLM's
compilation config, as JSON: without torch.compile ({"mode": 0}) a start takes half of the time.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.serving import shapes

SHAPE, LAYERS, DRAFTS = "qwen3-1.7b", 8, 4


class Passes:
    """Follows the first passes of a drafter."""

    def __init__(self, drafter: Any, seen: list[dict[str, Any]]) -> None:
        self._drafter, self._seen = drafter, seen
        self._step: tuple[Any, Any, Any] | None = None
        self._propose, self._replay = (
            drafter.propose,
            drafter.prefill_cudagraph_manager.run_fullgraph,
        )
        self._in_pieces = drafter._prefill
        drafter.propose = self.propose
        drafter.prefill_cudagraph_manager.run_fullgraph = self.replay
        drafter._prefill = self.in_pieces

    def propose(self, batch: Any, metadata: Any, slots: Any, *args: Any, **kwargs: Any) -> Any:
        """Note what the pass runs on."""
        self._step = batch, metadata, slots
        return self._propose(batch, metadata, slots, *args, **kwargs)

    def in_pieces(self, *args: Any, **kwargs: Any) -> None:
        """Count a pass of decodes that no graph fits."""
        assert self._step is not None
        if not self._step[0].has_prefill:
            self._seen.append({"graph": False})
        self._in_pieces(*args, **kwargs)

    def replay(self, graph: Any) -> None:
        """Replay it, and launch the same pass in pieces."""
        import torch

        assert self._step is not None
        batch, metadata, slots = self._step
        drafter, requests = self._drafter, batch.num_reqs
        inputs = [drafter.hidden_states, drafter.input_buffers.positions]
        before = [tensor.clone() for tensor in inputs]
        self._replay(graph)
        drafts = drafter.draft_tokens[:requests, 0].clone()
        hidden = drafter.hidden_states[:requests].float().clone()
        after = [tensor.clone() for tensor in inputs]
        for tensor, value in zip(inputs, before, strict=True):
            tensor.copy_(value)
        self._in_pieces(requests, graph.num_tokens, metadata, slots, num_tokens_across_dp=None)
        again = drafter.hidden_states[:requests].float()
        self._seen.append(
            {
                "graph": True,
                "requests": requests,
                "tokens": batch.num_tokens,
                "equal": int((drafts == drafter.draft_tokens[:requests, 0]).sum()),
                "alike": float(torch.nn.functional.cosine_similarity(hidden, again, dim=-1).min()),
            }
        )
        for tensor, value in zip(inputs, after, strict=True):
            tensor.copy_(value)
        drafter.draft_tokens[:requests, 0] = drafts


def verify_at_random(manager: Any) -> None:
    """Have each step verify a random number of its drafts."""
    choose, chance = manager.get_num_tokens, random.Random(5)

    def get_num_tokens(tokens: Mapping[str, int], drafts: Mapping[str, list[int]]) -> int:
        choose(tokens, drafts)
        of_requests, others, _ = manager._batch_budget
        verified = chance.randint(0, sum(of_requests.values()))
        manager._batch_budget = of_requests, others, verified
        return int(sum(others.values()) + verified)

    manager.get_num_tokens = get_num_tokens


def main(out: str, compilation: str = "{}") -> None:
    from vllm_nfp.adapter import length_graphs
    from vllm_nfp.adapter.engines import start_engine, worker_of
    from vllm_nfp.adapter.patch import PatchSet

    length_graphs.put_in_place(PatchSet())
    from vllm import SamplingParams
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    # The head's own LM head is known by the names of loaded weights, which dummy ones lack.
    Eagle3LlamaForCausalLM.has_own_lm_head = True
    head = shapes.shared_draft_head(SHAPE, "eagle3", LAYERS)
    llm = start_engine(
        shapes.shared_model(SHAPE, LAYERS),
        {
            "load_format": "dummy", "max_model_len": 2048, "max_num_seqs": 16, "seed": 0,
            "gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 1 << 30,
            "enable_prefix_caching": False, "compilation_config": json.loads(compilation),
            "speculative_config": {
                "method": "eagle3", "model": str(head), "num_speculative_tokens": DRAFTS,
                "enable_adaptive_verification": True,
            },
        },
    )  # fmt: skip
    runner = worker_of(llm).model_runner
    seen: list[dict[str, Any]] = []
    verify_at_random(runner.adaptive_verification)
    Passes(runner.speculator, seen)
    greedy = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True, detokenize=False)
    for requests in (1, 2, 3, 7, 16):
        prompts = [
            {"prompt_token_ids": [(7 * n + 31 * i) % 900 + 5 for n in range(100 + 17 * i)]}
            for i in range(requests)
        ]
        llm.generate(prompts, greedy, use_tqdm=False)
    Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
