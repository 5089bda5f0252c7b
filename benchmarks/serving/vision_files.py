"""Tokenizer, processor and pictures of a Qwen2.5-VL shape, made on the spot without a hub.

A server that reads pictures needs a tokenizer, a chat template and an image processor beside the
config.json. The tokenizer here splits at spaces. It knows every id of the published vocabulary as
a word, ``w0`` and so on, but for the special tokens, which have their published names and ids.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import shapes

SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
"""Of the published tokenizer_config.json: those that a chat with pictures can hold."""
WORDS = 151643
"""Ids below this are words of the published tokenizer."""
PAD, END = "<|endoftext|>", "<|im_end|>"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}"
    f"{{% if part.type == 'image' %}}{PICTURE}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 56 * 56,
    # The published file allows 12845056. The model's page advises this to save time and memory;
    # vLLM tries the largest picture at its start.
    "max_pixels": 1280 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""preprocessor_config.json, as published but for the largest picture."""
BLOCK = 28
"""Pixels of a picture's side for one token: two patches of 14."""


def write(folder: Path, shape: str) -> None:
    """Write what a server reads beside the config.json of a shape."""
    vocabulary = vocabulary_of(shapes.vocab_size(shape))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def vocabulary_of(size: int) -> dict[str, int]:
    """Word or special token by its id; every id below the size has one."""
    names = {index: name for name, index in SPECIAL.items()}
    return {names.get(index, f"w{index}"): index for index in range(size)}


def tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    """The content of tokenizer.json, of the format of the tokenizers package."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": index, "content": name, **flags, "special": True}
            for name, index in SPECIAL.items()
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": PAD},
    }  # fmt: skip


def tokenizer_config() -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": PAD, "pad_token": PAD,
        "eos_token": END, "model_max_length": 131072, "clean_up_tokenization_spaces": False,
    }  # fmt: skip


@functools.cache
def picture(seed: int, blocks: tuple[int, int]) -> str:
    """A picture as the address that vLLM's chat takes.

    Args:
        seed: of its colours; another seed makes another picture.
        blocks: height and width in tokens.
    """
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (*blocks, 3), np.uint8)
    height, width = (BLOCK * side for side in blocks)
    data = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
