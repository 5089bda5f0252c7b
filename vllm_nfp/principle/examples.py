"""Sizes of well-known models that come with the package: names instead of a config.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files

from vllm_nfp.text import same_name


@functools.cache
def _examples() -> Mapping[str, Mapping[str, object]]:
    text = files(__package__).joinpath("example_models.json").read_text(encoding="utf-8")
    found: dict[str, Mapping[str, object]] = json.loads(text)
    return found


def example_names() -> tuple[str, ...]:
    """Names of the models, for example qwen3-8b."""
    return tuple(_examples())


def example(name: str) -> tuple[str, Mapping[str, object]] | None:
    """Name and config of a model; case, dashes and underscores do not matter.

    Returns:
        None if there is none of this name.
    """
    found = same_name(name, example_names())
    return None if found is None else (found, _examples()[found])
