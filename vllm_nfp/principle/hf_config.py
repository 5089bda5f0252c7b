"""Hugging Face config.json to :class:`ModelShape`.

Families are listed in docs/predict.md; see :data:`vllm_nfp.principle.families.FAMILIES` for their
model_type. A multimodal config is read by the part of its language model (``text_config`` and
others). What is read, under Llama's names:

- layers: num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads, head_dim,
  intermediate_size, vocab_size, tie_word_embeddings;
- latent attention: q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
- experts: num_experts (num_local_experts, n_routed_experts), num_experts_per_tok,
  moe_intermediate_size, num_shared_experts (n_shared_experts) or shared_expert_intermediate_size;
- layers that have experts: mlp_layer_types, moe_layers, or else mlp_only_layers,
  decoder_sparse_step, first_k_dense_replace and moe_layer_freq together;
- windows: sliding_window, use_sliding_window, max_window_layers, sliding_window_pattern, and
  layer_types before any rule of the family;
- layers with a state: layer_types and the families' own lists, see
  :mod:`vllm_nfp.principle.hybrid`;
- the indexer of sparse attention: index_topk, index_n_heads, index_head_dim, indexer_types;
- diffusion: canvas_length, block_size or bd_size;
- stored weights and cache: quantization_config, see :mod:`vllm_nfp.principle.quantized_weights`.

Norms, biases, attention sinks, rotary embeddings, encoders of other modalities and extra prediction
layers are left out: they take next to no time in a decode step, or none.

To add a family, give it an entry in ``FAMILIES`` that says how it differs from Llama: other field
names in ``names``, defaults of its configuration class in ``defaults``, its rule for windows. Then
add a config to ``CONFIGS`` in tests/unit/test_principle_families.py, where transformers builds the
model and its weights are counted; where transformers lacks it, a published config with the
published parameter count in tests/unit/test_principle_models.py. Code is needed only if its layers
have matrices that :class:`ModelShape` lacks. Families that a shape cannot describe belong into
``UNDESCRIBED`` with the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.families import FAMILIES, UNDESCRIBED, named_families
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.hybrid import Mixed, linear_attention, mixed_layers, with_layer_count
from vllm_nfp.principle.layer_parts import Indexer
from vllm_nfp.principle.pruned import MEAN_WIDTH, Pruned, pruned_layers
from vllm_nfp.principle.quantized_weights import (
    Layers,
    check_bits,
    quantization_of,
    stored_kv_bits,
    stored_weights,
)
from vllm_nfp.principle.recurrence import ASSUMED
from vllm_nfp.principle.shape import (
    MAX_LAYERS,
    MAX_TOKENS,
    LatentAttention,
    ModelShape,
    ShapeError,
    shown,
)
from vllm_nfp.principle.sparse_attention import ASSUMED as SPARSE_ASSUMED
from vllm_nfp.principle.unlike_llama import MEANING, Unlike, unlike_llama

_REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_DENSE = (*_REQUIRED, "intermediate_size")
_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_ASSUMED = {
    "num_key_value_heads": "as many KV heads as attention heads",
    "head_dim": "head_dim of hidden_size / num_attention_heads",
    "tie_word_embeddings": "an LM head of its own",
}
"""What Llama's class makes of fields that a config lacks."""
_BY_CLASS = {"MiniCPM3ForCausalLM": "minicpm3"}
"""Families whose published config.json names a class and no model_type."""
_SLIDING_KINDS = ("sliding_attention", "chunked_attention")
MEASURE = "Measure it on a running server: vllm serve --nfp-probe, then vllm-nfp table"
_STORED_ALIKE = "Projections of layers with a state are stored like those of attention."
_IDLE_EXPERTS = "The router picks experts that do nothing as often as the others."
_MAX_NAME = 200
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Fields that hold the language model's config in one of several modalities."""


