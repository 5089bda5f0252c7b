"""Puts the flags' settings into effect: the run folder, the environment, the draft lengths."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace

from vllm_nfp.adapter import metrics_bridge, versions
from vllm_nfp.adapter.drafts_asked import prepare_drafts
from vllm_nfp.adapter.flags import config_from_args
from vllm_nfp.adapter.start_files import check_files
from vllm_nfp.config import ENV_VAR, ConfigError, ProbeConfig
from vllm_nfp.results.run_folder import make_run_folder
from vllm_nfp.text import label

logger = logging.getLogger("vllm.nfp")

_PUBLISHED = "nfp_published"
"""Attribute of parsed flags that are in effect; it travels with them to API servers."""


def published(args: argparse.Namespace) -> bool:
    """Whether these flags are in effect: here, or in the process that handed them over."""
    return bool(vars(args).get(_PUBLISHED))


def switch_on(args: argparse.Namespace) -> None:
    """Put the flags' settings into effect; a refusal is one sentence and exit code 2."""
    try:
        config = config_from_args(args)
        if config is None:
            return
        config = prepare_drafts(config, args)
        ready = publish_settings(config)
        setattr(args, _PUBLISHED, True)
        if ready.off_reason is not None:
            _stay_off(ready, args, ready.off_reason)
        elif vars(args).get("headless") and config.output_dir is None:
            logger.warning(
                "vllm-nfp: --headless serves no /metrics, and those of the head show its own "
                "engines alone: add --nfp-output-dir to keep what is measured here"
            )
    except ConfigError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def publish_settings(config: ProbeConfig) -> ProbeConfig:
    """Check folders, files and vLLM's release, make the run folder, and set the environment.

    Returns the settings with ``run_dir`` filled in; child processes inherit them.

    Raises:
        ConfigError: for a folder that cannot be written, a file that cannot be used, or a vLLM
            that is too old.
    """
    versions.require_supported()
    check_files(config)
    ready = replace(config, run_dir=_run_folder())
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


def _stay_off(config: ProbeConfig, args: argparse.Namespace, reason: str) -> None:
    """Say in the log and on /metrics why no engine of this server is probed."""
    logger.warning("vllm-nfp: the probe stays off: %s; the server continues without it", reason)
    names = vars(args).get("served_model_name") or [args.model]
    for engine in range(int(vars(args).get("data_parallel_size") or 1)):
        metrics_bridge.report_off(config, reason, label(str(names[0])), str(engine))
