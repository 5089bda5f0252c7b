"""Deliberate faults, so that tests can prove that a fault disables the probe and nothing else.

Set ``NFP_INJECT_FAULT`` to the name of one of :data:`STAGES` before the server starts; without
it :func:`maybe_fail` does nothing.
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


def maybe_fail(stage: str) -> None:
    """Raise :class:`InjectedFault` if the environment names this stage."""
    if os.environ.get(ENV_VAR) == stage:
        raise InjectedFault(f"fault injected at stage {stage!r} through {ENV_VAR}")
