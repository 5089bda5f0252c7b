"""The releases of vLLM that are known here, and which of them take draft lengths by batch size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Evidence(StrEnum):
    """What is known of a release."""

    CPU = "engine tests on a CPU"
    CPU_AND_GPU = "engine tests on a CPU, measurements on a GPU"
    GPU = "measurements and identity of outputs on GPUs, no CPU build exists"
    BETWEEN = "lies between tested releases"


@dataclass(frozen=True, slots=True)
class Release:
    """One minor release of vLLM as the probe knows it."""

    number: tuple[int, int]
    evidence: Evidence
    limits: tuple[str, ...] = ()
    """What this release cannot do, one sentence each."""


_V2_IGNORES_SCHEDULES = (
    "its V2 model runner does not follow draft lengths by batch size: "
    "serve with VLLM_USE_V2_MODEL_RUNNER=0 for them"
)
_V2_MAY_IGNORE_SCHEDULES = (
    "its V2 model runner is not known to follow draft lengths by batch size: "
    "serve with VLLM_USE_V2_MODEL_RUNNER=0 for them"
)

RELEASES: tuple[Release, ...] = (
    Release((0, 29), Evidence.CPU, (_V2_IGNORES_SCHEDULES,)),
    Release((0, 30), Evidence.BETWEEN, (_V2_MAY_IGNORE_SCHEDULES,)),
    Release((0, 31), Evidence.BETWEEN, (_V2_MAY_IGNORE_SCHEDULES,)),
    Release((0, 32), Evidence.CPU_AND_GPU),
    Release((0, 33), Evidence.GPU),
)
"""Every release that is probed actively, oldest first."""

OLDEST = RELEASES[0].number
NEWEST = RELEASES[-1].number

DRAFT_SCHEDULES_V2 = (0, 32)
"""Oldest release known to follow num_speculative_tokens_per_batch_size in the V2 model runner;
before, only V1 does."""

MISSED_GRAPHS = ((0, 32), (0, 33))
"""First and last release whose V2 model runner is known to follow a table of draft lengths and to
overlook CUDA graphs that it captured for it (:mod:`vllm_nfp.draft.length_graphs`). Read in the
sources of 0.29.0 to 0.33.0: all choose alike, but those before do not follow a table."""


def parse_release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a text without them or an untagged development build."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < (0, 2) and "dev" in version:
        return None  # built from a checkout without tags
    return (int(match[1]), int(match[2])) if match else None


def describe_range() -> str:
    """The releases that the probe knows, for messages."""
    return f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"


def known_release(version: str | None) -> Release | None:
    """The entry of a version in the table; None if it is not there."""
    number = parse_release(version) if version else None
    return next((release for release in RELEASES if release.number == number), None)


def misses_graphs(version: str | None) -> bool:
    """Whether this vLLM is known to overlook CUDA graphs of a table of several draft lengths."""
    number = parse_release(version) if version else None
    return number is not None and MISSED_GRAPHS[0] <= number <= MISSED_GRAPHS[1]


def draft_schedule_refusal(version: str) -> str | None:
    """Why this vLLM does not take draft lengths by batch size; None if it does."""
    release = parse_release(version)
    if release is None or release >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return (
        f"vLLM {version} is not known to support draft lengths by batch size "
        f"(num_speculative_tokens_per_batch_size), which {oldest} supports: upgrade vLLM, or serve "
        f"one num_speculative_tokens from the table"
    )


def draft_schedule_warning(version: str) -> str | None:
    """What limits draft lengths by batch size in this vLLM; None if nothing is known to."""
    release = parse_release(version)
    if release is None:
        return f"vLLM {version} is not a known release: check that it accepts the table"
    if release > NEWEST:
        return (
            f"vLLM {version} is newer than the releases known here ({describe_range()}): "
            f"check that it accepts the table"
        )
    if OLDEST <= release < DRAFT_SCHEDULES_V2:
        return (
            f"in vLLM {version} the V2 model runner is not known to follow the table: "
            f"serve with VLLM_USE_V2_MODEL_RUNNER=0, or upgrade to "
            f"{'.'.join(map(str, DRAFT_SCHEDULES_V2))}"
        )
    return None
