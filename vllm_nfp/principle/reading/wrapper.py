"""Which part of a config is the language model's, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_nfp.principle.families import BY_CLASS, FAMILIES, UNDESCRIBED
from vllm_nfp.principle.sizes import ShapeError, shown

_MAX_NAME = 200
_MOST_ENCODERS = 3
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Fields that hold the language model's config in one of several modalities."""
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_ENCODER = re.compile(r"vision|visual|vit_|image|audio|speech|encoder|sound")


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal config, however deep it lies."""
    found = config
    for _ in _NESTED:
        parts = (found.get(key) for key in _NESTED)
        inner = next((part for part in parts if isinstance(part, Mapping) and part), None)
        if inner is None:
            break
        found = inner
    return found if _is_whole(found) else _only_part(found)


def _is_whole(config: Mapping[str, object]) -> bool:
    """A config that has sizes of its own, or names a class that has."""
    return config.get("hidden_size") is not None or str(config.get("model_type")) in FAMILIES


def _only_part(config: Mapping[str, object]) -> Mapping[str, object]:
    """The one part of a config that has a language model's sizes, under any name."""
    parts = [
        part
        for part in config.values()
        if isinstance(part, Mapping) and all(part.get(name) is not None for name in _SIZES)
    ]
    return parts[0] if len(parts) == 1 else config


def model_type_of(config: Mapping[str, object], text: Mapping[str, object]) -> str:
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


def name_of(config: Mapping[str, object], model_type: str) -> str:
    """The name that a config gives itself, or its family's."""
    found = config.get("_name_or_path")
    return str(found) if found and _printable(found) else model_type


def _printable(name: object) -> bool:
    """A name that messages and tables may show as it is."""
    return isinstance(name, str) and len(name) <= _MAX_NAME and name.isprintable()


def encoders(config: Mapping[str, object]) -> list[str]:
    """Fields that hold the configs of other modalities' encoders."""
    found: list[str] = []
    for name, value in config.items():
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        if name in _NESTED:
            found += [str(part) for part, inner in value.items() if _is_encoder(part, inner)]
        elif _is_encoder(name, value):
            found.append(name)
    return found[:_MOST_ENCODERS]


def _is_encoder(name: object, value: object) -> bool:
    named = isinstance(name, str) and name.endswith("_config") and bool(_ENCODER.search(name))
    return named and isinstance(value, Mapping)


def by_class(
    config: Mapping[str, object], text: Mapping[str, object], model_type: str
) -> tuple[str, ...]:
    """A sentence where the class decided and not the model_type."""
    given = text.get("model_type", config.get("model_type"))
    if given is None or model_type in (given, config.get("model_type")):
        return ()
    return (f"model_type {shown(given)} is not known: it is read by its class, like {model_type}.",)
