"""Groups of options that several commands share, each handed over as one mapping."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from vllm_nfp.cli.common import NameChoice, parse_list
from vllm_nfp.principle.arguments import KV_BITS, WEIGHT_BITS

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

HARDWARE_HELP = (
    "Device to predict: a name such as H100-SXM or 'NVIDIA H100 80GB HBM3', or a hardware file "
    "(*.json)."
)
EPSILON_HELP = "Tolerance: extra step time that counts as free, as a fraction (0.1 = 10 %)."

_PREDICTION = (
    click.option(
        "--calibration",
        metavar="FILE",
        help="Use this hardware file's fitted constants with --hardware's data sheet.",
    ),
    click.option(
        "--tensor-parallel-size",
        "-tp",
        type=int,
        default=1,
        show_default=True,
        help="GPUs that share each layer, as in vllm serve.",
    ),
    click.option(
        "--attention-backend", help="vLLM's name of it [default: vLLM's own choice on the device]."
    ),
    click.option(
        "--quantization",
        type=NameChoice(tuple(WEIGHT_BITS)),
        help="Type of the weights, for a config.json without a quantization_config.",
    ),
    click.option(
        "--kv-cache-dtype",
        type=NameChoice(tuple(KV_BITS)),
        default="auto",
        show_default=True,
        help="Type of the KV cache; auto: as the checkpoint says.",
    ),
    click.option(
        "--assume-dense",
        is_flag=True,
        help="Treat an unknown model_type as a dense Llama-style model.",
    ),
    click.option(
        "--routing",
        metavar="uniform|typical|NUMBER|PROFILE",
        default="uniform",
        show_default=True,
        help="How tokens reach experts; a number s: shares fall with rank ** -s; a profile "
        "(.json): the s that its counted or timed experts show.",
    ),
)
_PREDICTION_NAMES = (
    "calibration",
    "tensor_parallel_size",
    "attention_backend",
    "quantization",
    "kv_cache_dtype",
    "assume_dense",
    "routing",
)
_ACCEPTANCE = (
    click.option(
        "--acceptance",
        type=float,
        help="Probability that a drafted token is accepted, the same for each, e.g. 0.7.",
    ),
    click.option(
        "--acceptance-per-position",
        metavar="A1,A2,...",
        help="Probability for the first, second, ... drafted token, given those before it.",
    ),
    click.option(
        "--acceptance-rates",
        metavar="R1,R2,...",
        help="Fraction of drafts whose first, second, ... token is accepted, as vLLM logs it.",
    ),
    click.option(
        "--acceptance-from", metavar="URL", help="Read the acceptance from this server's counters."
    ),
)
_ACCEPTANCE_NAMES = (
    "acceptance",
    "acceptance_per_position",
    "acceptance_rates",
    "acceptance_from",
)


def prediction_options(command: Command) -> Command:
    """What a prediction needs to know of the server, as the argument ``served``."""
    return _grouped(command, "served", _PREDICTION_NAMES, _PREDICTION)


def acceptance_options(command: Command) -> Command:
    """The ways to give acceptance, as the argument ``acceptance``: option -> value, if given."""
    return _grouped(command, "acceptance", _ACCEPTANCE_NAMES, _ACCEPTANCE)


def _grouped(
    command: Command, group: str, names: Sequence[str], options: Iterable[Decorator]
) -> Command:
    """Add options to a command, which gets their values as one mapping."""

    @functools.wraps(command)
    def with_group(**values: Any) -> Any:
        mapping = {name: values.pop(name) for name in names}
        return command(**values, **{group: mapping})

    result: Command = with_group
    for option in reversed(tuple(options)):
        result = option(result)
    return result


def given_flag(names: Iterable[str]) -> str | None:
    """The first of these options that is on the command line of the running command."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            return flag(name)
    return None


def flag(name: str) -> str:
    """How a setting is written on the command line."""
    return f"--{name.replace('_', '-')}"


def with_flag(sentence: str) -> str:
    """An error that begins with the name of a setting, with that of its flag in this command."""
    name, _, rest = sentence.partition(" ")
    options = click.get_current_context().command.params
    flags = {one.name: one.opts[0] for one in options if isinstance(one, click.Option)}
    return f"{flags[name]} {rest}" if name in flags and not rest.startswith("file ") else sentence


def numbers(text: str | None, name: str) -> tuple[int, ...] | None:
    """Whole numbers with commas between them; None if the option is not given."""
    return None if text is None else parse_list(text, int, name)
