"""What in a config.json says that a model is no dense Llama with gated feed-forward blocks.

Fields are found by what their names contain, since an unknown family may name them anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

Unlike = Literal[
    "experts", "latent", "windows", "recurrent", "sparse", "layers", "loops", "beside", "ungated"
]

MEANING: Mapping[Unlike, str] = {
    "experts": "experts",
    "latent": "latent attention",
    "windows": "windowed attention",
    "recurrent": "recurrent layers",
    "sparse": "attention to some tokens only",
    "layers": "layers that differ or share caches",
    "loops": "layers that run several times",
    "beside": "matrices beside attention and feed-forward blocks",
    "ungated": "feed-forward blocks without a gate, by its activation",
}
_NAMES: tuple[tuple[Unlike, re.Pattern[str]], ...] = (
    ("experts", re.compile(r"expert|moe|router")),
    ("latent", re.compile(r"kv_lora_rank|q_lora_rank|qk_rope_head_dim|qk_nope_head_dim")),
    (
        "recurrent",
        re.compile(
            r"mamba|ssm|state_size|conv_kernel|d_conv|d_state|conv_l_cache|linear_attn|linear_num"
            r"|linear_conv|kda|recurrent(?!_loops)|rwkv|time_step|hybrid|lru_|delta_net|attn_layer_period"
        ),
    ),
    ("sparse", re.compile(r"index_topk|index_n_heads|sparse_attention|compress_ratio")),
    (
        "layers",
        re.compile(
            r"kv_shared|block_configs|cross_attention_layers|global_head_dim|swa_|attn_res|double_wide"
            r"|multi_query$|use_cla$|is_encoder_decoder|encoder_layers|per_layer_config"
            r"|_per_layer$|attention_other_setting|layers_enum|o_lora_rank|share_q_dim"
        ),
    ),
    (
        "loops",
        re.compile(r"loop_num|_cycles$|total_ut_steps|num_loops|recurrent_loops|layers_per_stack"),
    ),
    ("beside", re.compile(r"per_layer_input|altup|laurel|ngram|^ple_|hc_mult|hc_count|d_rel$")),
)
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
_GATED = ("silu", "swish", "swiglu")
_SAME_LAYERS = ("full_attention", "attention")
_HARMLESS = frozenset({"is_moe_training", "output_router_logits", "add_cross_attention"})


def unlike_llama(text: Mapping[str, object]) -> Iterator[tuple[Unlike, str]]:
    """What speaks against a dense Llama, each with the field that says so."""
    for name, value in text.items():
        if not isinstance(name, str) or not value or name in _HARMLESS:
            continue
        yield from ((kind, name) for kind, names in _NAMES if names.search(name.lower()))
    if text.get("use_sliding_window") is not False:
        yield from (("windows", name) for name in _WINDOWS if text.get(name))
    kinds = text.get("layer_types")
    if isinstance(kinds, (list, tuple)) and any(kind not in _SAME_LAYERS for kind in kinds):
        yield "layers", "layer_types"
    for name in _ACTIVATIONS:
        value = text.get(name)
        if isinstance(value, str) and value.lower() not in _GATED:
            yield "ungated", name
