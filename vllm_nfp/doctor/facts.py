"""What all checks of the doctor are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vllm_nfp.doctor.asking import Answer, Question
from vllm_nfp.doctor.findings import Finding


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known before the checks begin."""

    question: Question
    environ: Mapping[str, str]
    version: str | None
    """Of the installed vLLM."""
    answer: Answer


Check = Callable[[Facts], Iterable[Finding]]
"""Looks at one thing; there may be nothing to say of it."""
