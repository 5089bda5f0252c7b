"""Prints the NFP table of a profile."""

from __future__ import annotations

from vllm_nfp.cli.nfp_table import legend, lines_of, nfp_table, print_whole
from vllm_nfp.cli.terminal import Console
from vllm_nfp.results.completeness import unfinished
from vllm_nfp.results.profile import Profile


def print_profile(profile: Profile) -> None:
    """Print the model, the device, the NFP table, and how much of it was not measured."""
    console = Console()
    environment = profile.environment
    _say(
        console,
        f"{profile.model.name} on {environment.device.name}, vLLM {environment.vllm}, "
        f"{environment.dtype}",
    )
    for cell, reason in profile.run.skipped_cells.items():
        _say(console, f"{cell} was not probed: {reason}")
    print_whole(console, nfp_table(lines_of(profile.boundaries)))
    _say(console, legend(profile.boundaries))
    missing = unfinished(profile)
    if missing:
        _say(console, missing)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