def shape_from_config(
    config: Mapping[str, object],
    *,
    weight_bits: float = 16,
    kv_bits: float | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    expert_parallel: bool = False,
    assume_dense: bool = False,
    name: str = "",
) -> ModelShape:
    """The shape of a model from its config.json, with a nested ``text_config`` followed.

    Args:
        config: the parsed config.json, or ``to_dict()`` of a transformers configuration.
        weight_bits: bits per linear weight where the config has no quantization_config that
            says so; 8 means FP8 weights and arithmetic, less means 16-bit arithmetic.
        kv_bits: bits per element of the KV cache; None: 8 if the quantization_config has an FP8
            scheme for the cache, else 16.
        tensor_parallel_size: ranks that share every layer.
        data_parallel_size: replicas of all but the routed experts.
        expert_parallel: give every rank whole experts, as ``--enable-expert-parallel`` does.
        assume_dense: read an unknown model_type as a Llama-like dense model.
        name: the model's name; by default the config's own.

    Raises:
        ShapeError: for an unknown family, missing fields, or sizes that cannot be.
    """
    if not isinstance(config, Mapping):
        raise ShapeError(f"a config.json must hold an object, not {shown(config)}")
    check_bits("weight_bits", weight_bits)
    text = text_config(config)
    model_type = _model_type(config, text)
    family = _family(text, model_type, assume_dense)
    if family.hybrid == "nemotron_h":
        text = with_layer_count(text)
    pruned = pruned_layers(text) if family.pruned else None
    if pruned is not None:
        text = _as_if_whole(text, pruned)
    fields = ConfigFields(text, model_type, family)
    fields.require((*_REQUIRED, *_EXPERTS) if family.experts else _DENSE)
    _check_only(fields, family, model_type)
    layers = fields.whole("num_hidden_layers", least=1, most=MAX_LAYERS)
    has_experts = _has_experts(fields, layers) if family.experts else (False,) * layers
    mixed = (
        mixed_layers(fields, family.hybrid, layers, has_experts)
        if family.hybrid
        else Mixed(layers, 0, has_experts)
        if not family.doubled
        else Mixed(2 * layers, 0, (True,) * layers + (False,) * (2 * layers))
    )
    if pruned is not None:
        mixed = Mixed(pruned.attention, 0, (False,) * pruned.ffn)
    mla = _latent(fields, family.absorbed) if family.latent else None
    window, sliding = (None, 0) if family.hybrid else _sliding(fields, family, layers)
    expert_width = fields.whole("moe_intermediate_size", least=1) if family.experts else 0
    shared, shared_width = _shared(fields, expert_width) if family.experts else (0, 0)
    quantization = quantization_of(config, text)
    weights = stored_weights(quantization, weight_bits, Layers(has_experts, mla is not None))
    heads = fields.whole("num_attention_heads", least=1)
    diffusion = family.diffusion or config.get("canvas_length") is not None
    return ModelShape(
        name=name or _name(config, model_type),
        num_layers=layers,
        hidden_size=fields.whole("hidden_size", least=1),
        intermediate_size=_width(fields, family),
        num_attention_heads=heads,
        num_kv_heads=fields.whole("num_key_value_heads", heads, least=1),
        head_dim=_head_dim(fields, heads) if mla is None else mla.nope_dim + mla.rope_dim,
        vocab_size=fields.whole("vocab_size", least=1),
        num_dense_layers=mixed.ffn.count(False),
        num_moe_layers=mixed.ffn.count(True),
        num_attention_layers=mixed.attention if not _is_uniform(family) else None,
        linear_attention=(
            linear_attention(fields, family.hybrid, mixed.recurrent)
            if family.hybrid and mixed.recurrent
            else None
        ),
        attention_gate=family.attention_gate and fields.flag("attn_output_gate", True),
        expert_hidden_size=fields.whole("expert_hidden_size", 0),
        num_experts=fields.whole("num_experts", least=1) if family.experts else 0,
        experts_per_token=_experts_per_token(fields) if family.experts else 0,
        idle_experts=fields.whole("zero_expert_num", 0) if family.experts else 0,
        moe_intermediate_size=expert_width,
        num_shared_experts=shared,
        shared_intermediate_size=shared_width,
        shared_expert_gate=family.shared_expert_gate and shared_width > 0,
        gated_ffn=family.gated_ffn,
        sliding_window=window,
        num_sliding_layers=sliding,
        tied_embeddings=_tied(config, fields),
        decoding="bidirectional_block" if diffusion else "causal",
        diffusion_block_size=_block_size(fields) if diffusion else None,
        quantization=weights.quantization,
        weight_bytes=weights.attention,
        dense_weight_bytes=_unless(weights.attention, weights.dense_ffn),
        shared_weight_bytes=_unless(weights.attention, weights.shared),
        expert_weight_bytes=weights.experts,
        lm_head_weight_bytes=weights.lm_head,
        kv_bytes=_kv_bytes(kv_bits, quantization),
        mla=mla,
        indexer=_indexer(fields, layers, mla) if family.indexed and mla is not None else None,
        assumptions=(
            *((MEAN_WIDTH,) if pruned is not None else ()),
            *((_IDLE_EXPERTS,) if fields.get("zero_expert_num") else ()),
            *((SPARSE_ASSUMED,) if family.indexed else ()),
            *((ASSUMED,) if mixed.recurrent else ()),
            *((_STORED_ALIKE,) if mixed.recurrent and quantization is not None else ()),
            *_assumptions(text, model_type, family),
            *weights.assumed,
        ),
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        expert_parallel=expert_parallel,
    )


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal config, however deep it lies."""
    found = config
    for _ in _NESTED:
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    return found


def _model_type(config: Mapping[str, object], text: Mapping[str, object]) -> str:
    for part in (text, config):
        found = part.get("model_type")
        if _printable(found):
            return str(found)
        if found is not None:
            raise ShapeError(f"model_type must be a short name, not {shown(found)}")
    return _BY_CLASS.get(_class_name(config), "")


def _class_name(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and len(named) == 1 else ""


def _name(config: Mapping[str, object], model_type: str) -> str:
    found = config.get("_name_or_path")
    return str(found) if found and _printable(found) else model_type


def _printable(name: object) -> bool:
    """A name that messages and tables may show as it is."""
    return isinstance(name, str) and len(name) <= _MAX_NAME and name.isprintable()


def _family(text: Mapping[str, object], model_type: str, assume_dense: bool) -> Family:
    key = model_type.lower()
    if key in UNDESCRIBED:
        raise ShapeError(
            f"no shape describes model_type {model_type!r}: {UNDESCRIBED[key]}. {MEASURE}"
        )
    family = FAMILIES.get(key)
    if family is None:
        return _unknown_family(text, model_type, assume_dense)
    if family.variant is not None and text.get(family.variant[0]):
        return FAMILIES[family.variant[1]]
    return family


def _unknown_family(text: Mapping[str, object], model_type: str, assume_dense: bool) -> Family:
    """Llama if the user says so and nothing speaks against it."""
    families = f"The known families: {', '.join(named_families())}"
    against = next(unlike_llama(text), None)
    if against is not None:
        kind, name = against
        raise ShapeError(
            f"model_type {shown(model_type)} is not a known family, and cannot be read as dense: "
            f"{name} {shown(text[name])} speaks of {MEANING[kind]}. {MEASURE}. {families}"
        )
    if not assume_dense:
        raise ShapeError(
            f"model_type {shown(model_type)} is not a known family and {_lacks(text)}: "
            f"say assume_dense=True (--assume-dense) to read it like Llama, with "
            f"{', '.join(_assumed(text))}, or {MEASURE[0].lower()}{MEASURE[1:]}. {families}"
        )
    return FAMILIES["llama"]


def _assumptions(text: Mapping[str, object], model_type: str, family: Family) -> tuple[str, ...]:
    """What was assumed of an unknown family, and fields that no part of the shape describes."""
    if model_type.lower() not in FAMILIES:
        return (
            f"model_type {shown(model_type)} is not a known family: it is read like Llama, with "
            f"{', '.join(_assumed(text))}.",
        )
    known = _described(family)
    # What layer_types may say is checked where windows and states are read.
    read = {"layer_types", *family.only, *itertools.chain(*family.names.values())}
    unread = {
        name: kind for kind, name in unlike_llama(text) if kind not in known and name not in read
    }
    return tuple(
        f"{name} of the config is not understood: its cost ({MEANING[kind]}) is left out."
        for name, kind in unread.items()
    )


def _described(family: Family) -> frozenset[Unlike]:
    """What the shape of a family describes beside a dense Llama."""
    described: set[Unlike] = {"windows", "ungated"}
    if family.experts:
        described.add("experts")
    if family.latent:
        described.add("latent")
    if family.indexed:
        described.add("sparse")
    if family.hybrid:
        described.add("recurrent")
    return frozenset(described)


def _lacks(text: Mapping[str, object]) -> str:
    missing = [name for name in _DENSE if text.get(name) is None]
    return f"it lacks {', '.join(missing)}" if missing else "all dense fields are there"


def _assumed(text: Mapping[str, object]) -> list[str]:
    """What reading a config like Llama's takes for granted."""
    fields = [what for name, what in _ASSUMED.items() if text.get(name) is None]
    return ["causal attention in every layer", "gated feed-forward blocks without experts", *fields]


