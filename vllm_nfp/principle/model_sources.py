"""Where a model's config.json comes from: a path, the local Hugging Face cache, or the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vllm_nfp.principle.examples import example, example_names
from vllm_nfp.principle.model_files import load_config, model_name
from vllm_nfp.principle.shape import ShapeError

_REPOSITORY = re.compile(r"[\w.-]*\w/[\w.-]+")
"""The name of a repository of Hugging Face, as vLLM takes it."""
_MOST_SHOWN = 200


def read_model(model: str | Path | Mapping[str, object]) -> tuple[Mapping[str, object], str]:
    """A model's config and its name; nothing is downloaded.

    Args:
        model: a directory with a config.json, or the file; else a repository whose config.json
            lies in the local Hugging Face cache; else an example of the package, such as qwen3-8b;
            or the parsed config, whose name is empty.

    Raises:
        ShapeError: if there is none, or it cannot be read.
    """
    if isinstance(model, Mapping):
        return model, ""
    name = str(model)
    if not name.strip() or _exists(name):
        return load_config(model), model_name(Path(model))
    cached = cached_config(name)
    if cached is not None:
        return load_config(cached), model_name(cached)
    found = example(name)
    if found is not None:
        return found[1], found[0]
    raise ShapeError(_nowhere(name[:_MOST_SHOWN]))


def cached_config(repository: str) -> Path | None:
    """The config.json of a repository in the local Hugging Face cache.

    The cache is where huggingface_hub has it (HF_HOME, HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE).

    Returns:
        None if it is not there, or huggingface_hub, which comes with vLLM, is not installed.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _exists(name: str) -> bool:
    """Also of what cannot be looked at, which reading then says."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return True


def _nowhere(name: str) -> str:
    examples = f"the examples are {', '.join(example_names())}"
    if _REPOSITORY.fullmatch(name):
        return (
            f"no directory {name!r}, and no config.json of it in the Hugging Face cache: get it "
            f"with 'hf download {name} config.json' and run this again ({examples})"
        )
    return (
        f"no file or directory {name!r}: give a directory with a config.json, the file itself, the "
        f"name of a repository in the Hugging Face cache, or an example ({examples})"
    )
