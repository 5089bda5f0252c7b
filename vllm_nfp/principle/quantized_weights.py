"""Bytes per weight of each part of a model, from the quantization_config of its config.json.

Read: fp8 and fbgemm_fp8 (per tensor, per channel, per block), modelopt FP8 and NVFP4 (alike in all
layers or layer by layer), compressed-tensors with FP8, integer or FP4 weights, GPTQ, AWQ,
auto-round, 4-bit bitsandbytes, and mxfp4 experts. FP4 weights are taken to multiply in 16 bits and
8-bit integers to take the time of FP8; the result says so. Whatever else a checkpoint may say is
refused, since no kernel model here describes it; ``weight_bits`` then says what to assume.

Parts that the config leaves in 16 bits are found by name: entries of its ignore lists are whole
module paths, parts of one between dots (``self_attn``), wildcards, or ``re:`` expressions. A part
that is quantized in some layers or modules only has the mean over them, each counting alike. The
router always has 16 bits; embedding and LM head have, unless GPTQ's ``lm_head`` is true.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.principle.shape import Quantization, ShapeError, shown

_PLAIN_BYTES = 2.0
_GIVE = "give weight_bits (--quantization fp8 or int4)"
_IGNORE_KEYS = (
    "ignored_layers",
    "modules_to_not_convert",
    "ignore",
    "exclude_modules",
    "llm_int8_skip_modules",
)
_MAX_EFFORT = 512
"""Expressions asked for each module: a bound on the time that a hostile config may take."""
_MAX_PATTERN_LENGTH = 200
_MAX_REPETITIONS = 3
_MAX_ALTERNATIVES = 8
_READABLE_PATTERN = re.compile(r"[\w\s.\\^$|\[\]*+?:,-]*", re.ASCII)
_LITERAL_GROUP = re.compile(r"(?<!\\)\((?:\?:)?(?:[\w|-]|\\[.\w])*\)", re.ASCII)
_REPETITION = re.compile(r"(?<!\\d)(?<!\[0-9\])(?<![\\(])[*+?]")

_BLOCKS = ("mlp", "block_sparse_moe", "feed_forward")
"""Names of a layer's feed-forward module."""
_GATED = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("qkv_proj",),
    "k_proj": ("qkv_proj",),
    "v_proj": ("qkv_proj",),
    "o_proj": ("dense",),
    "q_a_proj": ("fused_qkv_a_proj",),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj",),
    "q_b_proj": ("q_proj",),
    "gate_proj": ("gate_up_proj", "w1"),
    "up_proj": ("gate_up_proj", "w3", "fc1"),
    "down_proj": ("w2", "fc2"),
}
"""What a matrix is called where it is merged with its neighbours, or in other families."""
_TEXT_PREFIXES = ("model.", "model.language_model.", "language_model.model.")


@dataclass(frozen=True, slots=True)
class Layers:
    """Which modules a model has, for the ignore lists."""

    has_experts: tuple[bool, ...]
    """Whether the layer has routed experts, one entry for each."""
    latent: bool = False


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Bytes per weight of each part."""

    quantization: Quantization
    attention: float
    dense_ffn: float
    shared: float
    experts: float
    lm_head: float = _PLAIN_BYTES
    assumed: tuple[str, ...] = ()
    """Sentences on what the kernels are taken to do."""


class _UnreadError(ShapeError):
    """The quantization_config says something that has no reading here."""


Skipped = Callable[[int, str], bool]
"""Whether a layer's module, by its path within the layer, is left in 16 bits."""


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
        return _read(_flat(given), weight_bits, layers)
    except _UnreadError:
        if weight_bits != 16:
            return _uniform(weight_bits)
        raise


def _flat(given: Mapping[str, object]) -> Mapping[str, object]:
    """ModelOpt's older form, which nests all under ``quantization`` and names no method."""
    nested = given.get("quantization")
    flat = {**given, **nested} if isinstance(nested, Mapping) else given
    if isinstance(flat.get("quant_algo"), str) and not flat.get("quant_method"):
        return {**flat, "quant_method": "modelopt"}
    return flat


def is_read(given: object, layers: int) -> bool:
    """A quantization_config has a reading for a model of so many layers."""
    try:
        stored_weights(given, 16, Layers((True,) * layers))
    except _UnreadError:
        return False
    except ShapeError:
        return True
    return True


