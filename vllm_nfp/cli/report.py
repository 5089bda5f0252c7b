"""``vllm-nfp report``: a profile as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_nfp.cli.common import Refusal, check_output, json_option, read_profile


@click.command("report")
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
@click.option(
    "--epsilon", type=float, help="Tolerance to show, as a fraction [default: 0.1 or nearest]."
)
@json_option
def report_command(profile: Path, output: Path, epsilon: float | None, as_json: bool) -> None:
    """Write PROFILE as one HTML file that needs neither network nor scripts."""
    from vllm_nfp import report

    check_output(output, profile)
    try:
        report.write_report(output, read_profile(profile), epsilon)
    except report.ReportError as error:
        raise Refusal(str(error)) from None
    except OSError as error:
        raise Refusal(f"{output} cannot be written: {error.strerror}") from None
    if as_json:
        size = output.stat().st_size
        click.echo(json.dumps({"schema": 1, "output": str(output), "bytes": size}))
    else:
        click.echo(f"report: {output}")
