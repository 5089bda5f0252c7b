"""Deliberate faults, so that tests can prove that a fault disables the probe and nothing else.

Set ``NFP_INJECT_FAULT`` to the name of one of :data:`STAGES`, or to one of the special faults
below, before the server starts; without it nothing here does anything. ``STAGE@RANK`` lets a stage
fail on one rank alone. Who sets it later calls :func:`arm`.
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
    "draft_control",
    "verification",
)
STUCK = "stuck_event"
"""Not an error but a device that never passes another mark."""
NO_SPACE = "no_space"
"""Writes to the output directory fail as on a full disk."""
OUT_OF_MEMORY = "out_of_memory"
"""Probes find no GPU memory."""


class InjectedFault(RuntimeError):
    """Raised on purpose by :func:`maybe_fail`."""


_RANK_VAR = "NFP_FAULT_RANK"
_armed = ENV_VAR in os.environ
"""Looked up once: this is asked several times in each step of a server."""


def arm() -> None:
    """Read the environment again."""
    global _armed  # noqa: PLW0603 - it stands for the environment, which is global as well
    _armed = ENV_VAR in os.environ


def set_rank(rank: int) -> None:
    """Say which rank this process is, where faults may be injected; 0 until then."""
    if ENV_VAR in os.environ:
        os.environ[_RANK_VAR] = str(rank)


def maybe_fail(stage: str) -> None:
    """Raise :class:`InjectedFault` if the environment names this stage, on this rank."""
    if not _armed:
        return
    wanted = os.environ.get(ENV_VAR)
    if wanted in (stage, f"{stage}@{os.environ.get(_RANK_VAR, '0')}"):
        raise InjectedFault(f"fault injected at stage {stage!r} through {ENV_VAR}")


def stuck() -> bool:
    """Whether marks are to be taken for never passed."""
    return _armed and os.environ.get(ENV_VAR) == STUCK


def maybe_no_space() -> None:
    """Fail as a write to a full disk does."""
    if _armed and os.environ.get(ENV_VAR) == NO_SPACE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def out_of_memory() -> bool:
    """Whether probes are to find no memory."""
    return _armed and os.environ.get(ENV_VAR) == OUT_OF_MEMORY
