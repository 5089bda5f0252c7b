"""Bytes per weight of each part of a model, from its quantization_config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.principle.shape import Quantization
from vllm_nfp.principle.sizes import ShapeError, shown
from vllm_nfp.principle.weights import (
    compressed_tensors,
    integers,
    modelopt,
    paths,
    quark,
    torchao,
)
from vllm_nfp.principle.weights.rules import Rules, uniform
from vllm_nfp.principle.weights.scheme import (
    FP8,
    FP8_BLOCK,
    GIVE,
    MIXED,
    MXFP4,
    NVFP4,
    PLAIN_BITS,
    Scheme,
    UnreadError,
)


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers have which modules, by their numbers.

    Attributes:
        attention, recurrent, dense, sparse: layers with attention to a cache, a state, a dense
            block, and experts.
        latent: attention is latent.
        kind: how recurrent layers are named.
        gated: feed-forward blocks have a gate.
        beside: experts are no part of the feed-forward module.
        model_type: the family's name, which decides how DeepSeek V4 stores its experts.
        expert_dtype: the config's field of this name.
    """

    attention: Sequence[int]
    recurrent: Sequence[int] = ()
    dense: Sequence[int] = ()
    sparse: Sequence[int] = ()
    latent: bool = False
    kind: str = ""
    beside: bool = False
    gated: bool = True
    model_type: str = ""
    expert_dtype: object = None


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Bytes per weight of each part."""

    quantization: Quantization
    attention: float
    dense_ffn: float
    shared: float
    experts: float
    recurrent: float
    lm_head: float = PLAIN_BITS / 8
    assumed: tuple[str, ...] = ()
    """Sentences on what the kernels are taken to do."""


def quantization_of(config: Mapping[str, object], text: Mapping[str, object]) -> object | None:
    """The config's own description of its stored weights, if any."""
    for part in (config, text):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                return part[key]
    return None


def stored_weights(given: object | None, weight_bits: float, layers: Layers) -> StoredWeights:
    """How each part is stored.

    Args:
        given: the quantization_config, or None.
        weight_bits: bits of linear weights that ``given`` says nothing of; other than 16, also
            what to assume where ``given`` has no reading.
        layers: the model's layers.

    Raises:
        ShapeError: if there is no reading, or a field is of another type than it must be.
    """
    if given is None:
        return _uniform(weight_bits)
    if not isinstance(given, Mapping):
        raise ShapeError(f"quantization_config must be an object, not {shown(given)}")
    try:
        rules = _rules(modelopt.flat(given), layers)
        if rules is None:
            return _gpt_oss(weight_bits)
        return _parts(rules, layers)
    except UnreadError:
        if weight_bits != PLAIN_BITS:
            return _uniform(weight_bits)
        raise


def is_read(given: object, layers: int) -> bool:
    """A quantization_config has a reading for a model of so many layers."""
    try:
        every = range(layers)
        stored_weights(given, PLAIN_BITS, Layers(every, every, every, every))
    except UnreadError:
        return False
    except ShapeError:
        return True
    return True


def _uniform(bits: float) -> StoredWeights:
    """8 bits are FP8, fewer are whole numbers multiplied in 16 bits."""
    kind: Quantization = "none" if bits > 8 else "fp8" if bits == 8 else "wna16"
    return StoredWeights(kind, bits / 8, bits / 8, bits / 8, bits / 8, bits / 8)


def _gpt_oss(weight_bits: float) -> StoredWeights:
    """MXFP4 experts, and all else as it is."""
    rest = weight_bits / 8
    return StoredWeights("mxfp4", rest, rest, rest, MXFP4.bits / 8, rest)


def _rules(given: Mapping[str, object], layers: Layers) -> Rules | None:
    """Who has which format; None: only the experts have one, in MXFP4.

    Raises:
        UnreadError: for a format that is not known.
    """
    method = given.get("quant_method", "")
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return None
    rules = _by_method(given, method, layers)
    if rules is None and isinstance(method, str) and method in _READERS:
        raise UnreadError(
            f"quantization {shown(method)} has {_unread(given)}. To assume one, {GIVE}"
        )
    if rules is None:
        raise UnreadError(
            f"quantization {shown(method)} is not recognised (fp8, gptq, awq, mxfp4, modelopt, "
            f"compressed-tensors, auto-round, bitsandbytes, quark, torchao): {GIVE}"
        )
    rules.check_effort(max((*layers.attention, *layers.recurrent), default=0) + 1)
    return rules


