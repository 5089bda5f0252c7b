"""Fits what the flags ask of drafts to --speculative-config: draft control, or a feed of costs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.draft_lengths import control_speculation, given_speculation
from vllm_nfp.adapter.verification import FIRST_RELEASE, WITHOUT_CONFIDENCES
from vllm_nfp.config import ConfigError, ProbeConfig

logger = logging.getLogger("vllm.nfp")

SETTING = "enable_adaptive_verification"
YIELDS = (
    "draft control yields to adaptive verification, which chooses drafts at every step by itself: "
    "use --nfp-verification-costs to give it measured costs"
)


def prepare_drafts(config: ProbeConfig, args: argparse.Namespace) -> ProbeConfig:
    """The settings as far as this speculation allows them; draft control gets its table.

    Raises:
        ConfigError: if what is asked for is not possible with this speculation.
    """
    speculation = given_speculation(args)
    adaptive = isinstance(speculation, Mapping) and bool(speculation.get(SETTING))
    if config.verification_costs:
        check_feed(speculation if adaptive else None)
    if config.draft_control and adaptive:
        logger.warning("vllm-nfp: %s", YIELDS)
        return replace(config, draft_control=False)
    if config.draft_control:
        check_nodes(args)
        control_speculation(args)
    return config


def check_nodes(args: argparse.Namespace) -> None:
    """Whether all ranks are sure to capture the same CUDA graphs for draft lengths.

    Raises:
        ConfigError: if a node may be without the draft control: its ranks would capture other
            graphs, and the ranks would wait for each other for ever.
    """
    flags = vars(args)
    nodes = int(flags.get("nnodes") or 1)
    spread = f"--nnodes {nodes}" if nodes > 1 else None
    for dest in ("distributed_executor_backend", "data_parallel_backend"):
        if flags.get(dest) == "ray":
            spread = f"--{dest.replace('_', '-')} ray"
    if spread is not None:
        raise ConfigError(
            f"--nfp-draft-control does not work with {spread}, since ranks on a node without it "
            f"would capture other CUDA graphs: leave one of the two out"
        )


def check_feed(speculation: Mapping[str, Any] | None) -> None:
    """Whether adaptive verification can be fed.

    Args:
        speculation: with adaptive verification; None: it is not asked for.

    Raises:
        ConfigError: if it cannot.
    """
    flag = "--nfp-verification-costs"
    if speculation is None:
        raise ConfigError(
            f'{flag} feeds adaptive verification, which is off: add "{SETTING}": true to '
            f"--speculative-config, or leave {flag} out"
        )
    if not versions.is_since(FIRST_RELEASE):
        raise ConfigError(
            f"{flag} needs vLLM {FIRST_RELEASE[0]}.{FIRST_RELEASE[1]} or newer, not "
            f"{versions.installed_version()}: leave it out"
        )
    method = speculation.get("method")
    if method in WITHOUT_CONFIDENCES:
        raise ConfigError(
            f"{flag} does not support the draft method {method!r}, which vLLM never verifies "
            f"adaptively: use a method with a draft model, such as eagle3 or mtp"
        )
