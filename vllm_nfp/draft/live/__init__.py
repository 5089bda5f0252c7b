"""Chooses draft lengths live, from steps as they are served: pure Python, no vLLM."""

from vllm_nfp.draft.live.controller import Controller
from vllm_nfp.draft.live.decision import Decision, Reason, Settings
from vllm_nfp.draft.live.draft_seconds import draft_token_seconds
from vllm_nfp.draft.live.steps import StepObservation

__all__ = [
    "Controller",
    "Decision",
    "Reason",
    "Settings",
    "StepObservation",
    "draft_token_seconds",
]
