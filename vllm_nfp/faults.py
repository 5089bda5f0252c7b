"""Deliberate faults, so that tests can prove that a fault disables the probe and nothing else.

Set ``NFP_INJECT_FAULT`` to the name of one of :data:`STAGES` before the server starts; without
it :func:`maybe_fail` does nothing. ``STAGE@RANK`` lets it fail on one tensor-parallel rank alone.
"""

from __future__ import annotations

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
    "draft_control",
)


class InjectedFault(RuntimeError):
    """Raised on purpose by :func:`maybe_fail`."""


_RANK_VAR = "NFP_FAULT_RANK"


def set_rank(rank: int) -> None:
    """Say which rank this process is; 0 until then."""
    if os.environ.get(ENV_VAR):
        os.environ[_RANK_VAR] = str(rank)


def maybe_fail(stage: str) -> None:
    """Raise :class:`InjectedFault` if the environment names this stage, on this rank."""
    wanted = os.environ.get(ENV_VAR)
    if wanted is None:
        return
    if wanted in (stage, f"{stage}@{os.environ.get(_RANK_VAR, '0')}"):
        raise InjectedFault(f"fault injected at stage {stage!r} through {ENV_VAR}")
