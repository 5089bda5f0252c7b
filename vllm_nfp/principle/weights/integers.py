"""Integer weights: GPTQ, AWQ, auto-round, bitsandbytes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_nfp.principle.sizes import shown
from vllm_nfp.principle.weights.names import Names
from vllm_nfp.principle.weights.rules import Rules, ignored, skipping, uniform
from vllm_nfp.principle.weights.scheme import (
    FP8_BLOCK,
    GIVE,
    INT8_STORED,
    MXFP4,
    MXFP8,
    NVFP4,
    Scheme,
    UnreadError,
    grouped,
    strings,
)

_SPECIAL = re.compile(r"[*+?^$()\[\]{}|\\]")
"""Letters by which vLLM tells an expression from a name (quantization/inc/config_parser.py)."""
_BITSANDBYTES = "bitsandbytes takes the time of GPTQ and AWQ kernels; its own are slower."


def gptq(given: Mapping[str, object]) -> Rules:
    """GPTQ and AWQ: alike but for modules that ``dynamic`` or a list gives bits of their own."""
    scheme = _own(given)
    named, skipped = _dynamic(given)
    listed = strings(given, "modules_in_block_to_quantize")
    rest: Scheme | None = scheme
    if listed:
        named = [*named, (Names(listed), scheme)]
        rest = None
    head = given.get("lm_head") is True
    rules = Rules((*skipping([*ignored(given), *skipped]), *named), rest)
    if not head:
        return rules
    return Rules((*rules.named, (Names(["lm_head"]), scheme)), rest)


def _own(given: Mapping[str, object]) -> Scheme:
    group = given.get("group_size", given.get("q_group_size"))
    return grouped(given.get("bits", given.get("w_bit")), group)


def _dynamic(
    given: Mapping[str, object],
) -> tuple[list[tuple[Names, Scheme | None]], list[str]]:
    """Expressions of GPTQModel's ``dynamic``: modules with other bits, and those left out.

    Raises:
        UnreadError: for anything else in the field.
    """
    rules = given.get("dynamic") or {}
    named: list[tuple[Names, Scheme | None]] = []
    skipped = []
    for rule, own in rules.items() if isinstance(rules, Mapping) else ((rules, None),):
        if isinstance(rule, str) and rule.startswith("-:"):
            skipped.append(f"re:{rule[2:]}")
        elif isinstance(rule, str) and isinstance(own, Mapping):
            names = Names([f"re:{rule.removeprefix('+:')}"])
            named.append((names, _own({**given, **own})))
        else:
            raise UnreadError(
                f"dynamic of quantization_config has {shown(rule)}, which is not read: {GIVE}"
            )
    return named, skipped


def auto_round(given: Mapping[str, object]) -> Rules:
    """Intel's auto-round: alike but for the modules of ``extra_config``."""
    extra = given.get("extra_config") or {}
    by_scheme: dict[Scheme | None, list[str]] = {}
    for path, own in extra.items() if isinstance(extra, Mapping) else ():
        if not isinstance(path, str) or not isinstance(own, Mapping):
            raise UnreadError(f"extra_config has {shown(path)}, which is not read: {GIVE}")
        name = f"re:.*{path}" if _SPECIAL.search(path) else path
        by_scheme.setdefault(_rounded({**given, **own}), []).append(name)
    named = tuple((Names(paths), scheme) for scheme, paths in by_scheme.items())
    return Rules((*skipping(ignored(given)), *named), _rounded(given))


def _rounded(given: Mapping[str, object]) -> Scheme | None:
    """The format of one module; None: 16 bits."""
    kind, bits = str(given.get("data_type", "int")), given.get("bits")
    if isinstance(bits, int) and bits >= 16:
        return None
    if "nv_fp" in kind:
        return NVFP4
    if "mx_fp" in kind:
        return MXFP8 if bits == 8 else MXFP4
    if "fp8" in kind or kind == "fp":
        return FP8_BLOCK
    return grouped(bits, given.get("group_size"))


def fp_quant(given: Mapping[str, object]) -> Rules | None:
    """FP4 of either kind; None for another type."""
    scheme = {"mxfp4": MXFP4, "nvfp4": NVFP4}.get(str(given.get("forward_dtype", "mxfp4")))
    return None if scheme is None else uniform(given, scheme)


def experts_int8(given: Mapping[str, object]) -> Rules:
    """8-bit experts, and all else as it is."""
    del given
    return Rules((), None, experts=Scheme("wna16", 8, (INT8_STORED,)))


def bitsandbytes(given: Mapping[str, object]) -> Rules | None:
    """4 bits with a 32-bit scale for every 64, itself in 8 bits if doubly quantized; or 8 bits."""
    if given.get("load_in_4bit") is True:
        scale = (8 if given.get("bnb_4bit_use_double_quant") else 32) / 64
        return uniform(given, Scheme("wna16", 4 + scale, (_BITSANDBYTES,)))
    if given.get("load_in_8bit") is True:
        return uniform(given, Scheme("wna16", 8, (_BITSANDBYTES, INT8_STORED)))
    return None
