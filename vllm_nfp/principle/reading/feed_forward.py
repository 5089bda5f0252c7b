"""Feed-forward blocks: which layers have experts, and how wide blocks are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.sizes import MAX_LAYERS, MAX_SIZE, ShapeError, shown

_SPARSE = ("sparse", "moe", "hash_moe")


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one layer; all 0 in a model without."""

    count: int = 0
    per_token: int = 0
    """Of those that do something."""
    idle: int = 0
    """That do nothing, beside the others."""
    width: int = 0
    shared: int = 0
    shared_width: int = 0
    """Of the shared ones together."""


def without_experts(fields: ConfigFields, family: Family) -> Family:
    """The family as a model without experts has it, where the config counts none.

    So do Llama Guard 4, and small Jambas, whose one expert is a dense block.
    """
    most = 1 if family.hybrid == "jamba" else 0
    count = fields.get("num_experts")
    if not family.experts or isinstance(count, bool) or count not in range(most + 1):
        return family
    return replace(family, experts=False, beside_experts=False, shared_expert_gate=False)


def has_experts(fields: ConfigFields, layers: int) -> tuple[bool, ...]:
    """Which layers have experts: by a list of the config, else by the rules of all families."""
    kinds = fields.per_layer("mlp_layer_types", layers)
    if kinds:
        strange = [kind for kind in kinds if kind not in ("dense", *_SPARSE)]
        if strange:
            raise ShapeError(f"mlp_layer_types has {shown(strange[0])}: only dense, sparse known")
        return tuple(kind in _SPARSE for kind in kinds)
    if isinstance(fields.get("moe_layers"), str):
        return _enumerated(str(fields.get("moe_layers")), layers)
    if fields.get("moe_layers") is not None:
        listed = set(fields.whole_items("moe_layers", layers - 1))
        return tuple(index in listed for index in range(layers))
    if isinstance(fields.get("moe_layer_freq"), (list, tuple)):
        fields.per_layer("moe_layer_freq", layers)
        return tuple(flag == 1 for flag in fields.whole_items("moe_layer_freq", 1))
    return _by_rule(fields, layers)


def _enumerated(text: str, layers: int) -> tuple[bool, ...]:
    """Numbers of layers between commas (Step 3)."""
    listed = {part.strip() for part in text.split(",")}
    return tuple(str(index) in listed for index in range(layers))


def _by_rule(fields: ConfigFields, layers: int) -> tuple[bool, ...]:
    """The rules of Qwen-MoE and of DeepSeek and GLM together; fields of the other are absent."""
    dense = set(fields.whole_items("mlp_only_layers", MAX_LAYERS))
    step = fields.whole("decoder_sparse_step", 1, least=1)
    first = fields.whole("first_k_dense_replace", 0)
    every = fields.whole("moe_layer_freq", 1, least=1)
    return tuple(
        index not in dense and (index + 1) % step == 0 and index >= first and index % every == 0
        for index in range(layers)
    )


def experts_of(fields: ConfigFields, family: Family) -> Experts:
    """Number and widths of a layer's experts."""
    if not family.experts:
        return Experts()
    width = fields.whole("moe_intermediate_size", least=1)
    shared, shared_width = _shared_experts(fields, width)
    return Experts(
        count=fields.whole("num_experts", least=1),
        per_token=_experts_per_token(fields),
        idle=fields.whole("zero_expert_num", 0),
        width=width,
        shared=shared,
        shared_width=shared_width,
    )


def _shared_experts(fields: ConfigFields, expert_width: int) -> tuple[int, int]:
    """Number of shared experts of a layer and their width together."""
    width = fields.whole("shared_expert_intermediate_size", 0)
    if width:
        return 1, width
    count = fields.whole("num_shared_experts", 0)
    return count, count * expert_width


def _experts_per_token(fields: ConfigFields) -> int:
    """Of those that do something, if the router picks all of them alike."""
    picked = fields.whole("num_experts_per_tok", least=1)
    experts, idle = fields.whole("num_experts", least=1), fields.whole("zero_expert_num", 0)
    return max(1, round(picked * experts / (experts + idle)))


def dense_widths(fields: ConfigFields, family: Family, layers: int) -> tuple[tuple[int, int], ...]:
    """Layers and width of dense blocks, most layers' first."""
    given = fields.get("intermediate_size")
    if isinstance(given, (list, tuple)) and len(given) == layers:
        widths = Counter(fields.whole_items("intermediate_size", MAX_SIZE))
    else:
        widths = Counter({_width(fields, family): layers})
    if family.special == "gemma" and fields.flag("use_double_wide_mlp", False):
        shared = fields.whole("num_kv_shared_layers", 0, most=layers)
        width = _width(fields, family)
        widths = Counter({width: layers - shared, 2 * width: shared})
    return tuple((count, width) for width, count in widths.most_common() if count)


def _width(fields: ConfigFields, family: Family) -> int:
    """Width of a dense feed-forward block."""
    default = family.width_factor * fields.whole("hidden_size", least=1)
    width = fields.whole("intermediate_size", default)
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
