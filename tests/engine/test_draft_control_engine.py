"""Under the live controller a real server's draft lengths change, and its tokens do not."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from generate import by_transformers
from serving import Running, server, wait_for

from vllm_nfp.results.scrape import find_samples

pytestmark = pytest.mark.engine
SPECULATION = {"num-speculative-tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 2}
"""Spelt, and completed by a short flag, as vLLM allows it."""
PROBE = {
    "batch_sizes": [1, 4], "contexts": [64], "startup_seconds": 1, "min_samples": 3,
    "publish_seconds": 0.5, "draft_min_gain": 0.0, "draft_trial_loss": 0.5,
    # With others between them, chance decides when steps without drafts are tried.
    "draft_lengths": [0, 4],
}  # fmt: skip
STATE = "vllm_nfp_draft_control_state"


def state(running: Running) -> str:
    samples = find_samples(running.metrics(), (STATE,))[STATE]
    return next(labels["state"] for labels, value in samples if value == 1.0)


def flags(**changes: object) -> tuple[str, ...]:
    return (
        "--speculative-config", json.dumps(SPECULATION), "--spec-method", "ngram",
        "--nfp-probe", "--nfp-draft-control", "--nfp-max-positions", "5",
        "--nfp-config", json.dumps(PROBE | changes),
    )  # fmt: skip


PROMPTS = [[10 + i, 20 + i, 30 + i] * 8 for i in range(4)]
CHANGES = "vllm_nfp_draft_control_changes_total"
LENGTH = "vllm_nfp_live_draft_length"
STEPS = "vllm_nfp_draft_control_step_seconds"


def greedy(running: Running) -> list[list[int]]:
    """Outputs of the prompts, one after the other."""
    return [running.complete(prompt, temperature=0, max_tokens=64) for prompt in PROMPTS]


def greedy_at_once(running: Running) -> list[list[int]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda p: running.complete(p, temperature=0, max_tokens=64), PROMPTS))


def test_lengths_change_and_tokens_do_not(dense_model: Path, tmp_path: Path) -> None:
    expected = by_transformers(dense_model, PROMPTS, 64)
    assert all(len(set(tokens)) > 10 for tokens in expected), "the model repeats itself"
    with server(dense_model, tmp_path, *flags()) as running:
        deadline = time.monotonic() + 600
        while True:
            assert greedy_at_once(running) == expected
            assert greedy(running) == expected
            samples = find_samples(running.metrics(), (CHANGES, LENGTH, STEPS))
            changes = sum(value for _, value in samples.get(CHANGES, ()))
            seen = {int(labels["draft_length"]) for labels, _ in samples.get(STEPS, ())}
            if (changes >= 6 and {0, 4} <= seen) or time.monotonic() > deadline:
                break
        assert changes >= 6, running.log_text()[-3000:]
        assert {0, 4} <= seen, "no drafts and the configured length were both timed"
        assert 0 <= samples[LENGTH][0][1] <= 4
        wait_for(lambda: state(running) == "deciding")
        assert "vllm_nfp_draft_acceptance_ratio{" in running.metrics()
        assert "draft control is disabled" not in running.log_text()
