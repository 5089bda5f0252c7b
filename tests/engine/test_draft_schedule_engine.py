"""A real server follows the table that recommend writes, and recommend reads that server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from generate import by_transformers
from serving import Running, server

from vllm_nfp.cli import main
from vllm_nfp.draft import StepCurve
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.server_drafts import DRAFTED
from vllm_nfp.results.scrape import find_samples

pytestmark = pytest.mark.engine
PROBE = {"batch_sizes": [1, 4], "contexts": [64], "startup_seconds": 2, "min_samples": 3}
FREE, COSTLY = ((1, 1.0), (4, 1.0)), ((1, 1.0), (2, 9.0), (4, 81.0))


def counted(running: Running) -> tuple[float, float]:
    """Tokens drafted, and tokens generated."""
    generated = "vllm:generation_tokens_total"
    samples = find_samples(running.metrics(), (DRAFTED, generated))
    return samples[DRAFTED][0][1], samples[generated][0][1]


@pytest.mark.thorough
def test_a_server_takes_the_table_and_its_lengths_follow_the_batch(
    dense_model: Path, tmp_path: Path
) -> None:
    curves = [StepCurve(1, 64, 0.01, FREE), StepCurve(2, 64, 0.01, COSTLY)]
    settings = recommend(curves, 0.5, max_batch_size=8, slack=0.0).speculative_config()
    assert settings["num_speculative_tokens_per_batch_size"] == [[1, 1, 3], [2, 8, 0]]
    settings |= {"prompt_lookup_min": 1, "prompt_lookup_max": 2}
    flags = (
        "--speculative-config", json.dumps(settings), "--nfp-probe", "--nfp-max-positions", "4",
        "--nfp-config", json.dumps(PROBE),
    )  # fmt: skip
    with server(dense_model, tmp_path, *flags) as running:
        prompts = [[10 + i, 20 + i, 30 + i] * 8 for i in range(6)]
        expected = by_transformers(dense_model, prompts, 96)
        alone = [running.complete(prompt, temperature=0) for prompt in prompts]
        assert alone == [tokens[:32] for tokens in expected]
        drafted, generated = counted(running)
        assert drafted / generated > 0.1, "one sequence at a time is drafted for"
        for _ in range(5):  # on a busy machine requests may come one after the other, each alone
            before, less = counted(running)
            with ThreadPoolExecutor(6) as pool:
                together = list(
                    pool.map(lambda p: running.complete(p, temperature=0, max_tokens=96), prompts)
                )
            # Lengths that change between steps, 0 among them, change no token.
            assert together == expected
            later, more = counted(running)
            share = (later - before) / (more - less)
            # A sequence may be alone at the beginning and the end.
            if share < 0.5 * drafted / generated:
                break
        assert share < 0.5 * drafted / generated

        done = CliRunner().invoke(main, ["recommend", running.url, "--json"])
        assert done.exit_code == 0, done.output
        values = json.loads(done.stdout)
        assert values["source"]["kind"] == "server"
        assert values["source"]["vllm"], "the server tells its version"
        assert len(values["acceptance"]["per_position"]) == 3
        assert {row["batch_size_first"] for row in values["rows"]} == {1, 2, 4}
        assert "vllm_nfp_recommended_draft_length{" in running.metrics()
