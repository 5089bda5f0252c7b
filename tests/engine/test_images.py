"""A server that reads images at its default flags is probed, and answers as without the probe."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kinds
import pytest
from serving import Running, server, wait_for

from vllm_nfp import doctor
from vllm_nfp.results import scrape

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

PROBE = {
    "batch_sizes": [1, 4], "contexts": [64, 256], "max_positions": 8, "publish_seconds": 0.3,
    "overhead_budget": 0.5, "step_share": 1.0,
}  # fmt: skip


def chats(running: Running) -> list[list[int]]:
    """With and without pictures, four at a time."""

    def one(index: int) -> list[int]:
        text = {"type": "text", "text": " ".join(f"w{(7 * index + i) % 90}" for i in range(12))}
        pictures = [
            {"type": "image_url", "image_url": {"url": kinds.image(20 * index + shade)}}
            for shade in range(index % 3)
        ]
        body = {
            "model": running.model, "messages": [{"role": "user", "content": [*pictures, text]}],
            "max_tokens": 24 + 4 * index, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{running.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: list[int] = json.load(answer)["choices"][0]["token_ids"]
            return found

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(12)))


def probes(running: Running) -> float:
    found = scrape.find_samples(running.metrics(), ("vllm_nfp_probes_total",))
    return sum(
        count
        for labels, count in found.get("vllm_nfp_probes_total", [])
        if labels["outcome"] == "measured"
    )


def test_chats_with_pictures_are_answered_alike_while_probes_run(tmp_path: Path) -> None:
    model = kinds.rotary(tmp_path / "model")
    flags = ("--no-skip-tokenizer-init",)
    with server(model, tmp_path, *flags) as plain:
        expected = chats(plain)
    assert len({tuple(tokens) for tokens in expected}) > 8, "the model repeats itself"
    probed = ("--nfp-probe", "--nfp-config", json.dumps(PROBE))
    with server(model, tmp_path, *flags, *probed) as running:

        def enough() -> bool:
            assert chats(running) == expected
            return probes(running) >= 8

        wait_for(enough, what="a pair between steps of chats with pictures")
        (status,) = scrape.parse(running.metrics()).statuses
        assert status.state in ("probing", "steady"), status
        assert "fault in stage" not in running.log_text()
    told = doctor.ask_vllm(doctor.Question(model, ("--enforce-eager",))).values
    assert told["mode"] == "active"
    names = {feature["name"] for feature in told["features"]}
    assert {"images, audio and video", "dense models"} <= names
    assert any("M-RoPE" in name for name in names)
