"""Acceptance between two /metrics of a server, for benchmarks.draft_servers."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.server import samples

ACCEPTED = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
DRAFTED = "vllm:spec_decode_num_drafts_total"


def counted_rates(before: str, after: str) -> list[float]:
    """Fraction of drafts whose first, second, ... token was accepted between two /metrics."""

    def of(text: str) -> tuple[float, Mapping[int, float]]:
        drafts = sum(value for _, value in samples(text, DRAFTED))
        return drafts, {int(labels["position"]): v for labels, v in samples(text, ACCEPTED)}

    (drafts, accepted), (drafts_after, accepted_after) = of(before), of(after)
    made = drafts_after - drafts
    found = [
        min(1.0, (accepted_after[place] - accepted.get(place, 0.0)) / made)
        for place in sorted(accepted_after)
    ]
    return [min(found[: place + 1]) for place in range(len(found))]
