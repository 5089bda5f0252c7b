"""Small models of kinds that a probe keeps its hands off, with random weights, made on the spot."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

WORDS = 96
"""Words of the tokenizers here, beside the special ones."""
SPECIAL = ("<pad>", "<eos>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %} {% endfor %}{% endif %}"
    "{% endfor %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write(folder: Path, config: Any) -> Path:
    """A model's folder, with weights wide enough that greedy decoding does not repeat itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    images = type(config) in AutoModelForImageTextToText._model_mapping
    kind = AutoModelForImageTextToText if images else AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.15)
    model.to(torch.float32).save_pretrained(folder)
    return folder


def multimodal(folder: Path) -> Path:
    """Reads images, and has rotary positions of several dimensions."""
    from transformers import Qwen2VLConfig

    tokenizer = write_tokenizer(folder)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )  # fmt: skip
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2VLProcessor",
                "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
                "min_pixels": 256, "max_pixels": 4096,
                "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            }
        )
    )  # fmt: skip
    return write(folder, config)


def write_tokenizer(folder: Path) -> Any:
    """One that splits at spaces and knows the words w0, w1 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{index}": len(SPECIAL) + index for index in range(WORDS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=raw, unk_token="<pad>", pad_token="<pad>", eos_token="<eos>",
        additional_special_tokens=list(SPECIAL[2:]),
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def image(shade: int) -> str:
    """A small picture as the address that vLLM's chat takes."""
    from PIL import Image

    picture = Image.new("RGB", (32, 24), (shade, 255 - shade, shade // 2))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def hybrid(folder: Path) -> Path:
    """Three layers with recurrent state, one with attention."""
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        **{
            **TEXT, "num_hidden_layers": 4, "head_dim": 32,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32,
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        }
    )  # fmt: skip
    return write(folder, config)