def stored_kv_bits(given: object | None) -> float:
    """Bits per cached element that a checkpoint asks for; 16 unless it has an FP8 scheme.

    vLLM follows ``kv_cache_scheme`` where its own ``--kv-cache-dtype`` is auto.

    Raises:
        ShapeError: for a scheme other than 8-bit floats.
    """
    if not isinstance(given, Mapping):
        return 16
    scheme = given.get("kv_cache_scheme")
    if scheme == "FP8":
        return 8
    given = _flat(given)
    if scheme is None:
        return 8 if given.get("kv_cache_quant_algo") == "FP8" else 16
    if isinstance(scheme, Mapping) and scheme.get("type") == "float":
        bits = scheme.get("num_bits")
        if isinstance(bits, int) and bits == 8:
            return 8
    raise ShapeError(f"kv_cache_scheme {shown(scheme)} is not of 8-bit floats: give kv_bits")


def _uniform(bits: float) -> StoredWeights:
    """8 bits are FP8, fewer are whole numbers multiplied in 16 bits."""
    kind: Quantization = "none" if bits > 8 else "fp8" if bits == 8 else "wna16"
    return StoredWeights(kind, bits / 8, bits / 8, bits / 8, bits / 8)


def _read(given: Mapping[str, object], weight_bits: float, layers: Layers) -> StoredWeights:
    method = given.get("quant_method", "")
    if method in ("mxfp4", "gpt_oss_mxfp4"):  # vLLM calls it so for that family
        # Experts only; 4 bits and one 8-bit scale for every 32 (OCP Microscaling format).
        rest = weight_bits / 8
        return StoredWeights("mxfp4", rest, rest, rest, (4 + 8 / 32) / 8)
    if given.get("quant_algo") == "MIXED_PRECISION":
        kind, bits_of, assumed = _by_layer(given)
        bits = 8 * _PLAIN_BYTES
    else:
        kind, bits, assumed = _format(given, method)
        skipped = _skipped(given, layers)

        def bits_of(index: int, module: str) -> float:
            return 8 * _PLAIN_BYTES if skipped(index, module) else bits

    def mean(layer_indices: Sequence[int], modules: Sequence[str]) -> float:
        found = [bits_of(index, module) for index in layer_indices for module in modules]
        return sum(found) / len(found) / 8 if found else bits / 8

    everywhere = range(len(layers.has_experts))
    dense = [index for index in everywhere if not layers.has_experts[index]]
    sparse = [index for index in everywhere if layers.has_experts[index]]
    return StoredWeights(
        kind,
        attention=mean(everywhere, _paths("self_attn", _LATENT if layers.latent else _ATTENTION)),
        dense_ffn=mean(dense, _paths("ffn", _GATED)),
        shared=mean(sparse, _paths("ffn.shared_experts", _GATED)),
        experts=mean(sparse, _paths("ffn.experts.0", _GATED)),
        lm_head=bits / 8 if given.get("lm_head") is True else _PLAIN_BYTES,
        assumed=assumed,
    )


_Format = tuple[Quantization, float, tuple[str, ...]]
_FP4 = "FP4 weights multiply in 16 bits, as on GPUs before Blackwell."
_INT8 = "8-bit integer weights and activations take the time of FP8."
_BITSANDBYTES = "bitsandbytes takes the time of GPTQ and AWQ kernels; its own are slower."
_MIXED = "Of weights with several formats, FP8 ones multiply in 16 bits too."
_ALGORITHMS: Mapping[str, _Format] = {
    "FP8": ("fp8", 8, ()),
    "FP8_PB_WO": ("fp8_block", 8, ()),
    # An 8-bit scale for every 16 weights (NVFP4) or 32 (MXFP8).
    "NVFP4": ("wna16", 4 + 8 / 16, (_FP4,)),
    "W4A16_NVFP4": ("wna16", 4 + 8 / 16, ()),
    "MXFP8": ("fp8", 8 + 8 / 32, ()),
}
"""ModelOpt's names of formats."""


