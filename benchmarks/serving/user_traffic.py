"""What the probe has measured, and what it cost, after a user's first two minutes of traffic.

    vllm serve MODEL --nfp-probe --skip-tokenizer-init --no-enable-prefix-caching
    python -m benchmarks.serving.user_traffic http://localhost:8000 --out FILE.json

The server is any vLLM server with the probe; it should run at the probe's defaults. The traffic is
streams of requests, one after the other in each, with random token ids that are in no prefix cache
and 128 tokens of output: 1 stream with prompts of 800 tokens for 25 s, 8 with 3500 for 45 s, 32
with 900 for 45 s. At the end of each phase the file is written with all ``vllm_nfp_*`` samples of
the server, the number of measured pairs, and what the client saw: tokens/s, inter-token latency and
time to first token.
"""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.hosts import environment
from benchmarks.serving import load
from benchmarks.serving.traffic import Load
from vllm_nfp.files import write_whole
from vllm_nfp.results import fetching

OUTPUT_TOKENS = 128
PUBLISH_SECONDS = 2.5
"""Wait before /metrics is read: the probe publishes every two seconds."""
PAIRS = ("startup", "measured", "idle")
"""Outcomes of vllm_nfp_probes_total that are pairs of timed probes."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Constant traffic for a while."""

    streams: int
    prompt_tokens: int
    seconds: float


PHASES = (Phase(1, 800, 25.0), Phase(8, 3500, 45.0), Phase(32, 900, 45.0))


def run_phase(
    url: str, model: str, vocab_size: int, phase: Phase, seed: int, talks: bool = False
) -> dict[str, Any]:
    """Send one phase's traffic; what the client saw and what the server then reports.

    Args:
        talks: see :class:`benchmarks.serving.traffic.Load`.
    """
    traffic = Load(
        url,
        model,
        vocab_size,
        phase.streams,
        phase.prompt_tokens,
        OUTPUT_TOKENS,
        phase.seconds,
        seed=seed,
        talks=talks,
    )
    client = load.run(traffic, warmup_seconds=0.0).summary()
    time.sleep(PUBLISH_SECONDS)
    samples = probe_samples(fetching.fetch(url))
    return {
        **dataclasses.asdict(phase),
        "client": client,
        "pairs": measured_pairs(samples),
        "samples": samples,
    }


def probe_samples(metrics: str) -> list[dict[str, Any]]:
    """Name, labels and value of each ``vllm_nfp_*`` sample in the text of /metrics."""
    return [
        {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.startswith("vllm_nfp_")
    ]


def probe_lines(metrics: str) -> str:
    """The probe's part of the text of /metrics."""
    return "\n".join([*(line for line in metrics.splitlines() if "vllm_nfp_" in line), ""])


def measured_pairs(samples: Sequence[Mapping[str, Any]]) -> int:
    """Pairs that the probes of all engines have measured since the start."""
    return sum(
        int(sample["value"])
        for sample in samples
        if sample["name"] == "vllm_nfp_probes_total" and sample["labels"]["outcome"] in PAIRS
    )


def model_name(url: str) -> str:
    """The first model that the server names."""
    return str(model_card(url)["id"])


def model_card(url: str) -> dict[str, Any]:
    """What the server says of the first model that it names: id, max_model_len."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)["data"][0]
        return found


@click.command()
@click.argument("url")
@click.option(
    "--vocab-size", default=32_000, show_default=True, help="Prompts hold token ids below this."
)
@click.option("--scale", default=1.0, show_default=True, help="Factor on the phases' lengths.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file."
)
def main(url: str, vocab_size: int, scale: float, out: Path) -> None:
    """Send a user's traffic to the server at URL and write what its probe reports."""
    url = url.rstrip("/")
    model = model_name(url)
    found: dict[str, Any] = {"environment": environment.record(), "model": model, "phases": []}
    for seed, phase in enumerate(PHASES):
        scaled = dataclasses.replace(phase, seconds=scale * phase.seconds)
        row = run_phase(url, model, vocab_size, scaled, seed)
        found["phases"].append(row)
        write_whole(out, json.dumps({**found, "after": environment.gpu_state()}))
        click.echo(
            f"{phase.streams} streams, {phase.prompt_tokens} prompt tokens: {row['pairs']} pairs, "
            f"{row['client']['tokens_per_second']:.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
