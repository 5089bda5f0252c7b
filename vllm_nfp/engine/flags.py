"""The probe's flags on ``vllm serve`` and how their values reach the engine."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from vllm_nfp.config import (
    ENV_VAR,
    MAX_POSITIONS_LIMIT,
    ConfigError,
    ProbeConfig,
    check_writable_folder,
    config_from_mapping,
    read_settings_argument,
)
from vllm_nfp.engine import versions
from vllm_nfp.engine.draft_lengths import control_speculation, drafts
from vllm_nfp.run_folder import make_run_folder

logger = logging.getLogger("vllm.nfp")

GROUP = "NFP probe"

_SINGLE_FLAGS: dict[str, str] = {
    "nfp_epsilon": "epsilons",
    "nfp_max_positions": "max_positions",
    "nfp_overhead_budget": "overhead_budget",
    "nfp_output_dir": "output_dir",
    "nfp_draft_control": "draft_control",
}
"""Destination of a single flag -> the ProbeConfig field that it sets."""


def _reported(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Turn a refusal into the message that argparse prints before it exits with code 2."""

    def parse_or_refuse(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the probe's flags to the parser of ``vllm serve``, in a group of their own."""
    if any(group.title == GROUP for group in parser._action_groups):
        return
    group = parser.add_argument_group(
        GROUP,
        "Near-Free Parallelism: measures how many positions per sequence this server decodes "
        "at almost no extra latency, between real steps, and reports it on /metrics.",
    )
    group.add_argument("--nfp-probe", action="store_true", help="Turn the probe on.")
    group.add_argument(
        "--nfp-config",
        type=_reported(_parse_settings),
        default=None,
        metavar="JSON|@FILE",
        help="Any setting of the probe, as a JSON object or @file that holds one.",
    )
    group.add_argument(
        "--nfp-epsilon",
        type=_reported(_parse_epsilons),
        default=None,
        metavar="SHARE[,SHARE...]",
        help="Tolerances at which positions count as free (default: 0.05,0.1,0.2).",
    )
    group.add_argument(
        "--nfp-max-positions",
        type=_reported(_parse_max_positions),
        default=None,
        metavar="N",
        help=f"Largest number of positions per sequence to probe, 2 to {MAX_POSITIONS_LIMIT} "
        "(default: 32).",
    )
    group.add_argument(
        "--nfp-overhead-budget",
        type=_reported(_parse_budget),
        default=None,
        metavar="SHARE",
        help="Largest share of GPU time that probing may take, 0 to 0.5 (default: 0.01).",
    )
    group.add_argument(
        "--nfp-output-dir",
        default=None,
        metavar="DIR",
        help="Folder for raw samples and results (default: nothing is kept).",
    )
    group.add_argument(
        "--nfp-draft-control",
        action="store_true",
        default=None,
        help="Choose the draft length of speculative decoding live, from measured step times and "
        "acceptance (with --speculative-config).",
    )
    _check_after_parsing(parser)


def _check_after_parsing(parser: argparse.ArgumentParser) -> None:
    """Refuse flags that do not go together while nothing of the server has been started."""
    parse = parser.parse_known_args

    def parse_and_check(*args: Any, **kwargs: Any) -> Any:
        parsed = parse(*args, **kwargs)
        try:
            config = config_from_args(parsed[0])
            if config is not None and config.output_dir is not None:
                check_writable_folder("--nfp-output-dir", config.output_dir)
        except ConfigError as error:
            parser.error(str(error))
        return parsed

    parser.parse_known_args = parse_and_check  # type: ignore[method-assign]


def config_from_args(args: argparse.Namespace) -> ProbeConfig | None:
    """The settings that the parsed flags ask for; None without ``--nfp-probe``.

    Raises:
        ConfigError: for a bad value, or flags of the probe without ``--nfp-probe``.
    """
    given = {
        dest: value for dest in _SINGLE_FLAGS if (value := getattr(args, dest, None)) is not None
    }
    settings = getattr(args, "nfp_config", None)
    if not getattr(args, "nfp_probe", False):
        if given or settings is not None:
            flag = next(iter(given), "nfp_config").replace("_", "-")
            raise ConfigError(f"--{flag} has no effect without --nfp-probe: add --nfp-probe")
        return None
    if getattr(args, "distributed_executor_backend", None) == "ray":
        raise ConfigError(
            "--nfp-probe does not work with --distributed-executor-backend ray, whose workers its "
            "settings do not reach: use mp or uni, or leave --nfp-probe out"
        )
    values = read_settings_argument(settings) if settings is not None else {}
    values.update({_SINGLE_FLAGS[dest]: value for dest, value in given.items()})
    return config_from_mapping(values)


def publish_settings(config: ProbeConfig, by_files: bool = True) -> ProbeConfig:
    """Check what only this machine can tell, make the run folder, and set the environment.

    Returns the settings with ``run_dir`` filled in; child processes inherit them.

    Args:
        by_files: results reach /metrics through files; without, vLLM carries them.

    Raises:
        ConfigError: for a folder that cannot be written or a vLLM that is too old.
    """
    versions.require_supported()
    if config.output_dir is not None:
        check_writable_folder("--nfp-output-dir", config.output_dir)
    try:
        run_dir = make_run_folder() if by_files else None
    except OSError as error:
        raise ConfigError(
            f"no temporary folder can be written ({error.strerror}): set TMPDIR to a folder that "
            f"has room"
        ) from None
    values = {name: getattr(config, name) for name in ProbeConfig.__dataclass_fields__}
    ready = ProbeConfig(**{**values, "run_dir": run_dir})
    os.environ[ENV_VAR] = ready.to_json()
    return ready


def _by_files(config: ProbeConfig, args: argparse.Namespace) -> bool:
    """Whether results reach /metrics through files; the log says why, where it is a choice."""
    from vllm_nfp.engine import extension

    if not extension.present():
        return True
    reason = extension.why_not_values(
        config,
        speculative=drafts(args),
        log_stats=not getattr(args, "disable_log_stats", False),
    )
    if reason is None:
        logger.info("vllm-nfp: vLLM's extension point carries the results to /metrics")
    else:
        logger.info("vllm-nfp: files carry the results to /metrics: %s", reason)
    return reason is not None


def switch_on(args: argparse.Namespace) -> None:
    """Put the flags' settings into effect; a refusal is one sentence and exit code 2."""
    if os.environ.get(ENV_VAR):
        return
    try:
        config = config_from_args(args)
        if config is None:
            return
        if config.draft_control:
            control_speculation(args)
        publish_settings(config, _by_files(config, args))
        if getattr(args, "headless", False) and config.output_dir is None:
            logger.warning(
                "vllm-nfp: --headless serves no /metrics, and those of the head show its own "
                "engines alone: add --nfp-output-dir to keep what is measured here"
            )
    except ConfigError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
