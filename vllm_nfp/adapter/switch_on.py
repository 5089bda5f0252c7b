"""Puts the flags' settings into effect: the run folder, the environment, the draft lengths."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.drafts_asked import prepare_drafts
from vllm_nfp.adapter.flags import config_from_args
from vllm_nfp.adapter.start_files import check_files
from vllm_nfp.config import ENV_VAR, ConfigError, ProbeConfig
from vllm_nfp.results.run_folder import make_run_folder

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
        publish_settings(config)
        setattr(args, _PUBLISHED, True)
        _tell_of_headless(args, config)
    except ConfigError as error:
        print(f"vllm serve: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def publish_settings(config: ProbeConfig) -> ProbeConfig:
    """Check folders, files and vLLM's release, make the run folder, and set the environment.

    Returns the settings with ``run_dir`` filled in; child processes inherit them.

    Raises:
        ConfigError: for a folder that cannot be written, a file that cannot be used, a vLLM that is
            too old, or a first scan that nothing would end the wait for.
    """
    versions.require_supported()
    if config.fill_first:
        raise ConfigError(
            "--nfp-config must not hold 'fill_first' here: vllm-nfp measure sets it; leave it out"
        )
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


def _tell_of_headless(args: argparse.Namespace, config: ProbeConfig) -> None:
    """Where results are of a process that serves no /metrics."""
    flags = vars(args)
    if not flags.get("headless"):
        return
    nodes_of_engine = int(flags.get("nnodes") or 1) // int(flags.get("data_parallel_size") or 1)
    if nodes_of_engine > 1 and int(flags.get("node_rank") or 0) % nodes_of_engine:
        logger.info(
            "vllm-nfp: this node's ranks probe with those of its engine's first node, which "
            "reports for them: give it the same --nfp flags"
        )
    elif config.output_dir is None:
        logger.warning(
            "vllm-nfp: --headless serves no /metrics, and those of the head show its own "
            "engines alone: add --nfp-output-dir to keep what is measured here"
        )
