"""``vllm-nfp measure``: measures in an engine of its own, without a server."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_nfp import measure
from vllm_nfp.cli.common import (
    Refusal,
    check_output,
    json_option,
    parse_list,
    require_model_in,
    temporary_folder,
    write_or_keep,
)
from vllm_nfp.cli.options import EPSILON_HELP
from vllm_nfp.cli.profile_table import print_profile
from vllm_nfp.cli.terminal import Console
from vllm_nfp.config import (
    INTERNAL_FIELDS,
    ConfigError,
    ProbeConfig,
    config_from_mapping,
    parse_object,
    read_settings_argument,
)
from vllm_nfp.results.profile import Profile, save_profile

DEFAULTS = ProbeConfig()
BATCH_SIZES, CONTEXTS = (1, 8, 32), (1024, 4096, 16384)
CAPTURE_SECONDS = 60.0
GRAPH_MEMORY_MIB = 4096
_FLAGS = {
    "batch_sizes": "--batch-sizes",
    "contexts": "--contexts",
    "epsilons": "--epsilon",
    "max_positions": "--max-positions",
    "wanted_samples": "--samples",
    "startup_seconds": "--seconds",
    "sampled_layers": "--layers",
}
"""Settings of the probe that have a flag here."""


def _default(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


@click.command("measure")
@click.argument("model")
@click.option(
    "--batch-sizes",
    default=_default(BATCH_SIZES),
    show_default=True,
    help="Batch sizes: sequences per step.",
)
@click.option(
    "--contexts",
    default=_default(CONTEXTS),
    show_default=True,
    help="Contexts: cached tokens per sequence.",
)
@click.option(
    "--epsilon",
    default=_default(DEFAULTS.epsilons),
    show_default=True,
    help=f"{EPSILON_HELP} Several with commas.",
)
@click.option(
    "--max-positions",
    type=int,
    default=DEFAULTS.max_positions,
    show_default=True,
    help="Largest N to measure.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Pairs of steps to time per point.",
)
@click.option(
    "--seconds",
    type=float,
    default=120.0,
    show_default=True,
    help="Longest scan, up to 600; it ends earlier once every point has its samples.",
)
@click.option(
    "--layers", type=int, default=None, help="Layers of each kind to time; 0 = all [default: 4]."
)
@click.option(
    "--engine-args",
    default="{}",
    help='Arguments of vllm.LLM as JSON, e.g. \'{"quantization": "fp8"}\'.',
)
@click.option(
    "--nfp-config",
    default="{}",
    help="Other settings of the probe, as JSON or @file, e.g. '{\"graph_memory_mib\": 8192}'.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("profile.json"),
    show_default=True,
    help="Profile to write.",
)
@json_option
def measure_command(
    model: str,
    batch_sizes: str,
    contexts: str,
    epsilon: str,
    max_positions: int,
    samples: int,
    seconds: float,
    layers: int | None,
    engine_args: str,
    nfp_config: str,
    output: Path,
    as_json: bool,
) -> None:
    """Measure MODEL's free positions without a server and write a profile.

    Each point of the table gets its own pairs. What they do not reach in --seconds is inferred or
    predicted, and marked so.

    MODEL is a directory or a name that vLLM can load. The engine uses this machine's GPU, or its
    CPU if vLLM is a CPU build; it then compiles nothing.
    """
    values = {
        "batch_sizes": parse_list(batch_sizes, int, "--batch-sizes"),
        "contexts": parse_list(contexts, int, "--contexts"),
        "epsilons": parse_list(epsilon, float, "--epsilon"),
        "max_positions": max_positions,
        "wanted_samples": samples,
        "max_samples": max(samples, DEFAULTS.max_samples),
        "startup_seconds": seconds,
        **({} if layers is None else {"sampled_layers": layers}),
    }
    check_output(output, Path(model, "config.json"))
    if _looks_like_path(model) and not os.path.exists(model):
        raise Refusal(
            f"there is no model directory {model}: give one that exists, or a model's name"
        )
    if os.path.isdir(model):
        require_model_in(Path(model), "give the directory of a model, or a model's name")
    try:
        probe = config_from_mapping({**_further(nfp_config, values), **values})
        settings = measure.Settings(model, probe, _engine_args(engine_args))
        profile = _run(settings, quiet=as_json)
    except ConfigError as error:
        raise Refusal(_with_flags(str(error))) from None
    except measure.MeasureError as error:
        raise Refusal(str(error)) from None
    write_or_keep(output, lambda path: save_profile(path, profile))
    told = Console(stderr=True)
    if profile.run.reason:
        told.print(f"{profile.run.reason}.", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        click.echo(json.dumps(profile.to_dict()))
        return
    print_profile(profile)
    told.print(f"profile: {output}", highlight=False, markup=False, soft_wrap=True)


def _with_flags(sentence: str) -> str:
    """A sentence on settings with the flags that were given; quoted names and flags stay."""
    for setting, flag in _FLAGS.items():
        sentence = re.sub(rf"(?<!['\w-]){setting}\b", flag, sentence)
    return sentence


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _further(text: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Settings without flags of their own; graphs may take more, since no requests wait."""
    given = read_settings_argument(text)
    taken = sorted(given.keys() & {*values, *_FLAGS, *INTERNAL_FIELDS, "output_dir"})
    if taken:
        flag = _FLAGS.get(taken[0])
        hint = f"give it as {flag}" if flag else "leave it out"
        raise ConfigError(f"--nfp-config must not hold {taken[0]!r} here: {hint}")
    defaults = {"capture_seconds": CAPTURE_SECONDS, "graph_memory_mib": GRAPH_MEMORY_MIB}
    return {**defaults, **given}


def _engine_args(text: str) -> dict[str, Any]:
    values = parse_object(text, "--engine-args")
    if "model" in values:
        raise ConfigError("--engine-args must not name a model: give it as MODEL")
    return values


def _run(settings: measure.Settings, quiet: bool) -> Profile:
    folder = temporary_folder("vllm-nfp-log-")
    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[pairs]}"),
        TimeElapsedColumn(),
    )
    log_is_named = False
    try:
        with Progress(*columns, console=console) as bar:
            return measure.measure(settings, folder / "engine.log", _teller(bar))
    except measure.MeasureError:
        log_is_named = True
        raise
    finally:
        if not log_is_named:  # as after Ctrl-C
            shutil.rmtree(folder, ignore_errors=True)


def _teller(bar: Progress) -> Callable[[measure.Progress], None]:
    task = bar.add_task("starting the engine", total=None, pairs="")

    def tell(progress: measure.Progress) -> None:
        if progress.started:
            total = progress.pairs_done + progress.pairs_missing
            bar.update(
                task,
                description=progress.waits_for or "scanning",
                completed=progress.pairs_done,
                total=None if progress.waits_for else total,
                pairs="" if progress.waits_for else f"{progress.pairs_done}/{total} pairs",
            )

    return tell