def _by_layer(
    given: Mapping[str, object],
) -> tuple[Quantization, Callable[[int, str], float], tuple[str, ...]]:
    """ModelOpt's mixed precision: a format for each module that ``quantized_layers`` names."""
    named = given.get("quantized_layers")
    entries = named if isinstance(named, Mapping) else {}
    by_name: dict[str, list[str]] = {}
    for path, entry in entries.items():
        algorithm = entry.get("quant_algo") if isinstance(entry, Mapping) else None
        if algorithm not in _ALGORITHMS or not isinstance(path, str) or "*" in path:
            raise _UnreadError(
                f"quantized_layers has {shown(path)} with {shown(algorithm)}, which is not read: "
                f"{_GIVE}"
            )
        by_name.setdefault(str(algorithm), []).append(path)
    if not by_name:
        raise _UnreadError(f"quant_algo is MIXED_PRECISION without quantized_layers: {_GIVE}")
    names = {algorithm: _Names(paths) for algorithm, paths in by_name.items()}

    def bits_of(index: int, module: str) -> float:
        found = (a for a, listed in names.items() if listed.match(index, module))
        algorithm = next(found, None)
        return 8 * _PLAIN_BYTES if algorithm is None else _ALGORITHMS[algorithm][1]

    if set(names) <= {"FP8", "MXFP8", "FP8_PB_WO"}:
        return "fp8", bits_of, ()
    return "wna16", bits_of, (_FP4, *((_MIXED,) if len(names) > 1 else ()))


def _format(given: Mapping[str, object], method: object) -> _Format:
    """Kind and bits of a quantized weight."""
    if method in ("fp8", "fbgemm_fp8"):
        return ("fp8_block" if given.get("weight_block_size") else "fp8"), 8, ()
    if method in ("modelopt", "modelopt_fp4") and given.get("quant_algo") in _ALGORITHMS:
        return _ALGORITHMS[str(given["quant_algo"])]
    if method in ("gptq", "awq", "gptq_marlin", "awq_marlin"):
        return (*_grouped(given.get("bits", given.get("w_bit")), given.get("group_size")), ())
    if method in ("auto-round", "inc") and not given.get("extra_config"):
        return (*_grouped(given.get("bits"), given.get("group_size")), ())
    if method == "bitsandbytes" and given.get("load_in_4bit") is True:
        # A 32-bit scale for every 64 weights, itself in 8 bits with double quantization.
        scale = (8 if given.get("bnb_4bit_use_double_quant") else 32) / 64
        return "wna16", 4 + scale, (_BITSANDBYTES,)
    if method == "compressed-tensors":
        found = _compressed_tensors(given)
        if found is not None:
            return found
    raise _UnreadError(
        f"quantization {shown(method)} is not recognised (fp8, gptq, awq, mxfp4, modelopt, "
        f"compressed-tensors, auto-round, 4-bit bitsandbytes): {_GIVE}"
    )


