"""Small models of kinds beside plain decoders, with random weights, made on the spot."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

WORDS = 509
"""Words of the tokenizer here, beside the special ones."""
IMAGE = "<image>"
SPECIAL = ("<pad>", "<eos>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }} "
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""vLLM itself puts the pictures before the text."""
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
    """BLIP-2: a small OPT that reads pictures of 8 tokens. It needs no torchvision."""
    from transformers import (
        Blip2Config,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            **sizes, intermediate_size=64, image_size=56, patch_size=14
        ),
        qformer_config=Blip2QFormerConfig(
            **sizes, intermediate_size=64, encoder_hidden_size=32, vocab_size=8
        ),
        text_config=OPTConfig(
            hidden_size=128, word_embed_proj_dim=128, ffn_dim=256, num_hidden_layers=2,
            num_attention_heads=4, vocab_size=512, max_position_embeddings=1024,
            bos_token_id=0, eos_token_id=1, pad_token_id=0,
        ),
        num_query_tokens=8, dtype="float32",
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )  # fmt: skip
    Blip2Processor(
        image_processor=BlipImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer, num_query_tokens=8,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return write(folder, config)


def rotary(folder: Path) -> Path:
    """PaddleOCR-VL: a small decoder with rotary positions of three dimensions that reads pictures.

    It needs no torchvision, as the models do that also read videos.
    """
    from transformers import (
        PaddleOCRVLConfig,
        PaddleOCRVLImageProcessorPil,
        PaddleOCRVLProcessor,
    )

    image = "<|IMAGE_PLACEHOLDER|>"  # vLLM writes it into chats
    tokenizer = make_tokenizer(image, extra_special_tokens={"image_token": image})
    config = PaddleOCRVLConfig(
        text_config={
            **TEXT, "head_dim": 32, "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6],
            },
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
        },
        image_token_id=tokenizer.image_token_id, video_token_id=510,
        vision_start_token_id=508, vision_end_token_id=509,
        tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessorPil(
            size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
        ),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    picture = f"{{% if part.type == 'image' %}}{image} {{% elif "
    template = CHAT_TEMPLATE.replace("{% if part.type", picture + "part.type")
    (folder / "chat_template.jinja").write_text(template)
    return write(folder, config)


def make_tokenizer(image: str = IMAGE, **names: Any) -> Any:
    """One that splits at spaces and knows the words w0, w1 and so on.

    Args:
        image: stands for a picture.
        names: of special tokens, for a processor.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = (*SPECIAL, image)
    words = {word: index for index, word in enumerate(special)}
    words |= {f"w{index}": len(special) + index for index in range(WORDS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<pad>", pad_token="<pad>", eos_token="<eos>",
        **(names or {"additional_special_tokens": [image]}),
    )  # fmt: skip


def image(shade: int) -> str:
    """A small picture as the address that vLLM's chat takes."""
    from PIL import Image

    picture = Image.new("RGB", (64, 56), (shade, 255 - shade, shade // 2))
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
            "linear_key_head_dim": 128, "linear_value_head_dim": 128,
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        }
    )  # fmt: skip
    return write(folder, config)


HEADS_OF_32 = {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 2}
"""The smallest heads that vLLM's attention on a CPU takes."""
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_n_groups": 1}


def nemotron(folder: Path) -> Path:
    """Nemotron-H: two layers of Mamba 2, one of attention, and one that is an FFN alone."""
    from transformers import NemotronHConfig

    config = NemotronHConfig(
        **{
            **HEADS_OF_32, "num_hidden_layers": 4, "head_dim": 32,
            "layers_block_type": ["mamba", "mlp", "mamba", "attention"],
            "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 32, "n_groups": 2,
            "chunk_size": 64,
        }
    )  # fmt: skip
    return write(folder, config)


def granite(folder: Path) -> Path:
    """Granite 4: Mamba 2 beside attention, with experts and a shared one."""
    from transformers import GraniteMoeHybridConfig

    config = GraniteMoeHybridConfig(
        **{
            **HEADS_OF_32, **MAMBA, "num_hidden_layers": 4, "mamba_expand": 2,
            "layer_types": ["mamba", "mamba", "attention", "mamba"], "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        }
    )  # fmt: skip
    return write(folder, config)


def falcon(folder: Path) -> Path:
    """Falcon-H1: Mamba 2 and attention side by side in each layer."""
    from transformers import FalconH1Config

    config = FalconH1Config(
        **{**HEADS_OF_32, **MAMBA, "mamba_d_ssm": 128, "mamba_expand": 2, "head_dim": 32}
    )
    return write(folder, config)


def lfm2(folder: Path) -> Path:
    """LFM2: short convolutions beside attention, with experts behind the first layer."""
    from transformers import Lfm2MoeConfig

    config = Lfm2MoeConfig(
        **{
            **HEADS_OF_32, "num_hidden_layers": 4, "conv_L_cache": 3, "conv_bias": False,
            "layer_types": ["conv", "conv", "full_attention", "conv"], "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_dense_layers": 1,
        }
    )  # fmt: skip
    return write(folder, config)


def latent(folder: Path) -> Path:
    """DeepSeek-V2: latent attention, in the sizes that its kernels are made for."""
    from transformers import DeepseekV2Config

    config = DeepseekV2Config(
        **{
            **TEXT, "hidden_size": 256, "num_attention_heads": 16, "num_key_value_heads": 16,
            "kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 64,
            "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        }
    )  # fmt: skip
    return write(folder, config)


def wide_angles(folder: Path) -> Path:
    """gpt-oss: its rotary table keeps 32 bits where the queries have 16."""
    from transformers import GptOssConfig

    yarn = {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 256,
    }  # fmt: skip
    config = GptOssConfig(
        **{
            **TEXT, "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
            "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": yarn,
        }
    )  # fmt: skip
    return write(folder, config)


def real(folder: Path) -> Path:
    """A small model that was trained; skips the test where its package is not installed."""
    import pytest

    from vllm_nfp.real_model import NoRealModelError, write_real_model

    try:
        return write_real_model(folder)
    except NoRealModelError as error:
        pytest.skip(str(error))
