"""Reading a model's config.json from disk; nothing is ever downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vllm_nfp.files import MISTRAL_CONFIG
from vllm_nfp.principle.shape import ShapeError

MAX_CONFIG_BYTES = 4 << 20
_QUANTIZATION_FILE = "hf_quant_config.json"
"""Where ModelOpt up to 0.29 says how it quantized (vLLM, transformers_utils/config.py)."""
_GIVE = "give a directory with a config.json, or the file itself"
_REPOSITORY = re.compile(r"[\w.-]*\w/[\w.-]+")
"""The name of a repository of Hugging Face, as vLLM takes it: never downloaded here."""


def load_config(path: str | Path) -> dict[str, object]:
    """The parsed config.json of a model.

    Args:
        path: a directory with a config.json, or the file itself. An ``hf_quant_config.json``
            beside it says how weights are stored if the config.json does not, as in vLLM.

    Raises:
        ShapeError: naming the path, if there is no such file, it cannot be read, is larger than
            4 MiB, or holds anything but one JSON object.
    """
    file = _config_file(path)
    config = _parsed(file)
    beside = file.with_name(_QUANTIZATION_FILE)
    if config.get("quantization_config") is None and beside.is_file():
        config["quantization_config"] = _parsed(beside)
    return config


def _parsed(file: Path) -> dict[str, object]:
    text = _read(file)
    try:
        parsed: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise ShapeError(
            f"{file} is not JSON (line {error.lineno}: {error.msg}): {_GIVE}"
        ) from None
    except RecursionError:
        raise ShapeError(f"{file} is nested too deeply for a config.json: {_GIVE}") from None
    except ValueError:
        # Python refuses to parse a number of thousands of digits.
        raise ShapeError(f"{file} has a number too large to read: {_GIVE}") from None
    if not isinstance(parsed, dict):
        raise ShapeError(f"{file} does not hold a JSON object: {_GIVE}")
    return parsed


def _config_file(path: str | Path) -> Path:
    if not str(path).strip():
        raise ShapeError(f"an empty path names no model: {_GIVE}")
    given = Path(path)
    try:
        file = given / "config.json" if given.is_dir() else given
        found = file.is_file()
    except (OSError, ValueError) as error:
        raise ShapeError(f"{str(path)[:200]!r} cannot be read ({error}): {_GIVE}") from None
    if found:
        return file
    if given.is_dir():
        mistral = given / MISTRAL_CONFIG
        there = f" but {MISTRAL_CONFIG}, which is not read here" if mistral.is_file() else ""
        raise ShapeError(f"{given} has no config.json{there}: {_GIVE}")
    name = str(path)[:200]
    if _REPOSITORY.fullmatch(name):
        raise ShapeError(
            f"no directory {name!r}: get the config with 'hf download {name} config.json "
            f"--local-dir {given.name.lower()}' and give that directory"
        )
    raise ShapeError(f"no file or directory {name!r}: {_GIVE}")


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ShapeError(f"{file} cannot be read ({error.strerror}): {_GIVE}") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ShapeError(
            f"{file} is no config.json: it is larger than {MAX_CONFIG_BYTES >> 20} MiB: {_GIVE}"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ShapeError(f"{file} is not UTF-8 text: {_GIVE}") from None


def model_name(path: Path) -> str:
    """The name of a model's directory.

    A directory in the cache of Hugging Face is named after its repository.
    """
    folder = path.resolve()
    if folder.is_file():
        if folder.name != "config.json":
            return _shown_name(folder.stem)
        folder = folder.parent
    if folder.parent.name == "snapshots" and folder.parts[-3].startswith("models--"):
        return _shown_name(folder.parts[-3].removeprefix("models--").replace("--", "/"))
    return _shown_name(folder.name)


def _shown_name(name: str) -> str:
    """The name if tables can show it, otherwise empty: the config's own name is used then."""
    return name if name.isprintable() and len(name) <= 200 else ""
