"""``vllm-nfp dashboards``: exports the Grafana dashboards and Prometheus rules."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_nfp.cli.common import Refusal, json_option
from vllm_nfp.dashboards import ExportError, export

_NEXT = (
    "Next: name rules/nfp.rules.yml in rule_files of prometheus.yml, and import grafana/*.json "
    "into Grafana (or mount provisioning/)."
)
_NEXT_KUBERNETES = "Next: kubectl apply -k {}"


@click.group("dashboards")
def dashboards_command() -> None:
    """Grafana dashboards, Prometheus rules and provisioning files."""


@dashboards_command.command("export", short_help="Write them to a directory.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--kubernetes",
    is_flag=True,
    help="Write a PrometheusRule, monitors, ConfigMaps, a Dockerfile and Helm values instead.",
)
@click.option("--force", is_flag=True, help="Overwrite files that differ.")
@json_option
def export_command(folder: Path, kubernetes: bool, force: bool, as_json: bool) -> None:
    """Write the dashboards, rules and provisioning to DIR, for Grafana and Prometheus to read.

    With --kubernetes: objects for prometheus-operator and Grafana's sidecar, for kubectl apply -k.

    If a file there differs, nothing is written, unless --force is given.
    """
    try:
        done = export(folder, force, kubernetes)
    except ExportError as error:
        raise Refusal(str(error)) from None
    if as_json:
        click.echo(
            json.dumps(
                {
                    "schema": 1,
                    "folder": str(done.folder),
                    "written": list(done.written),
                    "unchanged": list(done.unchanged),
                }
            )
        )
        return
    for name in done.written:
        click.echo(f"wrote {done.folder / name}")
    for name in done.unchanged:
        click.echo(f"{done.folder / name} is up to date")
    click.echo(_NEXT_KUBERNETES.format(done.folder) if kubernetes else _NEXT)
