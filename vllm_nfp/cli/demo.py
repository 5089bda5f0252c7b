"""``vllm-nfp demo``: serves a small model with the probe, from start to table."""

from __future__ import annotations

from pathlib import Path

import click

from vllm_nfp import demo, watch
from vllm_nfp.cli.common import Refusal, temporary_folder
from vllm_nfp.cli.prepare_cpu import repair_cpu
from vllm_nfp.cli.table import print_table
from vllm_nfp.cli.terminal import Console
from vllm_nfp.results import fetching
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import running_server
from vllm_nfp.types import Basis

MOST_ROUNDS = 6
"""Most rounds of requests until something is measured."""


@click.command("demo")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds for which requests are sent.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Directory for model, log and results [default: a new one].",
)
def demo_command(seconds: float, folder: Path | None) -> None:
    """Serve a small model with the probe, send requests and print the NFP table."""
    console = Console()
    folder = folder or temporary_folder("vllm-nfp-demo-")
    try:
        repair_cpu(console)
        _run_demo(console, demo.Settings(folder, seconds))
    except (demo.DemoError, fetching.ScrapeError, RuntimeError, OSError) as error:
        raise Refusal(str(error)) from None


def _run_demo(console: Console, settings: demo.Settings) -> None:
    model = demo.make_model(settings.folder / "model")
    port = free_port()
    command = demo.server_command(settings, model, port, on_gpu=demo.has_gpu())
    log = settings.folder / "server.log"
    console.print(f"$ {' '.join(command)}", highlight=False, soft_wrap=True)
    console.print(f"starting the server; its log is {log}")
    with running_server(command, log, port) as server:
        found = _send_until_measured(console, settings, server.url, model, log)
    print_table(found)
    console.print(f"raw samples: {settings.folder / 'results'}")


def _send_until_measured(
    console: Console, settings: demo.Settings, url: str, model: Path, log: Path
) -> watch.Reading:
    """Send requests, in several rounds if needed, until a row is measured; what /metrics says."""
    for _ in range(MOST_ROUNDS):
        console.print(f"sending requests for {settings.seconds:g} s")
        load = demo.load_of(settings, url, str(model))
        load.run(settings.seconds)
        if load.errors:
            raise demo.DemoError(f"the server failed: {load.errors[0]}; see {log}")
        found = watch.read(fetching.fetch(url))
        if any(row.basis is Basis.MEASURED for row in found.scrape.rows):
            break
        console.print("nothing is measured yet")
    console.print(f"{load.answered} requests answered; from {url}/metrics:")
    return found
