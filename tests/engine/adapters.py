"""Small LoRA adapters, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 8


def write_adapter(folder: Path, seed: int, model: dict[str, Any]) -> Path:
    """One with random weights, large enough to change what is generated."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head = model["hidden_size"], model["head_dim"]
    sizes = {
        "self_attn.q_proj": (hidden, model["num_attention_heads"] * head),
        "self_attn.v_proj": (hidden, model["num_key_value_heads"] * head),
        "mlp.down_proj": (model["intermediate_size"], hidden),
    }
    weights = {}
    for layer in range(model["num_hidden_layers"]):
        for name, (inputs, outputs) in sizes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                noise = torch.randn(shape, generator=generator)
                weights[f"{place}.lora_{part}.weight"] = 0.2 * noise
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
                "target_modules": sorted(name.split(".")[1] for name in sizes),
                "base_model_name_or_path": "",
            }
        )
    )  # fmt: skip
    return folder
