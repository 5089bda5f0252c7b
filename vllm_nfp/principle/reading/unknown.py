"""Families that are not known, and fields that are not understood."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from vllm_nfp.principle.families import FAMILIES, UNDESCRIBED, named_families
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.plain_fields import unknown_fields
from vllm_nfp.principle.sizes import ShapeError, shown
from vllm_nfp.principle.unlike_llama import MEANING, Unlike, unlike_llama
from vllm_nfp.text import nearest_names, printable

REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
DENSE = (*REQUIRED, "intermediate_size")
_ASSUMED = {
    "num_key_value_heads": "as many KV heads as attention heads",
    "head_dim": "head_dim of hidden_size / num_attention_heads",
    "tie_word_embeddings": "an LM head of its own",
}
"""What Llama's class makes of fields that a config lacks."""
_MOST_FIELDS = 12
"""Fields that are not understood and named in a sentence."""
_MOST_LETTERS = 60
_MOST_NEAR = 5
"""Names of families that a refusal gives; the page on predictions lists them all."""
MEASURE = "Measure it on a running server: vllm serve --nfp-probe, then vllm-nfp table"


def family_of(text: Mapping[str, object], model_type: str, assume_dense: bool) -> Family:
    """The entry of the table, or Llama's if the user says so and nothing speaks against it.

    Raises:
        ShapeError: for a family that is not known.
    """
    key = model_type.lower()
    if key in UNDESCRIBED:
        raise ShapeError(
            f"no shape describes model_type {model_type!r}: {UNDESCRIBED[key]}. {MEASURE}"
        )
    family = FAMILIES.get(key)
    if family is None:
        return _unknown_family(text, model_type, assume_dense)
    if family.without is not None and text.get(family.without[0]) is False:
        return FAMILIES[family.without[1]]
    if family.variant is not None and text.get(family.variant[0]):
        return FAMILIES[family.variant[1]]
    return family


def _unknown_family(text: Mapping[str, object], model_type: str, assume_dense: bool) -> Family:
    names = named_families()
    near = nearest_names(model_type, names, _MOST_NEAR)
    families = f"{len(names)} families are known" + (
        f", among them {', '.join(near)}" if near else ""
    )
    against = next(unlike_llama(text), None)
    if against is not None:
        kind, name = against
        raise ShapeError(
            f"model_type {shown(model_type)} is not a known family, and cannot be read as dense: "
            f"{name} {shown(text[name])} speaks of {MEANING[kind]}. {MEASURE}. {families}"
        )
    missing = [name for name in DENSE if text.get(name) is None]
    if missing:
        raise ShapeError(
            f"model_type {shown(model_type)} is not a known family and lacks "
            f"{', '.join(missing)}, so that it cannot be read as dense. {MEASURE}. {families}"
        )
    if not assume_dense:
        raise ShapeError(
            f"model_type {shown(model_type)} is not a known family and all dense fields are there: "
            f"say assume_dense=True (--assume-dense) to read it like Llama, with "
            f"{', '.join(_assumed(text))}, or {MEASURE[0].lower()}{MEASURE[1:]}. {families}"
        )
    return FAMILIES["llama"]


def assumptions(text: Mapping[str, object], model_type: str, family: Family) -> tuple[str, ...]:
    """What was assumed of an unknown family, and fields that no part of the shape describes."""
    if model_type.lower() not in FAMILIES:
        return (
            f"model_type {shown(model_type)} is not a known family: it is read like Llama, with "
            f"{', '.join(_assumed(text))}.",
            *_not_understood(text),
        )
    known = _described(family)
    groups = (family.names, family.sliding, family.full)
    named = itertools.chain.from_iterable(n for group in groups for n in group.values())
    # What layer_types may say is checked where windows and states are read.
    read = {"layer_types", *family.only, *(name.partition(".")[0] for name in named)}
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
    if family.gate != "none":
        described.add("gates")
    if family.special is not None or family.sliding:
        described.update(("layers", "sparse", "latent", "recurrent", "beside"))
    return frozenset(described)


def _not_understood(text: Mapping[str, object]) -> tuple[str, ...]:
    """A sentence on fields of an unknown family that a dense Llama does not have."""
    names = [name for name, value in text.items() if isinstance(name, str) and value]
    found = [printable(name, _MOST_LETTERS) for name in unknown_fields(names)]
    if not found:
        return ()
    more = len(found) - _MOST_FIELDS
    listed = ", ".join(found[:_MOST_FIELDS]) + (f" and {more} more" if more > 0 else "")
    return (f"Not understood in its config, and perhaps of cost: {listed}.",)


def _assumed(text: Mapping[str, object]) -> list[str]:
    """What reading a config like Llama's takes for granted."""
    fields = [what for name, what in _ASSUMED.items() if text.get(name) is None]
    return ["causal attention in every layer", "gated feed-forward blocks without experts", *fields]
