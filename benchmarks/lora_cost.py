"""Claim: what LoRA adapters add to a step, which a probe leaves out.

    python -m benchmarks.lora_cost --out FILE.json

One engine serves the shape with two random adapters on all linear layers of attention and FFN. Each
batch size decodes without adapters and with both in turn, several times in random order. The time
of a step is that of the longer request less that of the shorter one, over the steps between. A
probe runs the base model (docs/models.md), so that it measures the step without adapters.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks import environment, shapes

RANK = 16
SHORT, LONG = 8, 72
PROMPT_TOKENS = 256
ROUNDS = 5


def write_adapter(folder: Path, seed: int, model: dict[str, Any], layers: int) -> Path:
    """One with random weights, small enough to leave the activations in range."""
    import torch
    from safetensors.torch import save_file

    hidden, width = model["hidden_size"], model["intermediate_size"]
    heads = model["num_attention_heads"]
    head = model.get("head_dim") or hidden // heads
    kv = model["num_key_value_heads"] * head
    sizes = {
        "self_attn.q_proj": (hidden, heads * head), "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv), "self_attn.o_proj": (heads * head, hidden),
        "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, (inputs, outputs) in sizes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                noise = torch.randn(shape, generator=generator, dtype=torch.float32)
                weights[f"{place}.lora_{part}.weight"] = (0.01 * noise).to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
                "target_modules": sorted(name.split(".")[1] for name in sizes),
                "base_model_name_or_path": ""}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def step_seconds(llm: Any, batch_size: int, loras: Sequence[Any]) -> float:
    """Of one decode step with so many sequences."""
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [(7 * i + j) % 1000 + 5 for j in range(PROMPT_TOKENS)]}
        for i in range(batch_size)
    ]
    given = [loras[i % len(loras)] for i in range(batch_size)] if loras else None

    def seconds(tokens: int) -> float:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        llm.generate(prompts, params, lora_request=given, use_tqdm=False)
        return time.perf_counter() - begun

    return (seconds(LONG) - seconds(SHORT)) / (LONG - SHORT)


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--shape", default="llama-3.1-8b", type=click.Choice(sorted(shapes.SHAPES)))
@click.option("--layers", default=8)
@click.option("--batch-sizes", default="1,8,32")
def main(out: Path, shape: str, layers: int, batch_sizes: str) -> None:
    """Time steps with and without adapters."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    with tempfile.TemporaryDirectory() as name:
        folder = shapes.shared_model(shape, layers)
        model = json.loads((folder / "config.json").read_text())
        adapters = [write_adapter(Path(name) / f"a{i}", i, model, layers) for i in (1, 2)]
        llm = LLM(
            str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=1024,
            max_num_seqs=64, enable_lora=True, max_loras=2, max_lora_rank=RANK,
            enable_prefix_caching=False,
        )  # fmt: skip
        loras = [LoRARequest(path.name, i + 1, str(path)) for i, path in enumerate(adapters)]
        about = {"shape": shape, "layers": layers, "rank": RANK, "record": environment.record()}
        rows: list[dict[str, float]] = []
        for batch_size in batch_sizes.split(","):
            rows.append(row(llm, int(batch_size), loras))
            # What is known stays if the host's time ends here.
            out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def row(llm: Any, batch_size: int, loras: Sequence[Any]) -> dict[str, float]:
    """Medians of both, and what adapters add."""
    found: dict[bool, list[float]] = {False: [], True: []}
    order = [False, True] * ROUNDS
    random.Random(batch_size).shuffle(order)
    for with_adapters in (False, True, *order):  # the first two warm up
        found[with_adapters].append(step_seconds(llm, batch_size, loras if with_adapters else ()))
    plain, adapted = median(found[False][1:]), median(found[True][1:])
    print(f"B={batch_size}: {1e3 * plain:.3f} ms without, {1e3 * adapted:.3f} ms with adapters")
    return {"batch_size": batch_size, "plain": plain, "adapted": adapted, "ratio": adapted / plain}


if __name__ == "__main__":
    main()