def _as_if_whole(text: Mapping[str, object], pruned: Pruned) -> Mapping[str, object]:
    """The config with the fields of Llama that its blocks imply."""
    heads = text.get("num_attention_heads")
    kv_heads = heads // pruned.group if isinstance(heads, int) else None
    rest = {name: value for name, value in text.items() if name != "block_configs"}
    return {**rest, "intermediate_size": pruned.width, "num_key_value_heads": kv_heads}


def _is_uniform(family: Family) -> bool:
    """Every layer has attention to a cache and one feed-forward block."""
    return not (family.hybrid or family.doubled or family.pruned)


def _check_only(fields: ConfigFields, family: Family, model_type: str) -> None:
    for name, only in family.only.items():
        value = fields.get(name)
        if value is not None and value != only:
            raise ShapeError(
                f"{name} of a {model_type} config must be {only!r}, not {shown(value)}: "
                f"the shape describes no other"
            )


def _has_experts(fields: ConfigFields, layers: int) -> tuple[bool, ...]:
    """Which layers have experts: by a list of the config, else by the rules of all families."""
    kinds = fields.per_layer("mlp_layer_types", layers)
    if kinds:
        strange = [kind for kind in kinds if kind not in ("dense", "sparse")]
        if strange:
            raise ShapeError(f"mlp_layer_types has {shown(strange[0])}: only dense, sparse known")
        return tuple(kind == "sparse" for kind in kinds)
    if fields.get("moe_layers") is not None:
        listed = set(fields.whole_items("moe_layers", layers - 1))
        return tuple(index in listed for index in range(layers))
    if isinstance(fields.get("moe_layer_freq"), (list, tuple)):
        fields.per_layer("moe_layer_freq", layers)
        return tuple(flag == 1 for flag in fields.whole_items("moe_layer_freq", 1))
    return _has_experts_by_rule(fields, layers)


