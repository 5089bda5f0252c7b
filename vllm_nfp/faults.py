"""Deliberate faults, so that tests can prove that a fault disables the probe and nothing else.

Set ``NFP_INJECT_FAULT`` to the name of one of :data:`STAGES`, or to one of the special faults
below, before the server starts; without it nothing here does anything.
"""

from __future__ import annotations

import errno
import os

ENV_VAR = "NFP_INJECT_FAULT"

STAGES = (
    "attach",
    "capture",
    "startup_scan",
    "plan",
    "prepare",
    "forward",
    "timing",
    "estimate",
    "publish",
    "collect",
    "step_times",
)
STUCK = "stuck_event"
"""Not an error but a device that never passes another mark."""
NO_SPACE = "no_space"
"""Writes to the output folder fail as on a full disk."""
OUT_OF_MEMORY = "out_of_memory"
"""Probes find no GPU memory."""


class InjectedFault(RuntimeError):
    """Raised on purpose by :func:`maybe_fail`."""


def maybe_fail(stage: str) -> None:
    """Raise :class:`InjectedFault` if the environment names this stage."""
    if os.environ.get(ENV_VAR) == stage:
        raise InjectedFault(f"fault injected at stage {stage!r} through {ENV_VAR}")


def stuck() -> bool:
    """Whether marks are to be taken for never passed."""
    return os.environ.get(ENV_VAR) == STUCK


def maybe_no_space() -> None:
    """Fail as a write to a full disk does."""
    if os.environ.get(ENV_VAR) == NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def out_of_memory() -> bool:
    """Whether probes are to find no memory."""
    return os.environ.get(ENV_VAR) == OUT_OF_MEMORY
