"""What the live controller may choose, what it chose, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a draft length is in force."""

    STATIC = "static"
    """The configured table: nothing better is known."""
    LEARNING = "learning"
    """The configured table, or the last choice, while acceptance or times are too few."""
    TRIAL = "trial"
    """A promising length, for a few steps."""
    FASTER = "faster"
    """Measured to be faster than the one before."""
    KEPT = "kept"
    """Measured, and no other length is faster by enough."""
    CHANGED = "acceptance_changed"
    """Acceptance has changed: the configured table until the new one is known."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of the controller."""

    lengths: tuple[int, ...]
    """Draft lengths that may be chosen, ascending: 0 and those that have CUDA graphs."""
    min_gain: float = 0.01
    """Gain of goodput, as a fraction, from which another length replaces the one in force."""
    trial_loss: float = 0.005
    """Largest fraction of the goodput that trials may cost, beyond that of the first seconds."""
    widest_graph: int | None = None
    """Tokens of the widest step with a CUDA graph; None: no graphs, or not known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The draft length of one cell, and why."""

    batch_size: int
    context: int
    draft_length: int
    static_length: int
    reason: Reason
    gain: float | None
    """Goodput over that of the configured length; None: not known."""
