"""The ``vllm-nfp`` command; each of its commands has a module here."""

from __future__ import annotations

import click

from vllm_nfp import __version__
from vllm_nfp.cli.calibrate import calibrate_command
from vllm_nfp.cli.common import Commands
from vllm_nfp.cli.compare import compare_command
from vllm_nfp.cli.dashboards import dashboards_command
from vllm_nfp.cli.demo import demo_command
from vllm_nfp.cli.doctor import doctor_command
from vllm_nfp.cli.measure import measure_command
from vllm_nfp.cli.predict import predict_command
from vllm_nfp.cli.prepare_cpu import prepare_cpu_command
from vllm_nfp.cli.recommend import recommend_command
from vllm_nfp.cli.report import report_command
from vllm_nfp.cli.table import table_command
from vllm_nfp.cli.watch import watch_command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """How many positions per sequence does a vLLM server decode for free?"""


for command in (
    calibrate_command,
    compare_command,
    dashboards_command,
    demo_command,
    doctor_command,
    measure_command,
    predict_command,
    prepare_cpu_command,
    recommend_command,
    report_command,
    table_command,
    watch_command,
):
    main.add_command(command)

__all__ = ["main"]
