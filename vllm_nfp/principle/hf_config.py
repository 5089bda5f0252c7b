"""Hugging Face config.json to :class:`ModelShape`, for the families listed here and no other.

Field names, and the defaults of fields that a config.json may leave out, are those of the
configuration classes in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm_nfp.principle.shape import LatentAttention, ModelShape, Quantization, ShapeError

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_DENSE = (*_REQUIRED, "intermediate_size")
_MAX_LAYERS = 4096
_MAX_SIZE = 1 << 32
_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family's config differs from Llama's."""

    experts: bool = False
    expert_width: str = "moe_intermediate_size"
    latent: bool = False
    window: Literal["none", "all", "upper", "pattern"] = "none"
    """Sliding layers: all; those from max_window_layers on; all but every pattern-th."""
    pattern: int = 0
    defaults: Mapping[str, object] = field(default_factory=dict)


_GEMMA = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
_GEMMA2 = _Family(window="pattern", pattern=2, defaults={**_GEMMA, "vocab_size": 256000})
_GEMMA3 = _Family(window="pattern", pattern=6, defaults={**_GEMMA, "vocab_size": 262208})
_DEEPSEEK = _Family(experts=True, latent=True)

_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "qwen2": _Family(window="upper"),
    "qwen3": _Family(window="upper", defaults={"head_dim": 128}),
    "mistral": _Family(window="all"),
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": _Family(window="all"),
    "mixtral": _Family(experts=True, expert_width="intermediate_size", window="all"),
    "qwen3_moe": _Family(experts=True, window="upper"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": _Family(
        experts=True,
        expert_width="intermediate_size",
        window="pattern",
        pattern=2,
        defaults={"head_dim": 64},
    ),
    "glm4_moe": _Family(experts=True),
}


@dataclass(frozen=True, slots=True)
class _Weights:
    """Storage of the linear weights."""

    quantization: Quantization
    bits: float
    expert_bits: float


