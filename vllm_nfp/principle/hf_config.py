"""Hugging Face config.json to :class:`ModelShape`.

Families are listed in docs/predict.md; see :data:`vllm_nfp.principle.families.FAMILIES` for their
model_type. A multimodal config is read by the part of its language model (``text_config`` and
others). What is read, under Llama's names:

- layers: num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads, head_dim,
  intermediate_size, vocab_size, tie_word_embeddings;
- latent attention: q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
- experts: num_experts (num_local_experts, n_routed_experts), num_experts_per_tok,
  moe_intermediate_size, num_shared_experts (n_shared_experts) or shared_expert_intermediate_size;
- layers that have experts: mlp_layer_types, moe_layers, moe_layers_enum, or else mlp_only_layers,
  decoder_sparse_step, first_k_dense_replace and moe_layer_freq together;
- sizes of single layers: per_layer_config, num_attention_heads_per_layer, num_kv_shared_layers,
  attention_k_eq_v, and the families' own names for sliding layers;
- windows: sliding_window, use_sliding_window, max_window_layers, sliding_window_pattern, and
  layer_types before any rule of the family;
- layers with a state: layer_types and the families' own lists, see
  :mod:`vllm_nfp.principle.hybrid`;
- the indexer of sparse attention: index_topk, index_n_heads, index_head_dim, indexer_types;
- diffusion: canvas_length, block_size or bd_size;
- stored weights and cache: quantization_config, see :mod:`vllm_nfp.principle.weights`.

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

from collections.abc import Mapping
from dataclasses import replace

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.families import BY_CLASS, FAMILIES, UNDESCRIBED
from vllm_nfp.principle.families.nested import NESTED_SIZES
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.hybrid import Mixed, linear_attention, mixed_layers, with_layer_count
from vllm_nfp.principle.pruned import Pruned, pruned_layers
from vllm_nfp.principle.reading.attention import (
    gate_columns,
    head_dim,
    indexer,
    latent_attention,
)
from vllm_nfp.principle.reading.beside import side_matrices, tables
from vllm_nfp.principle.reading.feed_forward import (
    dense_widths,
    experts_per_token,
    has_experts,
    shared_experts,
)
from vllm_nfp.principle.reading.special import Special, special_attention
from vllm_nfp.principle.reading.unknown import DENSE, REQUIRED, assumptions, family_of
from vllm_nfp.principle.reading.windows import windows
from vllm_nfp.principle.recurrence import ASSUMED
from vllm_nfp.principle.shape import MAX_LAYERS, ModelShape, ShapeError, shown
from vllm_nfp.principle.sparse_attention import ASSUMED as SPARSE_ASSUMED
from vllm_nfp.principle.weights.cache import stored_kv_bits
from vllm_nfp.principle.weights.scheme import check_bits
from vllm_nfp.principle.weights.stored import Layers, quantization_of, stored_weights

_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
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
    if text is not config:
        text = {**NESTED_SIZES.get(model_type, {}), **text}
    family = family_of(text, model_type, assume_dense)
    if family.hybrid == "nemotron_h":
        text = with_layer_count(text)
    pruned = pruned_layers(text) if family.pruned else None
    if pruned is not None:
        text = _as_if_whole(text, pruned)
    fields = ConfigFields(text, model_type, family)
    fields.require(_required(family))
    _check_only(fields, family, model_type)
    layers = fields.whole("num_hidden_layers", least=1, most=MAX_LAYERS)
    sparse = has_experts(fields, layers) if family.experts else (False,) * layers
    mixed = _mixed(fields, family, sparse) if pruned is None else _whole_mixed(pruned)
    mla = latent_attention(fields, family.absorbed) if family.latent else None
    listed = family.hybrid is None and family.special != "deepseek_v4"
    slides = windows(fields, family, layers) if listed else (None,) * layers
    plain = family.hybrid is None and mla is None
    special = special_attention(fields, family, slides) if plain else Special(())
    kinds = special.kinds
    dense = mixed.ffn.count(False)
    widths = pruned.widths if pruned is not None else dense_widths(fields, family, dense)
    expert_width = fields.whole("moe_intermediate_size", least=1) if family.experts else 0
    shared, shared_width = shared_experts(fields, expert_width) if family.experts else (0, 0)
    quantization = quantization_of(config, text)
    stored = _modules(mixed, sparse, family, mla is not None)
    told = replace(stored, model_type=model_type, expert_dtype=text.get("expert_dtype"))
    weights = stored_weights(quantization, weight_bits, told)
    heads = kinds[0].heads if kinds else fields.whole("num_attention_heads", least=1)
    diffusion = family.diffusion or config.get("canvas_length") is not None
    return ModelShape(
        name=name or _name(config, model_type),
        num_layers=layers,
        hidden_size=fields.whole("hidden_size", least=1),
        intermediate_size=_mean_width(widths),
        num_attention_heads=heads,
        num_kv_heads=(
            kinds[0].kv_heads if kinds else fields.whole("num_key_value_heads", heads, least=1)
        ),
        head_dim=head_dim(fields, heads) if mla is None else mla.nope_dim + mla.rope_dim,
        vocab_size=fields.whole("vocab_size", least=1),
        num_dense_layers=dense,
        num_moe_layers=mixed.ffn.count(True),
        num_attention_layers=mixed.attention if not _is_uniform(family) else None,
        linear_attention=(
            linear_attention(fields, family.hybrid, mixed.recurrent)
            if family.hybrid and mixed.recurrent
            else None
        ),
        attention_gate=gate_columns(fields, family, 2) == 2,
        attention_kinds=kinds,
        dense_widths=widths if len(widths) > 1 else (),
        side_matrices=side_matrices(fields, family, layers),
        looked_up_parameters=tables(fields, family, layers),
        expert_hidden_size=fields.whole("expert_hidden_size", 0),
        num_experts=fields.whole("num_experts", least=1) if family.experts else 0,
        experts_per_token=experts_per_token(fields) if family.experts else 0,
        idle_experts=fields.whole("zero_expert_num", 0) if family.experts else 0,
        moe_intermediate_size=expert_width,
        num_shared_experts=shared,
        shared_intermediate_size=shared_width,
        shared_expert_gate=family.shared_expert_gate and shared_width > 0,
        gated_ffn=family.gated_ffn,
        sliding_window=next((window for window in slides if window is not None), None),
        num_sliding_layers=sum(window is not None for window in slides),
        tied_embeddings=_tied(config, fields),
        decoding="bidirectional_block" if diffusion else "causal",
        diffusion_block_size=_block_size(fields) if diffusion else None,
        quantization=weights.quantization,
        weight_bytes=weights.attention,
        dense_weight_bytes=_unless(weights.attention, weights.dense_ffn),
        shared_weight_bytes=_unless(weights.attention, weights.shared),
        expert_weight_bytes=weights.experts,
        recurrent_weight_bytes=_unless(weights.attention, weights.recurrent),
        lm_head_weight_bytes=2.0 if _tied(config, fields) else weights.lm_head,
        kv_bytes=_kv_bytes(kv_bits, quantization),
        mla=mla,
        indexer=(
            indexer(fields, mixed.attends[:layers], mla)
            if family.indexed and mla
            else special.indexer
        ),
        assumptions=(
            *((_IDLE_EXPERTS,) if fields.get("zero_expert_num") else ()),
            *((SPARSE_ASSUMED,) if family.indexed or special.indexer else ()),
            *((ASSUMED,) if mixed.recurrent else ()),
            *assumptions(text, model_type, family),
            *weights.assumed,
        ),
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        expert_parallel=expert_parallel,
    )


def _required(family: Family) -> tuple[str, ...]:
    """Fields that a config of the family must have."""
    needed = (*REQUIRED, *_EXPERTS) if family.experts else DENSE
    left_out = {"intermediate_size"} if family.width_factor else set()
    return tuple(name for name in needed if name not in left_out)


def _mixed(fields: ConfigFields, family: Family, sparse: tuple[bool, ...]) -> Mixed:
    """How many layers have attention, a state, and feed-forward blocks of each kind."""
    layers = len(sparse)
    if family.hybrid:
        return mixed_layers(fields, family.hybrid, layers, sparse)
    if family.doubled:
        return _all_attend(2 * layers, (True,) * layers + (False,) * (2 * layers))
    if family.beside_experts:
        return _all_attend(layers, (False,) * layers + (True,) * sparse.count(True))
    return _all_attend(layers, sparse)


def _all_attend(layers: int, ffn: tuple[bool | None, ...]) -> Mixed:
    return Mixed((True,) * layers, (False,) * layers, ffn)


def _whole_mixed(pruned: Pruned) -> Mixed:
    without = (False,) * len(pruned.attends)
    return Mixed(pruned.attends, without, (False,) * sum(count for count, _ in pruned.widths))


def _modules(mixed: Mixed, sparse: tuple[bool, ...], family: Family, latent: bool) -> Layers:
    """The numbers of the layers that have each kind of module."""
    every = range(len(sparse))
    several = family.doubled or family.beside_experts
    ffn = sparse if several else mixed.ffn[: len(sparse)]
    return Layers(
        [index for index in every if mixed.attends[index]],
        [index for index in every if mixed.recurs[index]],
        [index for index in every if several or ffn[index] is False],
        [index for index in every if ffn[index]],
        latent,
        family.hybrid or "",
        family.beside_experts,
    )


def _mean_width(widths: tuple[tuple[int, int], ...]) -> int:
    """The width of all dense blocks, or the mean, which only their activation's time is made of."""
    blocks = sum(count for count, _ in widths)
    return round(sum(count * width for count, width in widths) / blocks) if blocks else 0


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
    """The name of the family; where it is unknown, that of the class that vLLM would take."""
    named = ""
    for part in (text, config):
        found = part.get("model_type")
        if found is not None and not _printable(found):
            raise ShapeError(f"model_type must be a short name, not {shown(found)}")
        if str(found).lower() in FAMILIES or str(found).lower() in UNDESCRIBED:
            return str(found)
        named = named or (str(found) if found is not None else "")
    by_class = (BY_CLASS.get(_class_name(part), "") for part in (text, config))
    return next(filter(None, by_class), named)