def _unread(given: Mapping[str, object]) -> str:
    """What of a known method is not read, by the field that names the format."""
    told = next((name for name in _FORMATS if given.get(name)), None)
    if told is None:
        return "no format that is read"
    value = given[told]
    return f"a {told} that is not read" + (f": {shown(value)}" if isinstance(value, str) else "")


def _by_method(given: Mapping[str, object], method: object, layers: Layers) -> Rules | None:
    if method in ("fp8", "fbgemm_fp8", "deepseek_v4_fp8"):
        return _fp8(given, layers)
    reader = _READERS.get(method) if isinstance(method, str) else None
    return None if reader is None else reader(given)


def _fp8(given: Mapping[str, object], layers: Layers) -> Rules:
    """FP8, of which DeepSeek V4 stores its experts in FP4 unless its config says otherwise."""
    scheme = FP8_BLOCK if given.get("weight_block_size") else FP8
    if layers.model_type.lower() != "deepseek_v4":
        return uniform(given, scheme)
    experts = None if layers.expert_dtype == "fp8" else MXFP4
    if str(given.get("moe_quant_algo")).upper() == "NVFP4":
        experts = NVFP4
    # Its lists of ignored modules are those of ModelOpt, about the experts alone.
    return Rules((), scheme, experts)


def _parts(rules: Rules, layers: Layers) -> StoredWeights:
    """The mean over the layers and modules of each part."""
    found: set[Scheme] = set()

    def mean(indices: Sequence[int], modules: Sequence[str], other: float) -> float:
        bits = []
        for index in indices:
            for module in modules:
                scheme = rules.scheme(index, module)
                bits.append(PLAIN_BITS if scheme is None else scheme.bits)
                if scheme is not None:
                    found.add(scheme)
        return sum(bits) / len(bits) / 8 if bits else other

    rest = PLAIN_BITS / 8 if rules.rest is None else rules.rest.bits / 8
    attention = paths.LATENT if layers.latent else paths.ATTENTION
    expert = paths.BESIDE if layers.beside else paths.EXPERTS
    parts = (
        mean(layers.attention, attention, rest),
        mean(layers.dense, paths.feed_forward(paths.DENSE, layers.gated), rest),
        mean(layers.sparse, paths.feed_forward(paths.SHARED, layers.gated), rest),
        mean(layers.sparse, paths.feed_forward(expert, layers.gated), rest),
        mean(layers.recurrent, paths.recurrent(layers.kind), rest),
    )
    head = rules.of_head()
    if rules.rest is not None and not found:
        found.add(rules.rest)
    kind, assumed = _together(found)
    return StoredWeights(kind, *parts, PLAIN_BITS / 8 if head is None else head.bits / 8, assumed)


def _together(found: set[Scheme]) -> tuple[Quantization, tuple[str, ...]]:
    """How products run where modules have these formats, and what that takes for granted."""
    kinds = {scheme.kind for scheme in found}
    told = {sentence: None for scheme in _sorted(found) for sentence in scheme.assumed}
    if kinds <= {"fp8", "fp8_block"}:
        return ("none" if not kinds else "fp8" if "fp8" in kinds else "fp8_block"), tuple(told)
    if len(kinds) > 1:
        told[MIXED] = None
    return "wna16", tuple(told)


def _sorted(found: set[Scheme]) -> list[Scheme]:
    return sorted(found, key=lambda scheme: (scheme.bits, scheme.assumed))


_FORMATS = ("quant_algo", "format", "quant_type", "global_quant_config", "forward_dtype")
"""Fields in which a method names its format."""
_READERS: Mapping[str, Callable[[Mapping[str, object]], Rules | None]] = {
    **dict.fromkeys(
        ("modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"), modelopt.read
    ),
    **dict.fromkeys(
        ("gptq", "awq", "gptq_marlin", "awq_marlin", "moe_wna16", "auto_gptq", "auto_awq"),
        integers.gptq,
    ),
    **dict.fromkeys(("auto-round", "auto_round", "inc"), integers.auto_round),
    "bitsandbytes": integers.bitsandbytes,
    "fp_quant": integers.fp_quant,
    "experts_int8": integers.experts_int8,
    "quark": quark.read,
    "torchao": torchao.read,
    "compressed-tensors": compressed_tensors.read,
}
"""By the name that vLLM 0.32 gives a method (layers/quantization)."""
