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
from dataclasses import dataclass, replace

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.families.nested import NESTED_SIZES
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.hybrid import Mixed, with_layer_count
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
    experts_of,
    has_experts,
    without_experts,
)
from vllm_nfp.principle.reading.modules import is_uniform, mixed_modules, modules, whole_mixed
from vllm_nfp.principle.reading.single import (
    as_if_whole,
    block_size,
    check_only,
    kv_bytes,
    mean_width,
    required,
    tied,
    unless,
)
from vllm_nfp.principle.reading.special import Special, special_attention
from vllm_nfp.principle.reading.unknown import assumptions, family_of
from vllm_nfp.principle.reading.windows import windows
from vllm_nfp.principle.reading.wrapper import (
    by_class,
    encoders,
    model_type_of,
    name_of,
    text_config,
)
from vllm_nfp.principle.recurrence import ASSUMED
from vllm_nfp.principle.shape import MAX_LAYERS, ModelShape, ShapeError, shown
from vllm_nfp.principle.sparse_attention import ASSUMED as SPARSE_ASSUMED
from vllm_nfp.principle.states import linear_attention
from vllm_nfp.principle.weights.scheme import check_bits
from vllm_nfp.principle.weights.stored import quantization_of, stored_weights

_UNEVEN = (
    "Attention with heads of other sizes, or keys wider than values, takes the time of the usual "
    "kernels; its own were never timed."
)
_IDLE_EXPERTS = "The router picks experts that do nothing as often as the others."


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Which family a config is of, and its language model's part as the family has it."""

    text: Mapping[str, object]
    model_type: str
    listed_as: Family
    """As the table has it."""
    family: Family
    """The same, without experts where the config counts none."""
    pruned: Pruned | None


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
    read = _read(config, assume_dense)
    text, model_type, family, pruned = read.text, read.model_type, read.family, read.pruned
    fields = ConfigFields(text, model_type, family)
    fields.require(required(family))
    check_only(fields, family, model_type)
    layers = fields.whole("num_hidden_layers", least=1, most=MAX_LAYERS)
    sparse = has_experts(fields, layers) if family.experts else (False,) * layers
    mixed = mixed_modules(fields, family, sparse) if pruned is None else whole_mixed(pruned)
    mla = latent_attention(fields, family.absorbed) if family.latent else None
    listed = family.hybrid is None and family.special != "deepseek_v4"
    slides = windows(fields, family, layers) if listed else (None,) * layers
    plain = family.hybrid is None and mla is None
    special = special_attention(fields, family, slides) if plain else Special(())
    kinds = special.kinds
    dense = mixed.ffn.count(False)
    widths = pruned.widths if pruned is not None else dense_widths(fields, family, dense)
    experts = experts_of(fields, family)
    quantization = quantization_of(config, text)
    stored = modules(mixed, sparse, family, mla is not None)
    told = replace(stored, model_type=model_type, expert_dtype=text.get("expert_dtype"))
    weights = stored_weights(quantization, weight_bits, told)
    heads = kinds[0].heads if kinds else fields.whole("num_attention_heads", least=1)
    diffusion = family.diffusion or config.get("canvas_length") is not None
    return ModelShape(
        name=name or name_of(config, model_type),
        num_layers=layers,
        hidden_size=fields.whole("hidden_size", least=1),
        intermediate_size=mean_width(widths),
        num_attention_heads=heads,
        num_kv_heads=(
            kinds[0].kv_heads if kinds else fields.whole("num_key_value_heads", heads, least=1)
        ),
        head_dim=head_dim(fields, heads) if mla is None else mla.nope_dim + mla.rope_dim,
        vocab_size=fields.whole("vocab_size", least=1),
        num_dense_layers=dense,
        num_moe_layers=mixed.ffn.count(True),
        num_attention_layers=mixed.attention if not is_uniform(family) else None,
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
        num_experts=experts.count,
        experts_per_token=experts.per_token,
        idle_experts=experts.idle,
        moe_intermediate_size=experts.width,
        num_shared_experts=experts.shared,
        shared_intermediate_size=experts.shared_width,
        shared_expert_gate=family.shared_expert_gate and experts.shared_width > 0,
        gated_ffn=family.gated_ffn,
        sliding_window=next((window for window in slides if window is not None), None),
        num_sliding_layers=sum(window is not None for window in slides),
        tied_embeddings=tied(config, fields),
        decoding="bidirectional_block" if diffusion else "causal",
        diffusion_block_size=block_size(fields) if diffusion else None,
        quantization=weights.quantization,
        weight_bytes=weights.attention,
        dense_weight_bytes=unless(weights.attention, weights.dense_ffn),
        shared_weight_bytes=unless(weights.attention, weights.shared),
        expert_weight_bytes=weights.experts,
        recurrent_weight_bytes=unless(weights.attention, weights.recurrent),
        lm_head_weight_bytes=2.0 if tied(config, fields) else weights.lm_head,
        kv_bytes=kv_bytes(kv_bits, quantization),
        mla=mla,
        indexer=(
            indexer(fields, mixed.attends[:layers], mla)
            if family.indexed and mla
            else special.indexer
        ),
        assumptions=(
            *by_class(config, text, model_type),
            *_taken_for_granted(fields, family, config, special, mixed),
            *((SPARSE_ASSUMED,) if family.indexed or special.indexer else ()),
            *assumptions(text, model_type, read.listed_as),
            *weights.assumed,
        ),
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        expert_parallel=expert_parallel,
    )


def _read(config: Mapping[str, object], assume_dense: bool) -> _Read:
    text = text_config(config)
    model_type = model_type_of(config, text)
    if text is not config:
        text = {**NESTED_SIZES.get(model_type, {}), **text}
    listed_as = family_of(text, model_type, assume_dense)
    if listed_as.hybrid == "nemotron_h":
        text = with_layer_count(text)
    pruned = pruned_layers(text) if listed_as.pruned else None
    if pruned is not None:
        text = as_if_whole(text, pruned)
    family = without_experts(ConfigFields(text, model_type, listed_as), listed_as)
    return _Read(text, model_type, listed_as, family, pruned)


def _taken_for_granted(
    fields: ConfigFields,
    family: Family,
    config: Mapping[str, object],
    special: Special,
    mixed: Mixed,
) -> tuple[str, ...]:
    """Sentences on layers whose kernels were never timed, and on what is left out."""
    sizes = {(part.head_dim, part.value_dim) for part in special.kinds}
    uneven = len(sizes) > 1 or any(keys != values for keys, values in sizes)
    towers = encoders(config)
    return (
        *(
            (f"Sizes are those of the language model, without {', '.join(towers)}.",)
            if towers
            else ()
        ),
        *((_UNEVEN,) if uneven else ()),
        *special.assumed,
        *family.assumed,
        *((_IDLE_EXPERTS,) if fields.get("zero_expert_num") else ()),
        *((ASSUMED,) if mixed.recurrent else ()),
    )
