"""Records the drafts of a trained head over a real model's greedy answers.

An answer is run through the model once. Then the head drafts from all its positions at the same
time, each draft step from the head's own tokens, as a server does it one step after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.serving.traces import AnswerTrace
from benchmarks.verification.eagle_answers import Answer, states
from benchmarks.verification.eagle_model import Head


def record_answer(
    target: Any, head: Head, answer: Answer, task: str, drafts: int
) -> AnswerTrace | None:
    """The drafts at each position from which so many tokens of the answer follow; None if none."""
    prompt, said = answer
    positions = len(said) - drafts
    if positions < 1:
        return None
    device = head.drafted.device
    tokens = torch.tensor([[*prompt, *said]], device=device)
    read, _ = states(target, head.shape.layers, tokens)
    with torch.no_grad():
        ids, log_odds = head.drafts(tokens, read.float(), drafts)
    first = len(prompt) - 1  # row i drafts the tokens at i + 2 and later; one of them is there
    rows = slice(first, first + positions)
    ids, log_odds = ids[0, rows], log_odds[0, rows]
    follow = torch.tensor(said[1:], device=device).unfold(0, drafts, 1)
    accepted = (ids == follow).long().cumprod(-1).sum(-1)
    return AnswerTrace(task, log_odds.float().cpu().numpy(), accepted.cpu().numpy())


def record_answers(
    target: Any, head: Head, answered: Sequence[Answer], task: str, drafts: int
) -> list[AnswerTrace]:
    """Those of all answers that are long enough."""
    found = (record_answer(target, head, answer, task, drafts) for answer in answered)
    return [one for one in found if one is not None]
