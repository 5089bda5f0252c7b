"""Families without experts, whose layers are alike but for windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.families.shared import (
    EVERY_FOURTH,
    LLAMA,
    QWEN2,
    QWEN3,
    TIED,
    WINDOWS,
)
from vllm_nfp.principle.family import Family

_GEMMA = Family(
    defaults={
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
    }
)
_GEMMA2 = Family(
    window="pattern",
    pattern=2,
    defaults={
        **_GEMMA.defaults,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
)
_GEMMA3 = replace(_GEMMA2, pattern=6, defaults={**_GEMMA2.defaults, "vocab_size": 262208})
_GLM = Family(defaults={"head_dim": 128, "num_key_value_heads": 2})
_MISTRAL = Family(window="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096})
_UNGATED = Family(gated_ffn=False)
_ONE_HEAD_EACH = Family(gated_ffn=False, names={"num_key_value_heads": ()})
_CHATGLM = Family(
    names={
        "num_hidden_layers": ("num_layers",),
        "intermediate_size": ("ffn_hidden_size",),
        "num_key_value_heads": ("multi_query_group_num",),
        "head_dim": ("kv_channels",),
        "vocab_size": ("padded_vocab_size",),
    },
    only={"multi_query_attention": True},
)
_GPT_NAMES = {
    "num_hidden_layers": ("n_layer", "num_hidden_layers"),
    "hidden_size": ("n_embd", "hidden_size"),
    "num_attention_heads": ("n_head", "num_attention_heads"),
    "intermediate_size": ("n_inner",),
}
_GPT2 = Family(
    gated_ffn=False,
    width_factor=4,
    names=_GPT_NAMES,
    defaults={"tie_word_embeddings": True},
    tables={"n_positions": 0},
)
_GPT_BIGCODE = replace(
    _GPT2,
    names={**_GPT_NAMES, "num_key_value_heads": ()},
    defaults={"num_key_value_heads": 1, "tie_word_embeddings": True},
    only={"multi_query": True},
)
_EXAONE4 = replace(
    EVERY_FOURTH,
    # A string such as LLLG; layer_types says the same of every layer.
    names={"sliding_window_pattern": ()},
)
_COHERE2 = replace(EVERY_FOURTH, defaults={**EVERY_FOURTH.defaults, "tie_word_embeddings": True})
_FALCON = Family(
    gated_ffn=False,
    width_factor=4,
    names={
        "num_hidden_layers": ("num_hidden_layers", "n_layer"),
        "num_attention_heads": ("num_attention_heads", "n_head"),
        "intermediate_size": ("ffn_hidden_size",),
    },
    # Of the older design all queries share one head.
    defaults={"num_key_value_heads": 1, "tie_word_embeddings": True},
    variant=("new_decoder_architecture", "falcon_grouped"),
)
_TELECHAT = Family(
    names={
        "num_hidden_layers": ("n_layer", "num_hidden_layers"),
        "num_attention_heads": ("n_head", "num_attention_heads"),
        "intermediate_size": ("ffn_hidden_size", "intermediate_size"),
    },
)

DENSE: Mapping[str, Family] = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": Family(window="all", defaults={"num_key_value_heads": 8, "head_dim": 128}),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "rnj1": _GEMMA3,
    "vaultgemma": _GEMMA2,
    "phi": _UNGATED,
    "phi3": WINDOWS,
    "glm": _GLM,
    "glm4": _GLM,
    "chatglm": _CHATGLM,
    "qwen": Family(fused_width=True),
    "mimo": QWEN2,
    "cosmos3_edge_text": _UNGATED,
    "arcee": _UNGATED,
    "nemotron": _UNGATED,
    "apertus": _UNGATED,
    "jais2": _UNGATED,
    "persimmon": _ONE_HEAD_EACH,
    "fuyu": _ONE_HEAD_EACH,
    "gpt_neox": _ONE_HEAD_EACH,
    "gpt_bigcode": _GPT_BIGCODE,
    "gpt2": _GPT2,
    "gptj": replace(_GPT2, tables={}, defaults={}),
    "bloom": replace(_GPT2, tables={}),
    "opt": Family(
        gated_ffn=False,
        names={"intermediate_size": ("ffn_dim",)},
        defaults={"tie_word_embeddings": True},
        tables={"max_position_embeddings": 2},
        # Others project between the embedding's width and the layers'.
        only={"word_embed_proj_dim": "=hidden_size"},
    ),
    "falcon": _FALCON,
    "falcon_grouped": replace(
        _FALCON,
        names={**_FALCON.names, "num_key_value_heads": ("num_kv_heads", "n_head_kv")},
        defaults={"tie_word_embeddings": True},
        variant=None,
    ),
    "refinedwebmodel": _FALCON,
    "refinedweb": replace(_FALCON, variant=("n_head_kv", "falcon_grouped")),
    "starcoder2": Family(
        gated_ffn=False,
        window="all",
        defaults={"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "granite": LLAMA,
    "granite_swa": WINDOWS,
    "hyperclovax": LLAMA,
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "olmo3": EVERY_FOURTH,
    "cwm": replace(EVERY_FOURTH, defaults={"sliding_window": 8192, "head_dim": 128}),
    "exaone": Family(names={"num_hidden_layers": ("num_layers", "num_hidden_layers")}),
    "exaone4": _EXAONE4,
    "exaone4_5_text": _EXAONE4,
    "seed_oss": LLAMA,
    "smollm3": Family(defaults={"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "cohere": TIED,
    "cohere2": _COHERE2,
    "cohere_compass_text": _COHERE2,
    "ernie4_5": TIED,
    "hunyuan_v1_dense": LLAMA,
    "internlm": LLAMA,
    "internlm2": LLAMA,
    "internlm3": LLAMA,
    "baichuan": LLAMA,
    "minicpm": TIED,
    "minicpm3": Family(
        latent=True,
        absorbed=False,
        defaults={"v_head_dim": 64, "tie_word_embeddings": True},
    ),
    "youtu": Family(latent=True, defaults={"tie_word_embeddings": True}),
    "nemotron-nas": Family(pruned=True),
    "molmo": replace(
        QWEN2,
        fused_width=True,
        names={"tie_word_embeddings": ("weight_tying",)},
        defaults={},
    ),
    "molmo2_text": Family(
        names={
            "num_hidden_layers": ("num_hidden_layers", "num_layers"),
            "tie_word_embeddings": (),
        }
    ),
    "stablelm": LLAMA,
    "stablelm_epoch": LLAMA,
    "orion": LLAMA,
    "solar": LLAMA,
    "telechat": _TELECHAT,
    "telechat2": _TELECHAT,
    "telechat3": LLAMA,
    "teleflm": Family(
        names={
            "num_hidden_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "intermediate_size": ("ffn_hidden_size", "n_inner", "intermediate_size"),
        },
    ),
    "step1": Family(names={"num_key_value_heads": ("num_attention_groups", "num_key_value_heads")}),
    "plamo3": Family(
        window="pattern",
        pattern=8,
        names={"sliding_window": ("window_size", "sliding_window")},
        defaults={"tie_word_embeddings": True, "head_dim": 128},
    ),
    "panguembedded": LLAMA,
    "nanbeige": LLAMA,
    "iquestcoder": LLAMA,
    "muse_glimmer_text": Family(
        gate="elements",
        window="all",
        names={
            "attn_output_gate": ("use_attn_output_gate",),
            # A layer with rotary embedding slides.
            "sliding_layers": ("no_rope_layers",),
        },
        defaults={"sliding_window": 2048},
    ),
}
