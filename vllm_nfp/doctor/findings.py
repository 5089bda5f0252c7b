"""What a check of the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """The probe works; something beside it does not, or not wholly."""
    BROKEN = "broken"
    """The probe will not work."""
    UNKNOWN = "unknown"
    """It cannot be found out here; does not count against the probe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    name: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty where nothing is."""
