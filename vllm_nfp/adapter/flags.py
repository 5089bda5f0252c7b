"""The probe's flags on ``vllm serve`` and how their values reach the engine."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.draft_lengths import control_speculation, drafts
from vllm_nfp.config import (
    ENV_VAR,
    MAX_POSITIONS_LIMIT,
    ConfigError,
    ProbeConfig,
    check_writable_folder,
    config_from_mapping,
    read_settings_argument,
)
from vllm_nfp.results.run_folder import make_run_folder
from vllm_nfp.text import label

logger = logging.getLogger("vllm.nfp")

GROUP = "NFP probe"
_PUBLISHED = "nfp_published"
"""Attribute of parsed flags that are in effect; it travels with them to API servers."""

_SINGLE_FLAGS: dict[str, str] = {
    "nfp_epsilon": "epsilons",
    "nfp_max_positions": "max_positions",
    "nfp_overhead_budget": "overhead_budget",
    "nfp_output_dir": "output_dir",
    "nfp_draft_control": "draft_control",
}
"""Destination of a single flag -> the ProbeConfig field that it sets."""


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End the program as argparse does, without the usage: hundreds of flags, of which none helps.

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
        type=_reported(parser, "--nfp-config", _parse_settings),
        default=None,
        metavar="JSON|@FILE",
        help="Any setting of the probe, as a JSON object or @file that holds one.",
    )
    group.add_argument(
        "--nfp-epsilon",
        type=_reported(parser, "--nfp-epsilon", _parse_epsilons),
        default=None,
        metavar="SHARE[,SHARE...]",
        help="Tolerances at which positions count as free (default: 0.05,0.1,0.2).",
    )
    group.add_argument(
        "--nfp-max-positions",
        type=_reported(parser, "--nfp-max-positions", _parse_max_positions),
        default=None,
        metavar="N",
        help=f"Largest number of positions per sequence to probe, 2 to {MAX_POSITIONS_LIMIT} "
        "(default: 32).",
    )
    group.add_argument(
        "--nfp-overhead-budget",
        type=_reported(parser, "--nfp-overhead-budget", _parse_budget),
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
            _refuse(parser, str(error))
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
    values = read_settings_argument(settings) if settings is not None else {}
    values.update({_SINGLE_FLAGS[dest]: value for dest, value in given.items()})
    config = config_from_mapping({**values, "off_reason": out_of_reach(args)})
    if config.draft_control and config.off_reason is not None:
        raise ConfigError(
            f"--nfp-draft-control is not possible here: {config.off_reason}; leave it out"
        )
    return config


_REACHED_BY_RAY = {
    "distributed_executor_backend": "--distributed-executor-backend",
    "data_parallel_backend": "--data-parallel-backend",
}


def out_of_reach(args: argparse.Namespace) -> str | None:
    """Why this server's workers get no settings, so that the probe stays off; None if they do."""
    for dest, flag in _REACHED_BY_RAY.items():
        if getattr(args, dest, None) == "ray":
            return (
                f"{flag} ray starts workers that the probe's settings do not reach: use mp to "
                f"be probed"
            )
    return None


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
    run_dir = _run_folder() if by_files else None
    values = {name: getattr(config, name) for name in ProbeConfig.__dataclass_fields__}
    ready = ProbeConfig(**{**values, "run_dir": run_dir})
    os.environ[ENV_VAR] = ready.to_json()
    return ready


def _run_folder() -> str:
    try:
        return make_run_folder()
    except OSError as error:
        raise ConfigError(
            f"--nfp-probe needs a temporary directory, and none can be written "
            f"({error.strerror or error}): set TMPDIR to a directory with room that this user may "
            f"write"
        ) from None


def _by_files(config: ProbeConfig, args: argparse.Namespace) -> bool:
    """Whether results reach /metrics through files; the log says why, where it is a choice."""
    from vllm_nfp.adapter import extension

    if config.off_reason is not None:
        return True
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


def published(args: argparse.Namespace) -> bool:
    """Whether these flags are in effect: here, or in the process that handed them over."""
    return bool(getattr(args, _PUBLISHED, False))


def switch_on(args: argparse.Namespace) -> None:
    """Put the flags' settings into effect; a refusal is one sentence and exit code 2."""
    try:
        config = config_from_args(args)
        if config is None:
            return
        if config.draft_control:
            control_speculation(args)
        ready = publish_settings(config, _by_files(config, args))
        setattr(args, _PUBLISHED, True)
        if ready.off_reason is not None:
            _stay_off(ready, args, ready.off_reason)
        elif getattr(args, "headless", False) and config.output_dir is None:
            logger.warning(
                "vllm-nfp: --headless serves no /metrics, and those of the head show its own "
                "engines alone: add --nfp-output-dir to keep what is measured here"
            )
    except ConfigError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _stay_off(config: ProbeConfig, args: argparse.Namespace, reason: str) -> None:
    """Say in the log and on /metrics why no engine of this server is probed."""
    from vllm_nfp.adapter import metrics_bridge

    logger.warning("vllm-nfp: the probe stays off: %s; the server goes on without it", reason)
    names = getattr(args, "served_model_name", None) or [args.model]
    for engine in range(int(getattr(args, "data_parallel_size", None) or 1)):
        metrics_bridge.report_off(config, reason, label(str(names[0])), str(engine))
