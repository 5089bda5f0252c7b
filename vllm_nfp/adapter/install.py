"""Puts the hooks in place, as late and as few as each process needs.

A process that parses a command line is decided by its flags. Every other process (an engine, a
worker, an API server, a Python program) is decided by the settings in its environment. The two
meet where a shell, or the program that starts a server, carries settings of an earlier run: the
flags then replace them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import flags
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ENV_VAR, ProbeConfig, config_from_environment

logger = logging.getLogger("vllm.nfp")

PATCHES = PatchSet()
"""Attributes of vLLM that this process has replaced to observe and control it."""
FLAGS = PatchSet()
"""Those that it has replaced to read its command line."""
_PARSER = "vllm.engine.arg_utils"


def install() -> None:
    """Install what this process needs; a fault here is logged and leaves vLLM as it was."""
    inherited = bool(os.environ.get(ENV_VAR))
    # Whoever parses flags has imported the parser: it is what loads plugins then.
    if not inherited or _PARSER in sys.modules:
        _contained(_install_flags, FLAGS)
    if inherited:
        _contained(_install_hooks, PATCHES)


def _contained(put_in_place: Callable[[], None], patches: PatchSet) -> None:
    try:
        put_in_place()
    except Exception:
        patches.restore()
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
            _decide_by_flags(args)
            return original.__func__(cls, args)

        return classmethod(wrapped)

    FLAGS.wrap(EngineArgs, "add_cli_args", add_cli_args)
    FLAGS.wrap(EngineArgs, "from_cli_args", from_cli_args)


def _decide_by_flags(args: Any) -> None:
    """Switch the probe on as the flags say, whatever settings the environment had before."""
    if flags.published(args):
        return
    if os.environ.pop(ENV_VAR, None):
        logger.warning(
            "vllm-nfp: %s in the environment is ignored: the command line decides; unset it",
            ENV_VAR,
        )
        _remove_hooks()
    flags.switch_on(args)
    if os.environ.get(ENV_VAR):
        _contained(_install_hooks, PATCHES)
    else:
        # Help or a file of flags was asked for, and the probe was not: leave no trace.
        FLAGS.restore()


def _remove_hooks() -> None:
    from vllm_nfp.adapter import extension

    PATCHES.restore()
    extension.unregister()


def _install_hooks() -> None:
    """Observe the worker (where one will live) and join what is behind /metrics.

    Through vLLM's extension point where it has one, through hooks elsewhere.
    """
    from vllm_nfp.adapter import (
        draft_control,
        draft_lengths,
        extension,
        metrics_bridge,
        worker_hook,
    )

    config = config_from_environment()
    if config is None:
        return
    if config.off_reason is not None:
        metrics_bridge.install(PATCHES, config)
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


__all__ = ["FLAGS", "PATCHES", "ProbeConfig", "install"]