def _class_name(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and len(named) == 1 else ""


def _name(config: Mapping[str, object], model_type: str) -> str:
    found = config.get("_name_or_path")
    return str(found) if found and _printable(found) else model_type


def _printable(name: object) -> bool:
    """A name that messages and tables may show as it is."""
    return isinstance(name, str) and len(name) <= _MAX_NAME and name.isprintable()


def _as_if_whole(text: Mapping[str, object], pruned: Pruned) -> Mapping[str, object]:
    """The config with the fields of Llama that its blocks imply."""
    heads = text.get("num_attention_heads")
    kv_heads = heads // pruned.group if isinstance(heads, int) else None
    rest = {name: value for name, value in text.items() if name != "block_configs"}
    return {
        **rest,
        "intermediate_size": max(width for _, width in pruned.widths),
        "num_key_value_heads": kv_heads,
    }


def _is_uniform(family: Family) -> bool:
    """Every layer has attention to a cache and one feed-forward block."""
    return not (family.hybrid or family.doubled or family.pruned or family.beside_experts)


def _check_only(fields: ConfigFields, family: Family, model_type: str) -> None:
    for name, only in family.only.items():
        value = fields.get(name)
        told = fields.get(only[1:]) if isinstance(only, str) and only[:1] == "=" else only
        if value is not None and value != told:
            raise ShapeError(
                f"{name} of a {model_type} config must be {told!r}, not {shown(value)}: "
                f"the shape describes no other"
            )


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