def _grouped(bits: object, group: object) -> tuple[Quantization, float]:
    """GPTQ or AWQ: whole bits and a 16-bit scale for every group; zero points left out."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 0 < bits <= 8:
        raise ShapeError(
            f"bits of quantization_config must be a whole number from 1 to 8, not {shown(bits)}"
        )
    scale = 16 / group if isinstance(group, int) and 0 < group < 1 << 32 else 0
    return "wna16", bits + scale


def _compressed_tensors(given: Mapping[str, object]) -> _Format | None:
    """Weights in 8 bits with their activations, or in fewer bits, alike in every group."""
    readings = {_group(group) for group in _groups(given)}
    return readings.pop() if len(readings) == 1 else None


def _groups(given: Mapping[str, object]) -> list[Mapping[str, object]]:
    groups = given.get("config_groups")
    if not isinstance(groups, Mapping):
        return []
    return [group for group in groups.values() if isinstance(group, Mapping)]


def _group(group: Mapping[str, object]) -> _Format | None:
    weights, activations = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        return None
    kind, bits = weights.get("type"), weights.get("num_bits")
    if kind == "float" and bits == 8 and activations:
        return ("fp8_block" if weights.get("strategy") == "block" else "fp8"), 8, ()
    if kind == "float" and bits == 4 and weights.get("group_size") in (16, 32):
        return "wna16", 4 + 8 / (16 if weights.get("group_size") == 16 else 32), (_FP4,)
    if kind == "int" and bits == 8 and activations:
        return "fp8", 8, (_INT8,)
    if kind == "int" and not activations:
        return (*_grouped(bits, weights.get("group_size")), ())
    return None


def _paths(parent: str, modules: Sequence[str]) -> list[str]:
    return [f"{parent}.{module}" for module in modules]


def _skipped(given: Mapping[str, object], layers: Layers) -> Skipped:
    """The reading of all lists of the config that name modules."""
    listed = [entry for key in _IGNORE_KEYS for entry in _strings(given, key)]
    ignored = _Names(listed + [f"re:{entry}" for entry in _dynamic(given)])
    wanted = _Names(_targets(given))
    count = len(layers.has_experts)
    if sum(names.effort(count) for names in (ignored, wanted)) > _MAX_EFFORT:
        raise _UnreadError(
            f"quantization_config has too many expressions for {count} layers: {_GIVE}"
        )

    def skipped(index: int, module: str) -> bool:
        if not wanted.empty and not wanted.match(index, module):
            return True
        return ignored.match(index, module)

    return skipped


def _strings(given: Mapping[str, object], key: str) -> list[str]:
    """A list of names, or of lists of names; a missing field is an empty list."""
    found = given.get(key) or []
    if isinstance(found, (list, tuple)):
        flat = [
            name
            for item in found
            for name in (item if isinstance(item, (list, tuple)) else (item,))
        ]
        if all(isinstance(name, str) for name in flat):
            return [str(name) for name in flat]
    raise ShapeError(f"{key} of quantization_config must be a list of names, not {shown(found)}")


def _dynamic(given: Mapping[str, object]) -> list[str]:
    """Expressions of modules that GPTQModel leaves out, of its ``dynamic`` field."""
    rules = given.get("dynamic") or {}
    if not isinstance(rules, Mapping) or not all(
        isinstance(rule, str) and rule.startswith("-:") for rule in rules
    ):
        raise _UnreadError(
            f"dynamic of quantization_config gives some modules bits of their own: {_GIVE}"
        )
    return [str(rule)[2:] for rule in rules]


def _targets(given: Mapping[str, object]) -> list[str]:
    """Names of the only modules that are quantized; none: all linear layers."""
    listed = _strings(given, "modules_in_block_to_quantize")
    targets = [target for group in _groups(given) for target in _strings(group, "targets")]
    return listed if "Linear" in targets else listed + targets


@functools.cache
def _paths_of(module: str) -> tuple[str, ...]:
    """Every path within a layer that a checkpoint may have for a module like ``ffn.up_proj``."""
    parent, _, matrix = module.rpartition(".")
    names = (matrix, *_OTHER_NAMES.get(matrix, ()))
    return tuple(f"{place}.{name}" for place in _places(parent) for name in names)


def _places(parent: str) -> list[str]:
    if not parent.startswith("ffn"):
        return [parent]
    rest = parent.removeprefix("ffn")
    rests = [rest, ".shared_expert"] if rest == ".shared_experts" else [rest]
    return [f"{block}{rest}" for block in _BLOCKS for rest in rests]


@functools.cache
def _runs(module: str) -> frozenset[str]:
    """Every run of whole components of a module's paths: the module and parts around it."""
    return frozenset(
        ".".join(parts[start:stop])
        for parts in (path.split(".") for path in _paths_of(module))
        for start in range(len(parts))
        for stop in range(start + 1, len(parts) + 1)
    )


@functools.cache
def _heads(module: str) -> frozenset[str]:
    """A module's paths and those of the modules around it; an empty one is the whole layer."""
    return frozenset(
        ".".join(parts[:stop])
        for parts in (path.split(".") for path in _paths_of(module))
        for stop in range(len(parts) + 1)
    )


