"""Draft lengths from step times and acceptance: pure Python, no torch, no vLLM."""

from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, constant, from_rates
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.length import DraftChoice, best_draft_length, expected_tokens
from vllm_nfp.draft.schedule import (
    Demand,
    DraftCost,
    Schedule,
    ScheduleRange,
    ScheduleRow,
    make_schedule,
)

__all__ = [
    "Acceptance",
    "AcceptanceError",
    "Demand",
    "DraftChoice",
    "DraftCost",
    "Schedule",
    "ScheduleRange",
    "ScheduleRow",
    "StepCurve",
    "best_draft_length",
    "constant",
    "expected_tokens",
    "from_rates",
    "make_schedule",
]
