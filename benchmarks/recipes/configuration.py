"""A server's configuration, as far as the probe's check looks at it.

vLLM's own parser reads the flags. The parts of vLLM's configuration are then made of what was
given and of the model's facts: to make one itself, vLLM needs the model's files, a GPU and all
nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from benchmarks.recipes.commands import Command
from benchmarks.recipes.model_facts import ModelFacts

NEEDS_FILES = ("--config", "--chat-template", "--speculative-config", "-sc", "--hf-overrides")
"""Flags whose files or models are not here; the check looks at none of them."""


class UnreadableFlagsError(ValueError):
    """vLLM's parser refuses the flags; the message is its."""


def parse(flags: Sequence[str]) -> argparse.Namespace:
    """What vLLM reads.

    Raises:
        UnreadableFlagsError: if it refuses them.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given: argparse.Namespace = _parser().parse_known_args(_without_files(flags))[0]
            return given
    except (SystemExit, ValueError) as error:
        words = said.getvalue().strip().splitlines() or [str(error)]
        raise UnreadableFlagsError(words[-1]) from None


@cache
def _parser() -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm serve")
    AsyncEngineArgs.add_cli_args(parser)
    parser.add_argument("--headless", action="store_true")
    return parser


def _without_files(flags: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        name = word.split("=")[0]
        if name.split(".")[0] not in NEEDS_FILES:
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return kept


def configuration(command: Command, facts: ModelFacts) -> SimpleNamespace:
    """What vLLM would make of it.

    Raises:
        UnreadableFlagsError: if its parser refuses the flags.
    """
    given = parse(command.flags)
    return SimpleNamespace(
        parallel_config=_parallel(given),
        model_config=_model(given, command, facts),
        cache_config=SimpleNamespace(**vars(given), use_kda_recoverssm=False),
        scheduler_config=given,
        compilation_config=given.compilation_config,
        offload_config=_offload(given),
        device_config=SimpleNamespace(device_type="cuda"),
        kv_transfer_config=given.kv_transfer_config,
        ec_transfer_config=given.ec_transfer_config,
        lora_config=given if given.enable_lora else None,
        speculative_config=None,
    )


def _parallel(given: argparse.Namespace) -> SimpleNamespace:
    named = {**vars(given), "rank": 0}
    named["data_parallel_size"] = given.data_parallel_size or 1
    named["data_parallel_size_local"] = (
        given.data_parallel_size_local or named["data_parallel_size"]
    )
    named["use_ubatching"] = bool(given.enable_dbo or given.ubatch_size > 1)
    named["data_parallel_index"] = 0
    return SimpleNamespace(**named)


def _model(given: argparse.Namespace, command: Command, facts: ModelFacts) -> SimpleNamespace:
    named = {**vars(given), "runner_type": "generate" if given.runner == "auto" else given.runner}
    images = facts.multimodal and not given.language_model_only
    return SimpleNamespace(
        **named,
        is_hybrid=facts.hybrid,
        is_attention_free=facts.attention_free,
        is_encoder_decoder=facts.encoder_decoder,
        is_moe=command.experts,
        uses_mrope=facts.rotary_dimensions,
        supports_multimodal_inputs=images,
        hf_config=SimpleNamespace(architectures=[facts.architecture]),
    )


def _offload(given: argparse.Namespace) -> SimpleNamespace:
    uva = SimpleNamespace(cpu_offload_gb=given.cpu_offload_gb)
    return SimpleNamespace(offload_backend=given.offload_backend, uva=uva)
