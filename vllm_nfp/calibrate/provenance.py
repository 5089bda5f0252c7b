"""Where samples come from: device, versions and date, for the hardware file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vllm_nfp.calibrate.errors import FitError
from vllm_nfp.calibrate.points import KernelSamples

_ENVIRONMENT = ("vllm_nfp", "vllm", "torch", "cuda", "python")
MOST_TEXT = 80
"""Characters that are kept of a text from a file of samples."""


def device_of(all_samples: Sequence[KernelSamples]) -> str:
    """Name of the device that the samples were taken on; empty if none was recorded.

    Raises:
        FitError: if there are several.
    """
    names = sorted({samples.device_name for samples in all_samples})
    if len(names) > 1:
        shown = ", ".join(repr(name[:MOST_TEXT]) for name in names[:4])
        raise FitError(f"the samples come from several devices ({shown}): fit those of one alone")
    return names[0] if names else ""


def environment_of(all_samples: Sequence[KernelSamples], device: str) -> Mapping[str, Any]:
    """What a hardware file records of the samples, for people to read."""
    texts = {name: first_text(all_samples, name) for name in _ENVIRONMENT}
    return {
        "device": device[:MOST_TEXT],
        **{name: text for name, text in texts.items() if text},
        "date": date_of(all_samples),
        "curves": {one.model[:MOST_TEXT]: len(one.curves) for one in all_samples[:64]},
    }


def first_text(all_samples: Sequence[KernelSamples], name: str) -> str:
    """A field of the first samples' environment, if it is text; samples may come from anywhere."""
    value = all_samples[0].environment.get(name) if all_samples else None
    return value[:MOST_TEXT] if isinstance(value, str) else ""


def date_of(all_samples: Sequence[KernelSamples]) -> str:
    """Day of the first samples, as in 2026-11-24; empty if none was recorded."""
    value = all_samples[0].environment.get("date_unix_seconds") if all_samples else None
    if not isinstance(value, (int, float)):
        return ""
    try:
        return datetime.fromtimestamp(value, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return ""
