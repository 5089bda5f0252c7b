"""Drafts and acceptance between two /metrics of a server, for benchmarks.drafts.servers."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.serving.server import all_samples

ACCEPTED = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
DRAFTED = "vllm:spec_decode_num_drafts_total"
COUNTERS = {
    "drafts": DRAFTED,
    "draft_tokens": "vllm:spec_decode_num_draft_tokens_total",
    "accepted_tokens": "vllm:spec_decode_num_accepted_tokens_total",
    "controlled_steps": "vllm_nfp_draft_control_steps_total",
    "trial_steps": "vllm_nfp_draft_control_trial_steps_total",
}
"""By their names in a row. Those of draft control are published every two seconds."""


def counted(before: str, after: str) -> dict[str, float]:
    """What a server counted between two /metrics: drafts, their tokens, steps under control."""
    found, both = {}, (all_samples(before), all_samples(after))
    for name, metric in COUNTERS.items():
        then, now = (sum(value for _, value in of[metric]) for of in both)
        if now:
            found[name] = now - then
    return found


def counted_rates(before: str, after: str) -> list[float]:
    """Fraction of drafts whose first, second, ... token was accepted between two /metrics."""

    def of(text: str) -> tuple[float, Mapping[int, float]]:
        found = all_samples(text)
        drafts = sum(value for _, value in found[DRAFTED])
        return drafts, {int(labels["position"]): v for labels, v in found[ACCEPTED]}

    (drafts, accepted), (drafts_after, accepted_after) = of(before), of(after)
    made = drafts_after - drafts
    found = [
        min(1.0, (accepted_after[place] - accepted.get(place, 0.0)) / made)
        for place in sorted(accepted_after)
    ]
    return [min(found[: place + 1]) for place in range(len(found))]