def _has_experts_by_rule(fields: ConfigFields, layers: int) -> tuple[bool, ...]:
    """The rules of Qwen-MoE and of DeepSeek and GLM together; fields of the other are absent."""
    dense = set(fields.whole_items("mlp_only_layers", MAX_LAYERS))
    step = fields.whole("decoder_sparse_step", 1, least=1)
    first = fields.whole("first_k_dense_replace", 0)
    every = fields.whole("moe_layer_freq", 1, least=1)
    return tuple(
        index not in dense and (index + 1) % step == 0 and index >= first and index % every == 0
        for index in range(layers)
    )


def _shared(fields: ConfigFields, expert_width: int) -> tuple[int, int]:
    """Number of shared experts of a layer and their width together."""
    width = fields.whole("shared_expert_intermediate_size", 0)
    if width:
        return 1, width
    count = fields.whole("num_shared_experts", 0)
    return count, count * expert_width


def _sliding(fields: ConfigFields, family: Family, layers: int) -> tuple[int | None, int]:
    """Window in tokens and number of layers that have it."""
    kinds = fields.per_layer("layer_types", layers)
    strange = [kind for kind in kinds if kind not in ("full_attention", *_SLIDING_KINDS)]
    if strange:
        raise ShapeError(
            f"layer_types has {shown(strange[0])}: only full, sliding and chunked attention known"
        )
    window = fields.whole("sliding_window", 0, most=MAX_TOKENS)
    if not window or (family.window_switch and not fields.flag("use_sliding_window", False)):
        return None, 0
    flags = fields.per_layer("sliding_layers", layers)
    if kinds:
        count = sum(kind in _SLIDING_KINDS for kind in kinds)
    elif flags:
        count = sum(fields.whole_items("sliding_layers", 1))
    else:
        count = _sliding_by_rule(fields, family, layers)
    return (window, count) if count else (None, 0)


