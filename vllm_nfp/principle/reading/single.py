"""Single fields of a config, and what it must have."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.pruned import Pruned
from vllm_nfp.principle.reading.unknown import DENSE, MEASURE, REQUIRED
from vllm_nfp.principle.sizes import ShapeError, shown
from vllm_nfp.principle.weights.cache import stored_kv_bits
from vllm_nfp.principle.weights.scheme import check_bits

_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


def required(family: Family) -> tuple[str, ...]:
    """Fields that a config of the family must have."""
    needed = (*REQUIRED, *_EXPERTS) if family.experts else DENSE
    left_out = {"intermediate_size"} if family.width_factor else set()
    return tuple(name for name in needed if name not in left_out)


def check_only(fields: ConfigFields, family: Family, model_type: str) -> None:
    """Refuse a config whose fields have values that the family's entry does not describe.

    Raises:
        ShapeError: naming the field.
    """
    for name, only in family.only.items():
        value = fields.get(name)
        told = fields.get(only[1:]) if isinstance(only, str) and only[:1] == "=" else only
        if value is not None and value != told:
            raise ShapeError(
                f"{name} of a {model_type} config must be {told!r}, not {shown(value)}: "
                f"the shape describes no other. {MEASURE}"
            )


def as_if_whole(text: Mapping[str, object], pruned: Pruned) -> Mapping[str, object]:
    """The config with the fields of Llama that its blocks imply."""
    heads = text.get("num_attention_heads")
    kv_heads = heads // pruned.group if isinstance(heads, int) else None
    rest = {name: value for name, value in text.items() if name != "block_configs"}
    return {
        **rest,
        "intermediate_size": max(width for _, width in pruned.widths),
        "num_key_value_heads": kv_heads,
    }


def mean_width(widths: tuple[tuple[int, int], ...]) -> int:
    """The width of all dense blocks, or the mean, which only their activation's time is made of."""
    blocks = sum(count for count, _ in widths)
    return round(sum(count * width for count, width in widths) / blocks) if blocks else 0


def tied(config: Mapping[str, object], fields: ConfigFields) -> bool:
    """LM head and embedding are one: as the text part says, or else the wrapper around it."""
    outer = config.get("tie_word_embeddings")
    return fields.flag("tie_word_embeddings", outer if isinstance(outer, bool) else False)


def block_size(fields: ConfigFields) -> int | None:
    """Positions of a diffusion model's block, if the config says."""
    if fields.get("diffusion_block_size") is None:
        return None
    return fields.whole("diffusion_block_size", least=1)


def unless(common: float, own: float) -> float | None:
    """A part's own bytes, or None where they are those of all."""
    return None if own == common else own


def kv_bytes(kv_bits: float | None, quantization: object | None) -> float:
    """Bytes of a cached element: as given, or as the checkpoint says."""
    if kv_bits is None:
        return stored_kv_bits(quantization) / 8
    check_bits("kv_bits", kv_bits)
    return kv_bits / 8
