"""The files of an EAGLE-3 head: written here, served by vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.verification.eagle_answers import embedding_of
from benchmarks.verification.eagle_model import Head, shape_of

WEIGHTS = "model.safetensors"


def save(head: Head, folder: Path) -> None:
    """Write the checkpoint of an EAGLE-3 head that vLLM serves."""
    shape = head.shape
    weights = {name: w.detach().bfloat16().cpu() for name, w in head.named_parameters()}
    offsets = head.drafted.cpu() - torch.arange(shape.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**weights, "d2t": offsets}, folder / WEIGHTS)
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
        "dtype": "bfloat16", "hidden_act": "silu", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": 1,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size, "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.rope_theta, "vocab_size": shape.target_vocabulary,
        "draft_vocab_size": shape.vocabulary, "tie_word_embeddings": False,
        "max_position_embeddings": shape.most_positions,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def load(folder: Path, target: Any) -> Head:
    """The head of such a checkpoint, beside a transformers model.

    Raises:
        OSError: without the files.
    """
    weights = load_file(folder / WEIGHTS)
    offsets = weights.pop("d2t")
    embedding = embedding_of(target)
    drafted = (offsets + torch.arange(len(offsets))).to(embedding.device)
    head = Head(shape_of(target.config, len(offsets)), embedding, drafted)
    head.load_state_dict({name: one.float() for name, one in weights.items()})
    head.to(embedding.device).eval()
    return head
