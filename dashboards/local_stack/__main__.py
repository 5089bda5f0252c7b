"""The local stack without containers: server with the probe, Prometheus with the rules, load.

Everything listens on 127.0.0.1 only and stops with the script. Grafana is not included: the script
prints the addresses of the same queries in Prometheus, and how to load the dashboards into your
Grafana.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import urllib.parse
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dashboards.local_stack.prometheus import (
    Prometheus,
    PrometheusError,
    program_path,
    running_prometheus,
)
from vllm_nfp import cpu_setup, demo
from vllm_nfp.dashboards.export import ExportError, source_folder
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import running_server

DRAFTS = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 4,
    "prompt_lookup_min": 1,
}
NAME = "nfp-demo"
LOOK_AT = {
    "free positions": 'vllm_nfp_positions{epsilon="0.1"}',
    "time by positions": 'vllm_nfp_module_latency_seconds{module="model"}',
    "free where traffic is": "engine:vllm_nfp_live_free_positions:max",
    "draft length": "engine:vllm_spec_decode_draft_length:rate5m",
    "overhead": "vllm_nfp_overhead_ratio",
}


class Refusal(click.ClickException):
    """The stack cannot run: one sentence and exit code 2."""

    exit_code = 2


def server_command(settings: demo.Settings, model: Path, port: int) -> list[str]:
    """The server, with drafts and layer histograms, so that every panel has data."""
    command = demo.server_command(settings, model, port, on_gpu=demo.has_gpu())
    place = command.index("--nfp-config") + 1
    # A short demonstration needs many probes. Do not use this budget in production.
    probe = {"overhead_budget": 0.4, "startup_seconds": 10.0, "layer_histograms": True}
    command[place] = json.dumps({**json.loads(command[place]), **probe})
    more = ["--served-model-name", NAME, "--speculative-config", json.dumps(DRAFTS)]
    return [*command, *more]


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(10, 3600),
    default=60.0,
    show_default=True,
    help="Seconds of load.",
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="Keep running after the load until Ctrl-C [default: only in a terminal].",
)
def main(seconds: float, keep: bool | None) -> None:
    """Run a server with the probe and a Prometheus that scrapes it, on 127.0.0.1 only."""
    console = Console()
    # SIGTERM stops the server and Prometheus as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="vllm-nfp-stack-") as name:
        settings = demo.Settings(Path(name), seconds)
        try:
            program_path()  # before the server, which takes a minute
            if cpu_setup.needs_repair():
                console.print(cpu_setup.repair())
            _run(console, settings, console.is_terminal if keep is None else keep)
        except (demo.DemoError, PrometheusError, ExportError, RuntimeError, OSError) as error:
            raise Refusal(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            console.print("stopped")


def _run(console: Console, settings: demo.Settings, keep: bool) -> None:
    model = demo.make_model(settings.folder / "model")
    port = free_port()
    command = server_command(settings, model, port)
    rules = source_folder() / "rules" / "nfp.rules.yml"
    console.print("starting the server (about a minute on a CPU)")
    with (
        running_server(command, settings.folder / "server.log", port) as server,
        running_prometheus(
            settings.folder / "prometheus", [f"127.0.0.1:{port}"], rules, scrape_seconds=2
        ) as prometheus,
    ):
        _print_where(console, server.url, prometheus)
        console.print(f"sending requests for {settings.seconds:g} s")
        load = demo.load_of(settings, server.url, NAME)
        load.run(settings.seconds)
        if load.errors:
            raise demo.DemoError(f"the server failed: {load.errors[0]}")
        _print_found(console, prometheus, load.answered)
        if keep:
            console.print("running; Ctrl-C stops the server and Prometheus")
            threading.Event().wait()


def _print_where(console: Console, url: str, prometheus: Prometheus) -> None:
    console.print(f"server:      {url}/metrics", highlight=False, soft_wrap=True)
    console.print(f"Prometheus:  {prometheus.url}/alerts and", highlight=False, soft_wrap=True)
    for what, expr in LOOK_AT.items():
        query = urllib.parse.urlencode({"g0.expr": expr, "g0.tab": 0, "g0.range_input": "5m"})
        console.print(f"  {what}: {prometheus.url}/graph?{query}", highlight=False, soft_wrap=True)
    console.print(
        f"Grafana:     add {prometheus.url} as a Prometheus data source and import "
        f"{source_folder() / 'grafana'}/*.json",
        highlight=False,
        soft_wrap=True,
    )


def _print_found(console: Console, prometheus: Prometheus, answered: int) -> None:
    table = Table("query", "series", "latest", title=f"In Prometheus, after {answered} responses")
    for expr in LOOK_AT.values():
        found = prometheus.now(expr)
        table.add_row(expr, str(len(found)), f"{found[0].points[-1][1]:.4g}" if found else "-")
    console.print(table)
    rules = prometheus.rules()
    bad = [rule["name"] for rule in rules if rule["health"] == "err"]
    console.print(f"{len(rules)} rules evaluated, {len(bad)} with errors")
    for alert in prometheus.alerts():
        console.print(f"alert {alert['labels']['alertname']} is {alert['state']}")
    if bad:
        raise demo.DemoError(f"rules with errors: {', '.join(bad)}")


if __name__ == "__main__":
    main()
