"""``vllm-nfp demo``: serves a small model with the probe, from start to table."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from vllm_nfp import demo, watch
from vllm_nfp.cli.common import Refusal, temporary_folder
from vllm_nfp.cli.prepare_cpu import repair_cpu
from vllm_nfp.cli.recommend_table import print_lengths
from vllm_nfp.cli.table import print_table
from vllm_nfp.cli.terminal import Console
from vllm_nfp.config import ConfigError, check_writable_folder
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.real_model import weights_file, write_real_model
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
@click.option(
    "--real",
    is_flag=True,
    help="Serve a small real model of a Python package, with text and n-gram speculation.",
)
def demo_command(seconds: float, folder: Path | None, real: bool) -> None:
    """Serve a small model with the probe, send requests and print the NFP table."""
    console = Console()
    folder = folder or temporary_folder("vllm-nfp-demo-")
    try:
        check_writable_folder("--folder", str(folder))
        if real:
            weights_file()  # before anything is started
        repair_cpu(console)
        _run_demo(console, demo.Settings(folder, seconds, real=real))
    except (ConfigError, demo.DemoError, fetching.ScrapeError, RuntimeError, OSError) as error:
        raise Refusal(str(error)) from None


def _run_demo(console: Console, settings: demo.Settings) -> None:
    place = settings.folder / "model"
    model = write_real_model(place) if settings.real else demo.make_model(place)
    port = free_port()
    command = demo.server_command(settings, model, port, on_gpu=demo.has_gpu())
    log = settings.folder / "server.log"
    console.print(f"$ {shlex.join(command)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"starting the server; its log is {log}")
    with running_server(command, log, port) as server:
        found = _send_until_measured(console, settings, server.url, model, log)
        lengths = recommend(server.url) if settings.real else None
    print_table(found)
    console.print()
    if lengths is not None:
        print_lengths(console, lengths)
        console.print()
    _say_what_next(console, settings)


def _say_what_next(console: Console, settings: demo.Settings) -> None:
    """What these figures mean, and what to run with a model of one's own."""
    what = (
        "These are a real model of 135M parameters, real text and its real acceptance."
        if settings.real
        else "These are figures of a toy: 5M parameters with random weights. They show how answers "
        "look, not what your model does."
    )
    further = "" if settings.real else "Real text and acceptance:  vllm-nfp demo --real\n"
    console.print(
        f"{what}\n"
        f"N free positions within 10 % = N - 1 drafted tokens per sequence that cost at most 10 % "
        f"of a step.\n\n"
        f"{further}"
        f"Your model:   vllm serve MODEL --nfp-probe, then vllm-nfp recommend "
        f"http://localhost:8000\n"
        f"Without GPU:  vllm-nfp predict MODEL --hardware H100-SXM\n"
        f"Profile:      "
        f"{shlex.join(('vllm-nfp', 'report', str(settings.folder / 'results/profile-0.json')))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


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
