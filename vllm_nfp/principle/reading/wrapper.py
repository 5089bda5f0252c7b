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
_ENCODER = re.compile(r"vision|visual|vit_|image|audio|speech|encoder|sound")


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal config, however deep it lies."""
    found = config
    for _ in _NESTED:
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    return found


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
    return [
        name
        for name, value in config.items()
        if isinstance(name, str)
        and name not in _NESTED
        and isinstance(value, Mapping)
        and name.endswith("_config")
        and _ENCODER.search(name)
    ][:_MOST_ENCODERS]


def by_class(
    config: Mapping[str, object], text: Mapping[str, object], model_type: str
) -> tuple[str, ...]:
    """A sentence where the class decided and not the model_type."""
    given = text.get("model_type", config.get("model_type"))
    if given is None or model_type in (given, config.get("model_type")):
        return ()
    return (f"model_type {shown(given)} is not known: it is read by its class, like {model_type}.",)
