"""On a CUDA GPU: experts of prompts are counted beside CUDA graphs, and outputs stay equal.

pytest -m gpu tests/gpu/test_experts_gpu.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_gpu import PROBE, check

from vllm_nfp.config import config_from_mapping
from vllm_nfp.env_var import ENV_VAR

pytestmark = pytest.mark.gpu

PROGRAM = """
import json, sys
from vllm_nfp.adapter.engines import start_engine
from vllm_nfp.session import expert_choices
expert_choices.FIRST_SECONDS = 0.0  # a short run has few prompts
llm = start_engine(sys.argv[1], dict(
    max_model_len=512, max_num_seqs=24, skip_tokenizer_init=True, seed=0,
    enable_prefix_caching=False, gpu_memory_utilization=0.05, kv_cache_memory_bytes=256 << 20,
    compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY",
                        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24]}))
from vllm import SamplingParams
greedy = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True, detokenize=False)
found = []
for turn in range(24):  # each begins with a step of prompts, which has no graph
    prompts = [{"prompt_token_ids": [(7 * n + 31 * i + turn) % 500 + 2 for n in range(60 + i)]}
               for i in range(8)]
    found += [list(o.outputs[0].token_ids) for o in llm.generate(prompts, greedy, use_tqdm=False)]
print("RESULT " + json.dumps(found))
"""


def outputs(model: Path, probe: dict[str, object] | None) -> Any:
    environment = dict(os.environ)
    if probe is not None:
        environment[ENV_VAR] = config_from_mapping(probe).to_json()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT "))


def test_experts_of_prompts_are_counted_beside_graphs(moe_model: Path, tmp_path: Path) -> None:
    plain = outputs(moe_model, None)
    assert outputs(moe_model, {**PROBE, "run_dir": str(tmp_path)}) == plain
    counted = check(tmp_path).experts
    assert counted is not None, "no step was read"
    assert (counted.num_experts, counted.experts_per_token) == (8, 2)
    print(f"{counted.steps} steps, {counted.tokens} tokens, skew {counted.skew}")
    for row in counted.active:
        print(f"{row.tokens} tokens: {row.experts:.2f} experts, uniform {row.uniform:.2f}")
        assert row.experts <= row.uniform * 1.02