def _sliding_by_rule(fields: ConfigFields, family: Family, layers: int) -> int:
    if family.window == "upper":
        return max(0, layers - fields.whole("max_window_layers", layers))
    if family.window == "alternate":
        return (min(layers, fields.whole("max_window_layers", layers)) + 1) // 2
    if family.window == "pattern":
        return layers - layers // fields.whole("sliding_window_pattern", family.pattern, least=1)
    return layers if family.window == "all" else 0


def _head_dim(fields: ConfigFields, heads: int) -> int:
    if fields.get("head_dim") is not None:
        return fields.whole("head_dim", least=1)
    hidden = fields.whole("hidden_size", least=1)
    if hidden % heads:
        raise ShapeError(f"num_attention_heads {heads} does not divide hidden_size {hidden}")
    return hidden // heads


def _experts_per_token(fields: ConfigFields) -> int:
    """Of those that do something, if the router picks all of them alike."""
    picked = fields.whole("num_experts_per_tok", least=1)
    experts, idle = fields.whole("num_experts", least=1), fields.whole("zero_expert_num", 0)
    return max(1, round(picked * experts / (experts + idle)))


def _latent(fields: ConfigFields, absorbed: bool) -> LatentAttention:
    fields.require(_LATENT)
    return LatentAttention(
        q_rank=fields.whole("q_lora_rank", 0),
        kv_rank=fields.whole("kv_lora_rank", least=1),
        nope_dim=fields.whole("qk_nope_head_dim", least=1),
        rope_dim=fields.whole("qk_rope_head_dim", least=1),
        value_dim=fields.whole("v_head_dim", least=1),
        absorbed=absorbed,
    )


def _width(fields: ConfigFields, family: Family) -> int:
    """Width of a dense feed-forward block."""
    width = fields.whole("intermediate_size", 0)
    if family.fused_width:
        return width // 2
    if family.trimmed_width and fields.flag("block_auto_adjust_ff_dim", True):
        step = fields.whole("block_multiple_of", 256, least=1)
        factor = fields.get("block_ffn_dim_multiplier")
        trimmed = int(2 * width / 3)
        if isinstance(factor, (int, float)) and 0 < factor <= 64:
            trimmed = int(factor * trimmed)
        return -(-trimmed // step) * step
    return width


def _indexer(fields: ConfigFields, layers: int, mla: LatentAttention) -> Indexer:
    fields.require(("index_topk", "index_n_heads", "index_head_dim", "q_lora_rank"))
    return Indexer(
        _own_indexers(fields, layers),
        fields.whole("index_topk", least=1),
        fields.whole("index_n_heads", least=1),
        fields.whole("index_head_dim", least=1),
        mla.q_rank,
    )


def _own_indexers(fields: ConfigFields, layers: int) -> int:
    """Layers with an indexer of their own, by the list or vLLM's rule (models/deepseek_v2.py)."""
    kinds = fields.per_layer("indexer_types", layers)
    if kinds:
        strange = [kind for kind in kinds if kind not in ("full", "shared")]
        if strange:
            raise ShapeError(f"indexer_types has {shown(strange[0])}: only full, shared known")
        return kinds.count("full")
    pattern = fields.get("index_topk_pattern")
    if isinstance(pattern, str):
        return layers - pattern[:layers].count("S")
    every = fields.whole("index_topk_freq", 1, least=1)
    offset = fields.whole("index_skip_topk_offset", 2)
    return sum(max(index - offset + 1, 0) % every == 0 for index in range(layers))


def _tied(config: Mapping[str, object], fields: ConfigFields) -> bool:
    """LM head and embedding are one: as the text part says, or else the wrapper around it."""
    outer = config.get("tie_word_embeddings")
    return fields.flag("tie_word_embeddings", outer if isinstance(outer, bool) else False)


def _block_size(fields: ConfigFields) -> int | None:
    if fields.get("diffusion_block_size") is None:
        return None
    return fields.whole("diffusion_block_size", least=1)


def _unless(common: float, own: float) -> float | None:
    return None if own == common else own


def _kv_bytes(kv_bits: float | None, quantization: object | None) -> float:
    if kv_bits is None:
        return stored_kv_bits(quantization) / 8
    check_bits("kv_bits", kv_bits)
    return kv_bits / 8
