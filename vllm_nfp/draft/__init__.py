"""Draft lengths from measured step times: pure Python, no torch, no vLLM."""

from vllm_nfp.draft.length import DraftChoice, best_draft_length, expected_tokens

__all__ = ["DraftChoice", "best_draft_length", "expected_tokens"]
