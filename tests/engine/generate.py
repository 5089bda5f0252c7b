"""Run as a program: generate with a real vLLM engine and print what came out, as JSON.

    generate.py MODEL OUT.json MODE

where the mode is chunked, seeded, compiled, graphs, narrow, pictures, picture-graphs, embedded,
piecewise, text or text-graphs.

The probe is on if the environment carries its settings. Requests share prefixes, are longer than
a step's token limit, and are all there before the first step (the engine runs in this process: in
one of its own it would start on the first request that arrives), so that the scheduler makes the
same batches each time and every difference is the probe's.

Two modes, since vLLM 0.32 on a CPU fails on its own when a request with a seed meets a prompt that
is read in chunks ("CPU Generator does not use offset"): "chunked" samples from the engine's one
generator, which a probe that drew from it would shift; "seeded" gives requests their own seeds.
"compiled" is the latter in bfloat16, with the model compiled as vLLM serves it by default.
"narrow" is "seeded" in bfloat16 with a KV cache of 8 bits, whose bytes hold more in each.
"pictures" has pictures before most prompts, in chunks and with answers of different lengths, so
that they are read between decode steps; "picture-graphs" is the same in CUDA graphs. "embedded" has
prompts that are embeddings. "piecewise" is "graphs" with CUDA graphs between the splitting ops of
compiled code. "text" is for a real model with a tokenizer: prompts are text, seeds its own, and
"text-graphs" is the same in CUDA graphs.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any


def prompts(count: int = 12) -> list[list[int]]:
    rng = random.Random(7)
    shared = [rng.randrange(2, 512) for _ in range(96)]
    return [
        shared[: rng.choice((0, 48, 96))]
        + [rng.randrange(2, 512) for _ in range(rng.randrange(4, 90))]
        for _ in range(count)
    ]


def by_transformers(model: Path, wanted: list[list[int]], tokens: int) -> list[list[int]]:
    """What greedy decoding makes of the prompts, told by transformers, without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    outputs = []
    with torch.no_grad():
        for prompt in wanted:
            ids, cache, made = torch.tensor([prompt]), None, []
            for _ in range(tokens):
                found = net(input_ids=ids, past_key_values=cache, use_cache=True)
                ids, cache = found.logits[:, -1:].argmax(-1), found.past_key_values
                made.append(int(ids))
            outputs.append(made)
    return outputs


def with_pictures(model: Path, wanted: list[list[int]]) -> list[dict[str, Any]]:
    """The prompts, with no, one or two pictures before each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(3)
    config = json.loads((model / "config.json").read_text())
    # vLLM puts BLIP-2's pictures first itself; the others' prompts say where they are.
    mark = [] if config["model_type"] == "blip-2" else [config["image_token_id"]]
    made = []
    for index, ids in enumerate(wanted):
        count = index % (3 if mark else 2)
        pixels = rng.integers(0, 256, (count, 60, 80 + 8 * index, 3), dtype=np.uint8)
        pictures = {"image": [Image.fromarray(each) for each in pixels]} if count else {}
        made.append({"prompt_token_ids": mark * count + ids[:40], "multi_modal_data": pictures})
    return made


def as_embeddings(model: Path, wanted: list[list[int]]) -> list[dict[str, Any]]:
    """Every other prompt, as random embeddings."""
    import torch

    width = json.loads((model / "config.json").read_text())["hidden_size"]
    torch.manual_seed(5)
    return [
        {"prompt_embeds": torch.randn(len(ids), width)} if index % 2 else {"prompt_token_ids": ids}
        for index, ids in enumerate(wanted)
    ]


def as_text(model: Path, wanted: list[list[int]]) -> list[dict[str, Any]]:
    """As many texts: chat, code and copying."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.serving.eagle_prompts import TASKS
    from benchmarks.serving.eagle_prompts import prompts as texts

    each = len(wanted) // len(TASKS)
    return [{"prompt": text} for task in TASKS for text in texts(task, each, held_out=True)]