def shape_from_config(
    config: Mapping[str, object],
    *,
    weight_bits: float = 16,
    kv_bits: float = 16,
    tensor_parallel_size: int = 1,
    assume_dense: bool = False,
    name: str = "",
) -> ModelShape:
    """The shape of a model from its config.json, with a nested ``text_config`` followed.

    Args:
        config: the parsed config.json, or ``to_dict()`` of a transformers configuration.
        weight_bits: bits per linear weight where the config has no quantization_config that
            says so; 8 means FP8 weights and arithmetic, less means 16-bit arithmetic.
        kv_bits: bits per element of the KV cache.
        tensor_parallel_size: ranks that share every layer.
        assume_dense: read an unknown model_type as a Llama-like dense model.
        name: the model's name; by default the config's own.

    Raises:
        ShapeError: for an unknown family, missing fields, or sizes that cannot be.
    """
    text = _text_config(config)
    model_type = str(text.get("model_type", config.get("model_type", "")))
    family = _family(text, model_type, assume_dense)
    fields = _Fields({**family.defaults, **_given(text)}, model_type)
    fields.require((*_REQUIRED, family.expert_width) if family.experts else _DENSE)
    if family.latent:
        fields.require(_LATENT)
    weights = _weights(config, text, weight_bits)
    layers = fields.positive("num_hidden_layers", most=_MAX_LAYERS)
    heads = fields.positive("num_attention_heads")
    mla = _latent(fields) if family.latent else None
    window, sliding = _sliding(fields, family, layers)
    expert_layers = _expert_layers(fields, layers) if family.experts else 0
    expert_width = fields.whole(family.expert_width) if family.experts else 0
    shared = fields.whole("n_shared_experts", 0) if family.experts else 0
    return ModelShape(
        name=name or str(config.get("_name_or_path") or model_type),
        num_layers=layers,
        hidden_size=fields.whole("hidden_size"),
        intermediate_size=fields.whole("intermediate_size", 0),
        num_attention_heads=heads,
        num_kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=(
            mla.nope_dim + mla.rope_dim
            if mla is not None
            else fields.whole("head_dim", fields.whole("hidden_size") // heads)
        ),
        vocab_size=fields.whole("vocab_size"),
        num_dense_layers=layers - expert_layers,
        num_moe_layers=expert_layers,
        num_experts=fields.first(_EXPERT_COUNTS) if family.experts else 0,
        experts_per_token=(
            fields.first(("num_experts_per_tok", "experts_per_token")) if family.experts else 0
        ),
        moe_intermediate_size=expert_width,
        num_shared_experts=shared,
        shared_intermediate_size=shared * expert_width,
        sliding_window=window,
        num_sliding_layers=sliding,
        tied_embeddings=fields.flag(
            "tie_word_embeddings", bool(config.get("tie_word_embeddings", False))
        ),
        quantization=weights.quantization,
        weight_bytes=weights.bits / 8,
        expert_weight_bytes=weights.expert_bits / 8,
        kv_bytes=kv_bits / 8,
        mla=mla,
        tensor_parallel_size=tensor_parallel_size,
    )


class _Fields:
    """Typed reading of a config; a null counts as missing."""

    def __init__(self, values: Mapping[str, object], model_type: str) -> None:
        self._values = values
        self._model_type = model_type

    def require(self, names: tuple[str, ...]) -> None:
        missing = [name for name in names if name not in self._values]
        if missing:
            raise ShapeError(
                f"the {self._model_type or 'unnamed'} config lacks {', '.join(missing)}: "
                f"give a complete config.json"
            )

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ShapeError(f"{name} must be a whole number, not {value!r}")
        if abs(value) > _MAX_SIZE:
            raise ShapeError(f"{name} must be at most {_MAX_SIZE}, not {value}")
        return value

    def positive(self, name: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
        value = self.whole(name, default)
        if not 0 < value <= most:
            raise ShapeError(f"{name} must lie from 1 to {most}, not {value}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise ShapeError(f"{name} must be true or false, not {value!r}")
        return value

    def items(self, name: str) -> list[object]:
        value = self._values.get(name, [])
        if not isinstance(value, (list, tuple)):
            raise ShapeError(f"{name} must be a list, not {value!r}")
        return list(value)

    def first(self, names: tuple[str, ...]) -> int:
        for name in names:
            if name in self._values:
                return self.whole(name)
        raise ShapeError(f"the {self._model_type} config lacks {' or '.join(names)}")


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _family(text: Mapping[str, object], model_type: str, assume_dense: bool) -> _Family:
    family = _FAMILIES.get(model_type)
    if family is not None:
        return family
    missing = [name for name in _DENSE if text.get(name) is None]
    lacks = f"it lacks {', '.join(missing)}" if missing else "all dense fields are there"
    if not assume_dense:
        raise ShapeError(
            f"model_type {model_type!r} is not a known family ({', '.join(sorted(_FAMILIES))}) "
            f"and {lacks}: say assume_dense=True if it is built like Llama"
        )
    experts = [name for name in _EXPERT_COUNTS if text.get(name)]
    if experts:
        raise ShapeError(
            f"model_type {model_type!r} has {experts[0]} {text[experts[0]]!r}: "
            f"it cannot be read as dense"
        )
    return _Family()


def _expert_layers(fields: _Fields, layers: int) -> int:
    """Layers with experts, by the rules of Qwen3-MoE and of DeepSeek and GLM together."""
    dense = set(fields.items("mlp_only_layers"))
    step = fields.positive("decoder_sparse_step", 1)
    first = fields.whole("first_k_dense_replace", 0)
    every = fields.positive("moe_layer_freq", 1)
    return sum(
        index not in dense and (index + 1) % step == 0 and index >= first and index % every == 0
        for index in range(layers)
    )


def _sliding(fields: _Fields, family: _Family, layers: int) -> tuple[int | None, int]:
    """Window in tokens and number of layers that have it."""
    kinds = fields.items("layer_types")
    strange = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if strange:
        raise ShapeError(f"layer_types has {strange[0]!r}: only full and sliding attention known")
    window = fields.whole("sliding_window", 0)
    if family.window == "none" or not window:
        return None, 0
    if family.window == "upper" and not fields.flag("use_sliding_window", False):
        return None, 0
    if kinds:
        count = kinds.count("sliding_attention")
    elif family.window == "upper":
        count = max(0, layers - fields.whole("max_window_layers", layers))
    elif family.window == "pattern":
        count = layers - layers // fields.positive("sliding_window_pattern", family.pattern)
    else:
        count = layers
    return (window, count) if count else (None, 0)


def _latent(fields: _Fields) -> LatentAttention:
    q_rank = fields.whole("q_lora_rank", 0)
    return LatentAttention(
        q_rank=fields.positive("q_lora_rank") if q_rank else 0,
        kv_rank=fields.positive("kv_lora_rank"),
        nope_dim=fields.positive("qk_nope_head_dim"),
        rope_dim=fields.positive("qk_rope_head_dim"),
        value_dim=fields.positive("v_head_dim"),
    )


def _weights(
    config: Mapping[str, object], text: Mapping[str, object], weight_bits: float
) -> _Weights:
    given = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(given, Mapping):
        return _weights_of_bits(weight_bits)
    method = str(given.get("quant_method", ""))
    if method in ("fp8", "fbgemm_fp8"):
        return _Weights("fp8_block" if given.get("weight_block_size") else "fp8", 8, 8)
    if method == "mxfp4":
        # Experts only; 4 bits and one 8-bit scale for every 32 (OCP Microscaling format).
        return _Weights("mxfp4", weight_bits, 4 + 8 / 32)
    if method in ("gptq", "awq", "gptq_marlin", "awq_marlin"):
        return _grouped(given.get("bits", given.get("w_bit")), given.get("group_size"))
    if method == "compressed-tensors":
        found = _compressed_tensors(given)
        if found is not None:
            return found
    if weight_bits != 16:
        return _weights_of_bits(weight_bits)
    raise ShapeError(
        f"quantization {method!r} is not recognised (fp8, gptq, awq, mxfp4, plain "
        f"compressed-tensors): give weight_bits"
    )


def _weights_of_bits(bits: float) -> _Weights:
    """8 bits are FP8, fewer are whole numbers multiplied in 16 bits."""
    quantization: Quantization = "none" if bits > 8 else "fp8" if bits == 8 else "wna16"
    return _Weights(quantization, bits, bits)


def _grouped(bits: object, group: object) -> _Weights:
    """GPTQ or AWQ: whole bits and a 16-bit scale for every group; zero points left out."""
    if not isinstance(bits, int) or isinstance(bits, bool) or bits <= 0:
        raise ShapeError(f"bits of quantization_config must be a whole number, not {bits!r}")
    scale = 16 / group if isinstance(group, int) and group > 0 else 0
    return _Weights("wna16", bits + scale, bits + scale)


def _compressed_tensors(given: Mapping[str, object]) -> _Weights | None:
    """Weights of the first group if they are FP8 with FP8 activations, or integers alone."""
    groups = given.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    kind, bits, activations = weights.get("type"), weights.get("num_bits"), "input_activations"
    if kind == "float" and bits == 8 and group.get(activations):
        return _Weights("fp8_block" if weights.get("strategy") == "block" else "fp8", 8, 8)
    if kind == "int" and not group.get(activations):
        return _grouped(bits, weights.get("group_size"))
    return None
