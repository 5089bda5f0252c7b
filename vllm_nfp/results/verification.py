"""What the feed of vLLM's adaptive verification reports."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_nfp.types.shapes import Count, Whole


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Mean time of recent real decode steps, as three sources have it; None: not known."""

    real: float | None = None
    """From launch to the end of sampling, drafting among it."""
    own: float | None = None
    """By vLLM's tables from its start."""
    measured: float | None = None
    """By the cost surface."""


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """One engine's adaptive verification, as its leading rank sees it."""

    feeding: bool
    """Measured costs are wanted in force, and some of the latest steps had them."""
    reason: str = ""
    """Why vLLM's own costs are in force; empty otherwise."""
    renewals: Count = 0
    """Times that measured costs have changed."""
    measured_steps: Whole = 0
    """Steps whose drafts were chosen by measured costs."""
    steps: Whole = 0
    """Steps with drafts."""
    scheduled: Whole = 0
    admitted: Whole = 0
    expected: float = 0.0
    """Drafts that vLLM expected to be accepted."""
    stalled: bool = False
    """Drafts are made, none is verified, and so no confidence is ever put right."""
    seconds: StepSeconds = StepSeconds()
