"""``vllm-nfp predict``: free positions without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vllm_nfp.cli.common import NameChoice, Refusal, check_output, json_option, parse_list
from vllm_nfp.cli.options import EPSILON_HELP, HARDWARE_HELP, prediction_options, with_flag
from vllm_nfp.cli.predict_curves import curves_csv
from vllm_nfp.cli.predict_side_by_side import (
    check_columns,
    devices_of,
    print_side_by_side,
    side_by_side,
)
from vllm_nfp.cli.predict_table import print_explanation, print_predictions
from vllm_nfp.principle.arguments import DTYPES
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware import HardwareError
from vllm_nfp.principle.modules import module_named
from vllm_nfp.principle.predict import DEFAULT_MAX_POSITIONS
from vllm_nfp.principle.prediction import predict
from vllm_nfp.principle.predictions import Predictions
from vllm_nfp.principle.shape import ShapeError
from vllm_nfp.report.page import ReportError
from vllm_nfp.types import Module

FIRST_CELL = "first"


@click.command("predict")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--hardware",
    required=True,
    help=f"{HARDWARE_HELP} Several with commas are shown side by side.",
)
@click.option(
    "--batch-sizes", default="1,8,32", show_default=True, help="Batch sizes: sequences per step."
)
@click.option(
    "--contexts",
    default="1024,4096",
    show_default=True,
    help="Contexts: cached tokens per sequence.",
)
@click.option(
    "--epsilon",
    default="0.1",
    show_default=True,
    help=f"{EPSILON_HELP} Several with commas.",
)
@prediction_options
@click.option(
    "--data-parallel-size",
    "-dp",
    type=int,
    default=1,
    show_default=True,
    help="Data-parallel ranks, as in vllm serve.",
)
@click.option(
    "--enable-expert-parallel",
    "expert_parallel",
    is_flag=True,
    help="Each rank holds whole experts, as in vllm serve.",
)
@click.option(
    "--dtype",
    type=NameChoice(DTYPES),
    default="auto",
    show_default=True,
    help="Type of activations; all take the same time.",
)
@click.option(
    "--bidirectional",
    is_flag=True,
    help="All positions of a step attend to each other, as in diffusion models.",
)
@click.option(
    "--cudagraph-capture-sizes",
    default=None,
    help="Token counts of the CUDA graphs, or none [default: vLLM's].",
)
@click.option(
    "--max-positions",
    type=int,
    default=DEFAULT_MAX_POSITIONS,
    show_default=True,
    help="Largest N to evaluate.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write a plot of the curves to this .png or .svg file.",
)
@click.option(
    "--explain",
    metavar="[B,L[,MODULE]]",
    is_flag=False,
    flag_value=FIRST_CELL,
    default=None,
    help="Show what the time of one batch size and context consists of [default: the first].",
)
@click.option(
    "--curves",
    is_flag=True,
    help="Print every t(N) with its error, as CSV, or as fields of the rows with --json.",
)
@json_option
def predict_command(
    models: tuple[str, ...],
    hardware: str,
    batch_sizes: str,
    contexts: str,
    epsilon: str,
    served: Mapping[str, Any],
    cudagraph_capture_sizes: str | None,
    plot: Path | None,
    explain: str | None,
    curves: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Predict how many positions per sequence MODEL decodes for free. Needs no GPU.

    MODEL is a directory with a config.json, or the file; a repository whose config.json lies in
    the Hugging Face cache; or an example, such as qwen3-8b. Several are shown side by side. No
    weights are read.
    """
    if curves and (explain is not None or plot is not None):
        raise Refusal("--curves prints numbers only: give it without --plot and --explain")
    if explain is not None and as_json:
        raise Refusal("--explain prints text only: give it or --json, not both")
    devices = devices_of(hardware)
    if len(devices) * len(models) > 1 and (plot is not None or explain is not None):
        raise Refusal("--plot and --explain need one model and one device")
    try:
        if plot is not None:
            _check_plot(plot, *models, hardware)
        founds = [
            predict(
                model,
                device,
                parse_list(batch_sizes, int, "--batch-sizes"),
                parse_list(contexts, int, "--contexts"),
                parse_list(epsilon, float, "--epsilon"),
                capture_sizes=_capture_sizes(cudagraph_capture_sizes),
                **served,
                **settings,
            )
            for model in models
            for device in devices
        ]
        check_columns(founds)
        if plot is not None:
            _write_plot(plot, founds[0])
        _print(founds, explain, curves, as_json)
    except (ShapeError, HardwareError, PredictionError, ReportError) as error:
        raise Refusal(with_flag(str(error))) from None
    if plot is not None:
        click.echo(f"plot: {plot}", err=True)


def _print(founds: Sequence[Predictions], explain: str | None, curves: bool, as_json: bool) -> None:
    several, found = len(founds) > 1, founds[0]
    if as_json:
        values = side_by_side(founds, curves) if several else found.to_dict(curves)
        click.echo(json.dumps(values, indent=1))
    elif curves:
        click.echo(curves_csv(founds), nl=False)
    elif several:
        print_side_by_side(founds)
    elif explain is not None:
        _explain(found, explain)
    else:
        print_predictions(found)


def _capture_sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    return () if text == "none" else parse_list(text, int, "--cudagraph-capture-sizes")


def _check_plot(path: Path, *inputs: str) -> None:
    from vllm_nfp.report.prediction_plot import check_plot

    check_output(path, *map(Path, inputs))
    check_plot(path)


def _write_plot(path: Path, found: Predictions) -> None:
    from vllm_nfp.report.prediction_plot import write_plot

    try:
        write_plot(path, found)
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {error.strerror}") from None


def _explain(found: Predictions, text: str) -> None:
    from vllm_nfp.principle.explain import explain

    batch_size, context, module = _cell(found, text)
    modules = found.modules if module is None else (module,)
    explanations = [explain(found, name, batch_size, context) for name in modules]
    print_explanation(found, explanations)


def _cell(found: Predictions, text: str) -> tuple[int, int, Module | None]:
    """Batch size, context and module that ``--explain`` names."""
    if text == FIRST_CELL:
        return found.batch_sizes[0], found.contexts[0], None
    numbers, module = text, None
    before, comma, last = text.rpartition(",")
    if comma and module_named(last) is not None:
        numbers, module = before, module_named(last)
    parts = numbers.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise Refusal(
            f"--explain must be B,L or B,L,MODULE, for example 8,4096,attention, not "
            f"{text[:60]!r}: the modules are {', '.join(found.modules)}"
        )
    batch_size, context = parse_list(numbers, int, "--explain")
    return batch_size, context, module
