"""Puts the hooks in place, as late and as few as each process needs."""

from __future__ import annotations

import logging
import os
from typing import Any

from vllm_nfp.config import ENV_VAR, ProbeConfig, config_from_environment
from vllm_nfp.engine import flags
from vllm_nfp.engine.patch import PatchSet

logger = logging.getLogger("vllm.nfp")

PATCHES = PatchSet()
"""Every attribute of vLLM that this process has replaced."""


def install() -> None:
    """Install what this process needs; a fault here is logged and leaves vLLM as it was."""
    try:
        if os.environ.get(ENV_VAR):
            _install_hooks()
        else:
            _install_flags()
    except Exception:
        PATCHES.restore()
        logger.exception("vllm-nfp: the hooks could not be installed; the probe stays off")


def _install_flags() -> None:
    """Add the flags to the parser and read them once it has parsed."""
    from vllm.engine.arg_utils import EngineArgs

    def add_cli_args(original: Any) -> Any:
        def wrapped(parser: Any) -> Any:
            parser = original(parser)
            flags.add_flags(parser)
            return parser

        return staticmethod(wrapped)

    def from_cli_args(original: Any) -> Any:
        def wrapped(cls: Any, args: Any) -> Any:
            flags.switch_on(args)
            if os.environ.get(ENV_VAR):
                install()
            else:
                # Help or a file of flags was asked for, and the probe was not: leave no trace.
                PATCHES.restore()
            return original.__func__(cls, args)

        return classmethod(wrapped)

    PATCHES.wrap(EngineArgs, "add_cli_args", add_cli_args)
    PATCHES.wrap(EngineArgs, "from_cli_args", from_cli_args)


def _install_hooks() -> None:
    """Observe the worker (where one will live) and join what is behind /metrics.

    Through vLLM's extension point where it has one, through hooks elsewhere.
    """
    from vllm_nfp.engine import (
        draft_control,
        draft_lengths,
        extension,
        metrics_bridge,
        worker_hook,
    )

    config = config_from_environment()
    if config is None:
        return
    if config.draft_control:
        draft_control.install(PATCHES, config)
        draft_lengths.install_sizes(PATCHES, config)
    metrics_bridge.install(PATCHES, config)
    try:
        if extension.present():
            if config.draft_control:
                worker_hook.install_graphs(PATCHES, config)
            extension.register(config)
        else:
            worker_hook.install(PATCHES, config)
    except Exception as error:
        logger.exception("vllm-nfp: this vLLM cannot be hooked; the probe stays off")
        metrics_bridge.report_unhooked(config, error)


__all__ = ["PATCHES", "ProbeConfig", "install"]