class _Names:
    """A list of module names, as quantization configs write them."""

    def __init__(self, entries: Sequence[str]) -> None:
        plain = {_without_prefix(entry) for entry in entries if not entry.startswith("re:")}
        starts = {entry for entry in plain if _is_start_of_layer(entry)}
        self._starts: defaultdict[str, list[str]] = defaultdict(list)
        for entry in starts:
            self._starts[_layer_number(entry)].append(entry[:-1])
        plain -= starts
        wildcards = {entry for entry in plain if "*" in entry}
        self._everywhere: set[str] = set()
        self._by_layer: defaultdict[str, set[str]] = defaultdict(set)
        for entry in plain - wildcards:
            layers, _, inner = entry.partition(".")
            index, _, rest = inner.partition(".")
            if layers == "layers":
                self._by_layer[index].add(rest)
            else:
                self._everywhere.add(entry)
        expressions = {entry[3:]: _compiled(entry[3:]) for entry in entries if entry[:3] == "re:"}
        expressions |= {entry: re.compile(fnmatch.translate(f"*{entry}")) for entry in wildcards}
        # An expression without a digit says the same of every layer: asked once for a module.
        numbered = {text for text in expressions if any(letter.isdigit() for letter in text)}
        general = [text for text in expressions if text not in numbered]
        self._numbered = [expressions[text] for text in numbered]
        self._general = [expressions[text] for text in general]
        self._effort_each = sum(map(_effort, numbered))
        self._effort_once = sum(map(_effort, general))
        self._general_answers: dict[str, bool] = {}

    @property
    def empty(self) -> bool:
        return not (
            self._everywhere or self._by_layer or self._numbered or self._general or self._starts
        )

    def effort(self, layers: int) -> int:
        """How many expressions have to be asked for each module, slow ones counted as more."""
        return self._effort_once + layers * self._effort_each

    def match(self, index: int, module: str) -> bool:
        """A layer's module, or a module around it, is named."""
        if module not in self._general_answers:
            self._general_answers[module] = not self._everywhere.isdisjoint(
                _runs(module)
            ) or _any_match(self._general, 0, module)
        return (
            self._general_answers[module]
            or not self._by_layer.get(str(index), frozenset()).isdisjoint(_heads(module))
            or self._starts_with(index, module)
            or _any_match(self._numbered, index, module)
        )

    def _starts_with(self, index: int, module: str) -> bool:
        """An entry such as ``layers.7.self_attn*`` names the module."""
        starts = (*self._starts.get(str(index), ()), *self._starts.get("", ()))
        return any(
            f"layers.{index}.{path}".startswith(start)
            for path in (_paths_of(module) if starts else ())
            for start in starts
        )


def _is_start_of_layer(entry: str) -> bool:
    """``layers.N``, perhaps more, and one wildcard at the end."""
    return entry.startswith("layers.") and entry.endswith("*") and entry.count("*") == 1


def _layer_number(entry: str) -> str:
    """The layer of such an entry; empty if the number itself is cut short (``layers.1*``)."""
    number, dot, _ = entry[:-1].removeprefix("layers.").partition(".")
    return number if dot else ""


def _any_match(expressions: Sequence[re.Pattern[str]], index: int, module: str) -> bool:
    return any(
        expression.match(f"{prefix}layers.{index}.{path}")
        for expression in expressions
        for path in _paths_of(module)
        for prefix in _TEXT_PREFIXES
    )


def _without_prefix(entry: str) -> str:
    for prefix in reversed(_TEXT_PREFIXES):
        if entry.startswith(prefix):
            return entry.removeprefix(prefix)
    return entry


def _compiled(expression: str) -> re.Pattern[str]:
    """An expression whose matching takes little time whatever the module's name.

    The time to match grows with a power of the number of repetitions, so it is bounded, and
    groups hold nothing but literal alternatives.
    """
    without_groups = _LITERAL_GROUP.sub("", expression)
    if (
        len(expression) > _MAX_PATTERN_LENGTH
        or not _READABLE_PATTERN.fullmatch(without_groups)
        or _repetitions(expression) > _MAX_REPETITIONS
        or expression.count("|") > _MAX_ALTERNATIVES
        or re.search(r"\)[*+?]", expression)
    ):
        raise _UnreadError(
            f"quantization_config has the expression {shown(expression)}, which is not read: "
            f"{_GIVE}"
        )
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ShapeError(
            f"quantization_config has the expression {shown(expression)}, which is none: {error}"
        ) from None


def _repetitions(expression: str) -> int:
    """Repetitions that the rest of the expression must be tried after, but for those of digits."""
    inner = expression.removesuffix("$").removesuffix(".*")
    return len(_REPETITION.findall(inner))


def _effort(expression: str) -> int:
    """Relative time to match at worst."""
    return 20 if _repetitions(expression) == _MAX_REPETITIONS else 1


def check_bits(name: str, bits: float) -> None:
    """Refuse bits per element that no weight or cache can have.

    Raises:
        ShapeError: naming the value.
    """
    try:
        possible = math.isfinite(bits) and 0 < bits <= 64
    except (OverflowError, TypeError):
        possible = False
    if not possible:
        raise ShapeError(f"{name} must be a number above 0 and at most 64, not {shown(bits)}")
