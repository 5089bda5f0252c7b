"""Settings read from JSON, from the value of ``--nfp-config``, and from the environment."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_nfp.config.bounds import ConfigError, shown
from vllm_nfp.config.settings import ProbeConfig
from vllm_nfp.env_var import ENV_VAR
from vllm_nfp.files import read_bytes
from vllm_nfp.strict_json import parse

MAX_FILE_BYTES = 1 << 20
"""Maximum size of a settings file."""
FIELDS = tuple(field.name for field in dataclasses.fields(ProbeConfig))
INTERNAL_FIELDS = frozenset({"run_dir", "fill_first"})
"""Those that this package sets itself."""
_USER_FIELDS = tuple(name for name in FIELDS if name not in INTERNAL_FIELDS)


def config_from_mapping(values: Mapping[str, Any]) -> ProbeConfig:
    """Build the settings from a mapping of field names; lists become tuples.

    Raises:
        ConfigError: for an unknown field or a value out of bounds.
    """
    unknown = sorted(set(values) - set(FIELDS))
    if unknown:
        raise ConfigError(
            f"unknown field {shown(unknown[0])} in the NFP settings; "
            f"allowed: {', '.join(_USER_FIELDS)}"
        )
    plain: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    return ProbeConfig(**plain)


def config_from_json(text: str) -> ProbeConfig:
    """Read the settings back from :meth:`ProbeConfig.to_json`."""
    return config_from_mapping(parse_object(text, "the NFP settings"))


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object; ``what`` names the text in the error.

    Raises:
        ConfigError: if the text is not a JSON object.
    """
    try:
        value = parse(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not valid JSON ({error}): pass an object {{...}}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be a JSON object {{...}}, not {type(value).__name__}")
    return value


def read_settings_argument(argument: str) -> dict[str, Any]:
    """Parse the value of ``--nfp-config``: JSON, or ``@file`` with JSON in it.

    Raises:
        ConfigError: if the file cannot be read or is not a JSON object.
    """
    if not argument.startswith("@"):
        return parse_object(argument, "--nfp-config")
    path = Path(argument[1:])
    what = f"--nfp-config file {shown(str(path))}"
    try:
        text = read_bytes(path, MAX_FILE_BYTES).decode()
    except (OSError, ValueError) as error:  # a null character in the path is a ValueError as well
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise ConfigError(f"{what} cannot be read: {reason}") from None
    return parse_object(text, what)


def check_writable_folder(name: str, folder: str) -> None:
    """Create ``folder`` if it is missing and check that a file can be written in it.

    Raises:
        ConfigError: if it cannot be created or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".nfp-"):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} {folder!r} cannot be written ({error.strerror}): "
            f"choose a directory that this user can write"
        ) from None


def config_from_environment(environ: Mapping[str, str] = os.environ) -> ProbeConfig | None:
    """The settings that the launcher put into the environment; None if the probe is off."""
    text = environ.get(ENV_VAR)
    return config_from_json(text) if text else None
