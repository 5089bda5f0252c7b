"""``vllm-nfp doctor``: what is installed, what will work, and why the rest will not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from vllm_nfp.cli.common import Refusal, json_option, require_model_in
from vllm_nfp.cli.terminal import Console

STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red", "unknown": "dim"}


@click.command("doctor", context_settings={"ignore_unknown_options": True})
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    help="Directory of a model with a config.json: check how vLLM would serve it.",
)
@click.option(
    "--output-dir",
    default=None,
    metavar="DIR",
    help="Check that --nfp-output-dir can write to this directory.",
)
@json_option
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def doctor_command(
    model: Path | None, output_dir: str | None, as_json: bool, flags: tuple[str, ...]
) -> None:
    """Check what is installed, which model runner vLLM uses, and what will work.

    FLAGS are those of your `vllm serve`, after `--`; they need --model. Exit code 0: the probe
    will work. 1: something that it needs is broken. 2: bad flags.
    """
    from vllm_nfp import doctor

    if flags and model is None:
        raise Refusal(f"{flags[0]!r:.60} is a flag of vllm serve: give --model DIR with it")
    if model is not None:
        require_model_in(model, "give the directory of a model")
    try:
        diagnosis = doctor.diagnose(doctor.Question(model, flags, output_dir))
    except doctor.BadQuestionError as error:
        raise Refusal(str(error)) from None
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=1))
    else:
        _print(diagnosis)
    sys.exit(0 if diagnosis.works else 1)


def _print(diagnosis: object) -> None:
    from vllm_nfp.doctor import Diagnosis

    assert isinstance(diagnosis, Diagnosis)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        text = f"{finding.found}\n-> {finding.advice}" if finding.advice else finding.found
        # As Text: in plain strings brackets are markup.
        table.add_row(Text(finding.status, STYLES[finding.status]), finding.name, Text(text))
    console = Console(highlight=False)
    console.print(table)
    mode = diagnosis.to_json()["mode"]
    verdict = {
        "active": "the probe will work",
        "passive": "the probe will time real steps and inject nothing",
        "off": "the probe will not work: see what is broken above",
    }[mode]
    console.print(f"\n{verdict}")
