"""What in a config.json says that a model is no dense Llama with gated feed-forward blocks.

Fields are found by what their names contain, since an unknown family may name them anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

Unlike = Literal[
    "experts",
    "latent",
    "windows",
    "recurrent",
    "sparse",
    "layers",
    "loops",
    "beside",
    "ungated",
    "gates",
    "kv_heads",
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
    "ungated": "feed-forward blocks without a gate",
    "gates": "a gate of the attention's output",
    "kv_heads": "KV heads under a name of its own",
}
_NAMES: tuple[tuple[Unlike, re.Pattern[str]], ...] = (
    ("experts", re.compile(r"expert|moe|router")),
    ("latent", re.compile(r"kv_lora_rank|q_lora_rank|qk_rope_head_dim|qk_nope_head_dim")),
    (
        "recurrent",
        re.compile(
            r"mamba|ssm|state_size|conv_kernel|d_conv|d_state|conv_l_cache|linear_attn|linear_num"
            r"|linear_conv|linear_key|linear_value|kda|recurrent(?!_loops)|rwkv|time_step|hybrid"
            r"|lru_|delta_net|attn_layer_(?:period|indices)|full_attention_interval"
            r"|layers?_block_type|^block_types|layer_pattern|token_shift"
        ),
    ),
    (
        "sparse",
        re.compile(
            r"index_topk|index_n_heads|sparse_att|sparse_block|block_sparse|compress_ratio"
            r"|(?:^|_)(?:nsa|dsa|moba)(?:_|$)"
        ),
    ),
    (
        "layers",
        re.compile(
            r"kv_shar|share_kv|cla_|yoco|block_configs|cross_attention_(?:layers|interval)"
            r"|global_head_dim|swa_|attn_res|double_wide|multi_query(?:_attention)?$|is_encoder_decoder"
            r"|encoder_layers|per_layer_config|_per_layer$|^per_layer_ffn|attention_other_setting"
            r"|layers_enum|o_lora_rank|share_q_dim"
        ),
    ),
    (
        "loops",
        re.compile(
            r"loop_num|_cycles$|total_ut_steps|universal_steps|(?:num|n|recurrent)_loops"
            r"|recurrence|layers_per_stack"
        ),
    ),
    (
        "beside",
        re.compile(
            r"per_layer_input|altup|laurel|ngram|^ple_|hc_mult|hc_count|d_rel$|hyper_conn|n_hyper"
            r"|pkm_|memory_layers|engram|canon_|value_residual|factorized_embed"
        ),
    ),
    ("gates", re.compile(r"(?:attn|attention|output|head).*_gat(?:e|ing)|^gating$|^head_gat")),
)
_KV_HEADS = re.compile(r"kv_heads|head_kv|kv_n_heads|query_group_num|key_value_groups|kv_groups")
_WINDOWS = re.compile(
    r"sliding_window(?!_pattern)|attention_chunk_size|^window(?:_size)?s?$|local_window"
    r"|attention_window|window_attention|local_att|local_layers|sliding_layers"
)
_WINDOWED_KIND = re.compile(r"slid|local|window|chunk", re.IGNORECASE)
_KINDS = re.compile(r"att(?:entio)?n.*(?:type|pattern|kind)|(?:type|pattern)s?_of_att")
_ACTIVATIONS = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "mlp_hidden_act",
    "activation",
    "activation_type",
    "act_fn",
)
_GATED = ("silu", "swish", "swiglu")
_GATE_SWITCH = re.compile(r"glu|gated_(?:mlp|ffn)|(?:mlp|ffn)_gated")
_SAME_LAYERS = ("full_attention", "attention")
_HARMLESS = frozenset(
    {
        "is_moe_training",
        "output_router_logits",
        "add_cross_attention",
        "use_sliding_window",
        "qk_norm_type",
    }
)


def unlike_llama(text: Mapping[str, object]) -> Iterator[tuple[Unlike, str]]:
    """What speaks against a dense Llama, each with the field that says so."""
    for name, value in text.items():
        if not isinstance(name, str) or name in _HARMLESS:
            continue
        if value is False and _GATE_SWITCH.search(name.lower()):
            yield "ungated", name
        if value:
            yield from ((kind, name) for kind in _of_name(name.lower(), value, text))
    kinds = text.get("layer_types")
    if isinstance(kinds, (list, tuple)) and any(kind not in _SAME_LAYERS for kind in kinds):
        yield "layers", "layer_types"
    for name in _ACTIVATIONS:
        value = text.get(name)
        if isinstance(value, str) and value.lower() not in _GATED:
            yield "ungated", name


def _of_name(name: str, value: object, text: Mapping[str, object]) -> Iterator[Unlike]:
    """What a field with a value speaks of, by its name in lower case."""
    yield from (kind for kind, names in _NAMES if names.search(name))
    if text.get("use_sliding_window") is not False and (
        _WINDOWS.search(name) or (_KINDS.search(name) and _WINDOWED_KIND.search(str(value)[:4096]))
    ):
        yield "windows"
    if text.get("num_key_value_heads") is None and _KV_HEADS.search(name):
        yield "kv_heads"
