"""Prediction layers (MTP) that a checkpoint holds, from the target's config.json.

After the models of vLLM 0.32 (``model_executor/models/*_mtp.py``) and its own reading of configs
(``config/speculative.py``): a layer like the target's last one with full attention, behind a
product that narrows embedding and hidden state to one width, and the target's LM head.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.drafter.drafter import Drafter, DrafterError
from vllm_nfp.principle.reading.wrapper import text_config
from vllm_nfp.principle.shape import Gemm, ModelShape
from vllm_nfp.principle.weights.modelopt import flat
from vllm_nfp.principle.weights.rules import ignored
from vllm_nfp.principle.weights.stored import quantization_of

_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
"""Fields that say how many prediction layers a checkpoint has."""
_SEVERAL = "num_nextn_predict_layers"
"""The field by which vLLM 0.32 runs several layers one after the other."""
_MODEL_TYPES = frozenset({
    "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "deepseek_v4", "pangu_ultra_moe", "kimi_k3",
    "mimo", "mimo_v2", "mimo_v2_flash", "glm4_moe", "glm4_moe_lite", "glm_ocr", "ernie4_5_moe",
    "nemotron_h", "nemotron_h_moe", "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe",
    "qwen3_5_moe_text", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3",
    "exaone_moe", "exaone4_5", "exaone4_5_text", "longcat_flash", "step3p5", "step3p7", "hy_v3",
    "minimax_m3", "minimax_m3_vl",
})  # fmt: skip
"""Families whose prediction layers vLLM 0.32 runs, as far as shapes are known here."""
_DENSE = frozenset(
    {"ernie4_5_moe", "longcat_flash", "step3p5", "step3p7", "mimo_v2", "mimo_v2_flash"}
)
"""Families with experts whose prediction layers have none (``ernie_mtp.py``,
``longcat_flash_mtp.py``, ``mimo_v2_mtp.py``; Step's layers beyond the last are not listed)."""
_WINDOWED = frozenset({"mimo_v2", "mimo_v2_flash"})
"""Families whose prediction layers attend to a window."""
_SPLIT_INPUT = frozenset(
    {"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}
)
"""Families that split the first product over the ranks."""
_PLAIN = "The prediction layer is stored in 16 bits, as the config's ignore list says."
_ALIKE = "The prediction layer is stored like the target's layers."
_LIKE_LAST = "The prediction layer is one of the target's layers, with full attention."


def mtp_layers(config: Mapping[str, object]) -> int:
    """How many prediction layers the checkpoint holds; 0: none."""
    for part in (text_config(config), config):
        for name in _COUNTS:
            count = part.get(name)
            if isinstance(count, int) and not isinstance(count, bool):
                return max(0, count)
    return 0


def dense_width(config: Mapping[str, object]) -> int:
    """Width of a dense feed-forward block by the config, where no layer may have one; 0: none."""
    text = text_config(config)
    for name in ("intermediate_size", "ffn_hidden_size"):
        width = text.get(name)
        if isinstance(width, int) and not isinstance(width, bool) and width > 0:
            return width
    return 0


def mtp_drafter(config: Mapping[str, object], target: ModelShape) -> Drafter:
    """The prediction layers of a target.

    Args:
        config: the target's config.json.
        target: its shape, as the server splits it.

    Raises:
        DrafterError: if the config has none, or vLLM 0.32 does not run them.
    """
    layers = mtp_layers(config)
    if not layers:
        raise DrafterError(
            f"the config of {target.name} has no prediction layers (num_nextn_predict_layers): use "
            f"another --draft-method, such as eagle3"
        )
    text = text_config(config)
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    if model_type not in _MODEL_TYPES:
        raise DrafterError(
            f"vLLM 0.32 runs no prediction layers of {model_type or 'this model'}: use another "
            f"--draft-method, such as eagle3, or give --draft-cost"
        )
    several = isinstance(text.get(_SEVERAL), int) and layers > 1
    plain = _in_16_bits(config, text, target.num_layers)
    quantized = target.quantization != "none"
    hidden, ranks = target.hidden_size, target.tensor_parallel_size
    outputs = hidden // ranks if model_type in _SPLIT_INPUT else hidden
    layer = _one_layer(
        target,
        dense_width(config),
        dense=model_type in _DENSE or not target.num_moe_layers,
        windowed=model_type in _WINDOWED,
    )
    return Drafter(
        _unquantized(layer) if plain else layer,
        "modules" if several else "chain",
        each=(Gemm(2 * hidden, outputs, 2.0),),
        assumptions=(
            _LIKE_LAST,
            *((_PLAIN if plain else _ALIKE,) if quantized else ()),
            *((f"vLLM takes K up to {layers}, or a multiple of it.",) if layers > 1 else ()),
        ),
    )


def _one_layer(target: ModelShape, width: int, dense: bool, windowed: bool) -> ModelShape:
    """A layer of the target, with attention of one kind."""
    indexer = target.indexer
    parts = [part for _, part in target.attentions if (part.window is not None) == windowed]
    part = (parts or [target.attentions[0][1]])[0]
    return replace(
        target,
        num_layers=1,
        num_attention_layers=None,
        intermediate_size=(target.intermediate_size or width) if dense else 0,
        num_dense_layers=int(dense),
        num_moe_layers=int(not dense),
        num_attention_heads=part.heads,
        num_kv_heads=part.kv_heads,
        head_dim=part.head_dim,
        attention_kinds=(replace(part, layers=1, shared=0),) if target.attention_kinds else (),
        dense_widths=(),
        side_matrices=(),
        looked_up_parameters=0,
        linear_attention=None,
        indexer=None if indexer is None else replace(indexer, layers=1),
        num_sliding_layers=int(windowed and not target.attention_kinds),
        sliding_window=target.sliding_window if windowed else None,
        expert_parallel=target.expert_parallel and not dense,
        assumptions=(),
    )


def _unquantized(shape: ModelShape) -> ModelShape:
    return replace(
        shape,
        quantization="none",
        weight_bytes=2.0,
        expert_weight_bytes=2.0,
        dense_weight_bytes=None,
        shared_weight_bytes=None,
    )


def _in_16_bits(config: Mapping[str, object], text: Mapping[str, object], layers: int) -> bool:
    """Whether the ignore list leaves out the prediction layer's feed-forward block."""
    given = quantization_of(config, text)
    if not isinstance(given, Mapping):
        return False
    blocks = ("mlp.gate_proj", "mlp.experts.0.gate_proj")
    paths = [
        f"{layer}.{block}"
        for layer in ("mtp.layers.0", f"model.layers.{layers}", "model.mtp.layers.0")
        for block in blocks
    ]
    entries = ignored(flat(given))
    return any(_leaves_out(entry, path) for entry in entries for path in paths)


def _leaves_out(entry: str, path: str) -> bool:
    """Whether an entry, a module's path or one with wildcards, holds the path."""
    if "*" in entry:
        return fnmatch.fnmatchcase(path, entry)
    return path == entry or path.startswith(f"{entry}.")
