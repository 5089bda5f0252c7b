"""``vllm-nfp predict``: near-free parallelism without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vllm_nfp.cli.common import NameChoice, Refusal, check_output, json_option, parse_list
from vllm_nfp.cli.predict_table import print_explanation, print_predictions
from vllm_nfp.principle.arguments import DTYPES, KV_BITS, WEIGHT_BITS
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware import HardwareError
from vllm_nfp.principle.modules import Module, module_named
from vllm_nfp.principle.predict import DEFAULT_MAX_POSITIONS
from vllm_nfp.principle.prediction import Predictions, predict
from vllm_nfp.principle.shape import ShapeError
from vllm_nfp.report.page import ReportError

FIRST_CELL = "first"


@click.command("predict")
@click.argument("model")
@click.option(
    "--hardware",
    required=True,
    help="A device's name, as H100-SXM or 'NVIDIA H100 80GB HBM3', or a hardware file (*.json).",
)
@click.option(
    "--calibration",
    type=click.Path(),
    default=None,
    help="Hardware file whose constants to take with the data sheet of --hardware.",
)
@click.option("--batch-sizes", default="1,8,32", show_default=True, help="Sequences in the step.")
@click.option("--contexts", default="1024,4096", show_default=True, help="Cached tokens of each.")
@click.option("--epsilon", default="0.1", show_default=True, help="Tolerances, as shares.")
@click.option("--tensor-parallel-size", "-tp", type=int, default=1, show_default=True)
@click.option("--data-parallel-size", "-dp", type=int, default=1, show_default=True)
@click.option("--enable-expert-parallel", is_flag=True, help="Ranks hold whole experts.")
@click.option(
    "--attention-backend", default=None, help="vLLM's name [default: vLLM's choice there]."
)
@click.option("--dtype", type=NameChoice(DTYPES), default="auto", show_default=True)
@click.option(
    "--quantization",
    type=NameChoice(tuple(WEIGHT_BITS)),
    default=None,
    help="Weights, where the config.json says nothing of them.",
)
@click.option(
    "--kv-cache-dtype", type=NameChoice(tuple(KV_BITS)), default="auto", show_default=True
)
@click.option("--bidirectional", is_flag=True, help="The positions of a step all see each other.")
@click.option(
    "--cudagraph-capture-sizes",
    default=None,
    help="Tokens of the CUDA graphs, or none [default: vLLM's].",
)
@click.option(
    "--max-positions",
    type=int,
    default=DEFAULT_MAX_POSITIONS,
    show_default=True,
    help="Last N to look at.",
)
@click.option("--assume-dense", is_flag=True, help="Read an unknown family like Llama's.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Draw the curves into this .png or .svg file.",
)
@click.option(
    "--explain",
    metavar="[B,L[,MODULE]]",
    is_flag=False,
    flag_value=FIRST_CELL,
    default=None,
    help="Tell what the time of one cell is made of [default: the first cell].",
)
@json_option
def predict_command(
    model: str,
    hardware: str,
    calibration: str | None,
    batch_sizes: str,
    contexts: str,
    epsilon: str,
    tensor_parallel_size: int,
    data_parallel_size: int,
    enable_expert_parallel: bool,
    attention_backend: str | None,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
    bidirectional: bool,
    cudagraph_capture_sizes: str | None,
    max_positions: int,
    assume_dense: bool,
    plot: Path | None,
    explain: str | None,
    as_json: bool,
) -> None:
    """Predict how many positions per sequence MODEL decodes for free. Needs no GPU.

    MODEL is a folder with a config.json, or the file; no weights are read.
    """
    if explain is not None and as_json:
        raise Refusal("--explain is for people and has no JSON: give it or --json, not both")
    try:
        if plot is not None:
            _check_plot(plot, model, hardware)
        found = predict(
            model,
            hardware,
            parse_list(batch_sizes, int, "--batch-sizes"),
            parse_list(contexts, int, "--contexts"),
            parse_list(epsilon, float, "--epsilon"),
            calibration=calibration,
            tensor_parallel_size=tensor_parallel_size,
            data_parallel_size=data_parallel_size,
            expert_parallel=enable_expert_parallel,
            attention_backend=attention_backend,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            bidirectional=bidirectional,
            capture_sizes=_capture_sizes(cudagraph_capture_sizes),
            max_positions=max_positions,
            assume_dense=assume_dense,
        )
        if plot is not None:
            _write_plot(plot, found)
        if as_json:
            click.echo(json.dumps(found.to_dict(), indent=1))
        elif explain is not None:
            _explain(found, explain)
        else:
            print_predictions(found)
    except (ShapeError, HardwareError, PredictionError, ReportError) as error:
        raise Refusal(str(error)) from None
    if plot is not None:
        click.echo(f"plot: {plot}", err=True)


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
            f"--explain {text[:60]!r} names no cell: give it as B,L or B,L,MODULE, as in "
            f"8,4096,attention, with one of {', '.join(found.modules)}"
        )
    batch_size, context = parse_list(numbers, int, "--explain")
    return batch_size, context, module
