"""The probe's flags on ``vllm serve``, and the settings that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.start_files import check_files
from vllm_nfp.config import (
    MAX_POSITIONS_LIMIT,
    ConfigError,
    ProbeConfig,
    config_from_mapping,
    read_settings_argument,
)

GROUP = "NFP probe"

_SINGLE_FLAGS: dict[str, str] = {
    "nfp_epsilon": "epsilons",
    "nfp_max_positions": "max_positions",
    "nfp_overhead_budget": "overhead_budget",
    "nfp_output_dir": "output_dir",
    "nfp_draft_control": "draft_control",
    "nfp_verification_costs": "verification_costs",
}
"""Destination of a single flag -> the ProbeConfig field that it sets."""


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End the program as argparse does, without the usage, which lists hundreds of flags.

    Raises:
        SystemExit: with code 2, after one sentence on stderr.
    """
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def _reported(
    parser: argparse.ArgumentParser, flag: str, parse: Callable[[str], Any]
) -> Callable[[str], Any]:
    """Let a value of the flag that is refused end the program with one sentence."""

    def parse_or_refuse(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            _refuse(parser, f"argument {flag}: {error}")
        except ValueError:
            _refuse(parser, f"argument {flag}: {text!r:.80} is not a number")

    return parse_or_refuse


def _parse_epsilons(text: str) -> tuple[float, ...]:
    epsilons = tuple(float(part) for part in text.split(","))
    return ProbeConfig(epsilons=epsilons).epsilons


def _parse_max_positions(text: str) -> int:
    return ProbeConfig(max_positions=int(text)).max_positions


def _parse_budget(text: str) -> float:
    return ProbeConfig(overhead_budget=float(text)).overhead_budget


def _parse_settings(text: str) -> str:
    config_from_mapping(read_settings_argument(text))
    return text


def add_flags(parser: argparse.ArgumentParser, patches: PatchSet) -> None:
    """Add the probe's flags to the parser of ``vllm serve``, in a group of their own.

    Args:
        patches: takes up that the parser also checks what it has parsed.
    """
    if any(group.title == GROUP for group in parser._action_groups):
        return
    group = parser.add_argument_group(
        GROUP,
        "Near-Free Parallelism: measures how many positions per sequence this server decodes "
        "at almost no extra latency, between real steps, and reports it on /metrics.",
    )
    # SUPPRESS: the flags' help names defaults itself, and vLLM's formatter would add a second one.
    group.add_argument(
        "--nfp-probe",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Turn the probe on (default: off).",
    )
    group.add_argument(
        "--nfp-config",
        type=_reported(parser, "--nfp-config", _parse_settings),
        default=argparse.SUPPRESS,
        metavar="JSON|@FILE",
        help="Any setting of the probe, as a JSON object or @file that holds one.",
    )
    group.add_argument(
        "--nfp-epsilon",
        type=_reported(parser, "--nfp-epsilon", _parse_epsilons),
        default=argparse.SUPPRESS,
        metavar="FRACTION[,FRACTION...]",
        help="Tolerances: extra step time that counts as free, as fractions "
        "(default: 0.05,0.1,0.2).",
    )
    group.add_argument(
        "--nfp-max-positions",
        type=_reported(parser, "--nfp-max-positions", _parse_max_positions),
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"Largest number of positions per sequence to probe, 2 to {MAX_POSITIONS_LIMIT} "
        "(default: 32).",
    )
    group.add_argument(
        "--nfp-overhead-budget",
        type=_reported(parser, "--nfp-overhead-budget", _parse_budget),
        default=argparse.SUPPRESS,
        metavar="FRACTION",
        help="Maximum fraction of GPU time for probing, 0 to 0.5 (default: 0.01).",
    )
    group.add_argument(
        "--nfp-output-dir",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="Directory for raw samples and results (default: none are kept).",
    )
    group.add_argument(
        "--nfp-draft-control",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Choose the draft length of speculative decoding live, from measured step times and "
        "acceptance (with --speculative-config).",
    )
    group.add_argument(
        "--nfp-verification-costs",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Give adaptive verification the measured costs of steps (with "
        "enable_adaptive_verification in --speculative-config).",
    )
    patches.wrap(targets.PARSE_KNOWN_ARGS, lambda parse: _checking(parser, parse), on=parser)


def _checking(parser: argparse.ArgumentParser, parse: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse flags that do not go together while nothing of the server has been started."""

    def parse_and_check(*args: Any, **kwargs: Any) -> Any:
        parsed = parse(*args, **kwargs)
        try:
            config = config_from_args(parsed[0])
            if config is not None:
                check_files(config)
        except ConfigError as error:
            _refuse(parser, str(error))
        return parsed

    return parse_and_check


def config_from_args(args: argparse.Namespace) -> ProbeConfig | None:
    """The settings that the parsed flags ask for; None without ``--nfp-probe``.

    Raises:
        ConfigError: for a bad value, or flags of the probe without ``--nfp-probe``.
    """
    flags = vars(args)  # a Python program may have parsed without the probe's
    given = {dest: value for dest in _SINGLE_FLAGS if (value := flags.get(dest)) is not None}
    settings = flags.get("nfp_config")
    if not flags.get("nfp_probe"):
        if given or settings is not None:
            flag = next(iter(given), "nfp_config").replace("_", "-")
            raise ConfigError(f"--{flag} has no effect without --nfp-probe: add --nfp-probe")
        return None
    values = read_settings_argument(settings) if settings is not None else {}
    values.update({_SINGLE_FLAGS[dest]: value for dest, value in given.items()})
    return config_from_mapping(values)
