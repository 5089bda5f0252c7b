"""Puts the hooks in place, as late and as few as each process needs.

A process that parses a command line is decided by its flags. Every other process (an engine, a
worker, an API server, a Python program) is decided by the settings in its environment. The two
meet where a shell, or the program that starts a server, carries settings of an earlier run: the
flags then replace them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import flags, sources, switch_on, targets
from vllm_nfp.adapter.observer import ObserverFactory
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ENV_VAR, config_from_environment

logger = logging.getLogger("vllm.nfp")

PATCHES = PatchSet()
"""What this process has replaced to observe and control vLLM."""
FLAGS = PatchSet()
"""What it has replaced to read its command line."""


def install(open_observer: ObserverFactory) -> None:
    """Install what this process needs; a fault here is logged and leaves vLLM as it was.

    Args:
        open_observer: makes what observes the steps of a worker in this process.
    """
    inherited = bool(os.environ.get(ENV_VAR))
    # Whoever parses flags has imported the parser: it is what loads plugins then.
    if not inherited or targets.ADD_CLI_ARGS.is_imported:
        _contained(lambda: _install_flags(open_observer), FLAGS)
    if inherited:
        _contained(lambda: _install_hooks(open_observer), PATCHES)


def _contained(put_in_place: Callable[[], None], patches: PatchSet) -> None:
    try:
        put_in_place()
    except Exception:
        patches.restore()
        logger.exception("vllm-nfp: the hooks could not be installed; the probe stays off")


def _install_flags(open_observer: ObserverFactory) -> None:
    """Add the flags to the parser and read them once it has parsed."""

    def add_cli_args(original: Any) -> Any:
        def wrapped(parser: Any) -> Any:
            parser = original(parser)
            flags.add_flags(parser, FLAGS)
            return parser

        return staticmethod(wrapped)

    def from_cli_args(original: Any) -> Any:
        def wrapped(cls: Any, args: Any) -> Any:
            _decide_by_flags(args, open_observer)
            return original.__func__(cls, args)

        return classmethod(wrapped)

    FLAGS.wrap(targets.ADD_CLI_ARGS, add_cli_args)
    FLAGS.wrap(targets.FROM_CLI_ARGS, from_cli_args)


def _decide_by_flags(args: Any, open_observer: ObserverFactory) -> None:
    """Switch the probe on as the flags say, whatever settings the environment had before."""
    if switch_on.published(args):
        return
    if os.environ.pop(ENV_VAR, None):
        logger.warning(
            "vllm-nfp: %s in the environment is ignored: the command line decides; unset it",
            ENV_VAR,
        )
        PATCHES.restore()
    switch_on.switch_on(args)
    if os.environ.get(ENV_VAR):
        _contained(lambda: _install_hooks(open_observer), PATCHES)
    else:
        # Help or a file of flags was asked for, and the probe was not: leave no trace.
        FLAGS.restore()


def _install_hooks(open_observer: ObserverFactory) -> None:
    """Observe the worker (where one will live) and join what is behind /metrics.

    Through vLLM's extension point where it has one, through hooks elsewhere.
    """
    from vllm_nfp.adapter import (
        draft_control,
        draft_lengths,
        extension,
        hooks,
        metrics_bridge,
        ray_workers,
    )

    config = config_from_environment()
    if config is None:
        return
    ray_workers.carry_settings(PATCHES)
    if config.draft_control:
        draft_control.install(PATCHES, config)
        draft_lengths.install_sizes(PATCHES, config)
    metrics_bridge.install(PATCHES, config)
    try:
        if sources.has_extension_point():
            hooks.install_graphs(PATCHES, config)
            extension.register(PATCHES, config, open_observer)
        else:
            hooks.install(PATCHES, config, open_observer)
    except Exception as error:
        logger.exception("vllm-nfp: this vLLM cannot be hooked; the probe stays off")
        metrics_bridge.report_unhooked(config, error)