PICTURES = ("pictures", "picture-graphs")
TEXT = ("text", "text-graphs")
REQUESTS = {
    **dict.fromkeys(PICTURES, with_pictures),
    **dict.fromkeys(TEXT, as_text),
    "embedded": as_embeddings,
}
PROCESSOR = "processor_config.json"
"""Of a model that reads pictures."""
IN_GRAPHS = ("graphs", "picture-graphs", "piecewise", "text-graphs")
COMPILED = ("compiled", *IN_GRAPHS)
SEEDED = ("seeded", "compiled", "narrow", *TEXT)
GRAPHS: dict[str, Any] = {
    # FULL graphs, but nothing compiled, which would take most of the test's time.
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 24, 32],
    },
    # Other processes may hold the rest of the GPU.
    "gpu_memory_utilization": 0.05,
    "kv_cache_memory_bytes": 256 << 20,
}


PIECEWISE = {"compilation_config": {**GRAPHS["compilation_config"], "mode": 3}}
PIECEWISE["compilation_config"]["cudagraph_mode"] = "PIECEWISE"


def adapted(folders: list[str], count: int) -> list[Any]:
    """Requests' adapters: none, the first, the second, and so on in turn."""
    from vllm.lora.request import LoRARequest

    given = [None, *(LoRARequest(f"a{i}", i + 1, path) for i, path in enumerate(folders))]
    return [given[index % len(given)] for index in range(count)]


def main(model: str, out: str, mode: str, more: str = "{}") -> None:
    """Args: more: further arguments of the engine as JSON, and ``adapters``, folders of LoRA."""
    from vllm_nfp.adapter.engines import start_engine

    given = json.loads(more)
    folders = given.pop("adapters", [])
    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8} if folders else {}

    arguments = {
        "enforce_eager": mode not in COMPILED,
        "max_model_len": 512,
        "max_num_seqs": 24,  # a full server leaves nothing for probes
        "skip_tokenizer_init": mode not in (*PICTURES, *TEXT),
        "enable_prompt_embeds": mode == "embedded",
        # In the other modes a model that reads pictures is served as one of text.
        "language_model_only": mode not in PICTURES and (Path(model) / PROCESSOR).exists(),
        "dtype": "bfloat16" if mode in (*COMPILED, "narrow") else "float32",
        "kv_cache_dtype": "fp8" if mode == "narrow" else "auto",
        "max_num_batched_tokens": 64 if mode == "chunked" else 96 if mode in PICTURES else 2048,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "seed": 0,
        **(GRAPHS if mode in IN_GRAPHS else {}),
        # A recurrent layer's default kernel for prompts needs FlashInfer, which may be absent.
        **({"additional_config": {"gdn_prefill_backend": "triton"}} if mode in IN_GRAPHS else {}),
        **(PIECEWISE if mode == "piecewise" else {}),
        **({"kv_cache_memory_bytes": 256 << 20} if mode == "compiled" else {}),
        # The encoder's small heads fit no fast kernel.
        **({"mm_encoder_attn_backend": "TORCH_SDPA"} if mode == "picture-graphs" else {}),
        **lora,
        **given,
    }
    llm = start_engine(model, arguments)
    from vllm import SamplingParams

    requests: list[Any] = [{"prompt_token_ids": ids} for ids in prompts()]
    if mode in REQUESTS:
        requests = REQUESTS[mode](Path(model), prompts())
    common = {"max_tokens": 40, "ignore_eos": True, "detokenize": False, "logprobs": 1}
    params = [
        SamplingParams(temperature=0.0, **common)
        if i % 2 == 0
        else SamplingParams(
            temperature=0.9, top_p=0.9, seed=100 + i if mode in SEEDED else None, **common
        )
        for i in range(len(requests))
    ]
    if mode in PICTURES:
        for index, each in enumerate(params):
            each.max_tokens = 24 + 4 * index
    result = []
    # The second time from the prefix cache. Graphs are captured between steps: that takes many.
    for _ in range(20 if mode in ("graphs", "piecewise", "text-graphs") else 2):
        loras = adapted(folders, len(requests)) if folders else None
        for output in llm.generate(requests, params, lora_request=loras, use_tqdm=False):
            completion = output.outputs[0]
            result.append(
                {
                    "tokens": list(completion.token_ids),
                    "logprobs": [
                        step[token].logprob
                        for step, token in zip(
                            completion.logprobs, completion.token_ids, strict=True
                        )
                    ],
                }
            )
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:5])
