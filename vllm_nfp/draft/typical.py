"""Acceptance by draft method as others have published it, for whoever has counted none yet."""

from __future__ import annotations

from dataclasses import dataclass

USUAL = (0.5, 0.7, 0.9)
"""Acceptances that a table shows where none was given."""


@dataclass(frozen=True, slots=True)
class Typical:
    """A published figure."""

    method: str
    rates: tuple[float, ...]
    """Fraction of drafts whose first, second, ... token was accepted."""
    of: str
    """Model and texts."""
    source: str


TYPICAL = (
    Typical(
        "ngram", (0.81, 0.74, 0.70, 0.68, 0.66), "code editing, where a lookup found a draft",
        "https://github.com/vllm-project/vllm/pull/24344",
    ),
    Typical(
        "eagle3", (0.58, 0.34, 0.22, 0.15, 0.11), "MiniCPM3",
        "https://github.com/vllm-project/vllm/issues/24243",
    ),
    Typical(
        "eagle3", (0.81, 0.63, 0.48), "one request in llama.cpp",
        "https://github.com/ggml-org/llama.cpp/pull/24536",
    ),
    Typical(
        "mtp", (0.85,), "DeepSeek-V3, 0.85 to 0.90 by topic", "https://arxiv.org/abs/2412.19437",
    ),
)  # fmt: skip
"""They differ more between texts than between methods: count your own."""
