"""Asks vLLM what it would do here: ``python -m vllm_nfp.adapter.examine JSON`` prints one line.

The argument is ``{"model": FOLDER or null, "flags": [...]}``, the flags as for ``vllm serve``.
Run by :mod:`vllm_nfp.doctor` in a process of its own, so that neither a broken vLLM nor the time
and memory of importing it are the caller's.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nfp.config import ProbeConfig

BAD_FLAGS = 2
"""Exit status for flags that vLLM's parser or the probe refuses; stderr's last line says why."""

_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def examine(model: str | None, flags: Sequence[str]) -> dict[str, Any]:
    """What vLLM says of this machine, and of a model if one is given.

    Values are None where it does not say.
    """
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    found: dict[str, Any] = {
        "platform": "cpu" if current_platform.is_cpu() else str(current_platform.device_type),
        "triton": bool(HAS_TRITON),
        "forced_runner": os.environ.get(_RUNNER_VARIABLE),
    }
    if model is not None:
        found |= _of_model(model, flags)
    return found


def _of_model(model: str, flags: Sequence[str]) -> dict[str, Any]:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_nfp.adapter import support
    from vllm_nfp.adapter.decoding import expected_refusal
    from vllm_nfp.adapter.feature_list import features_of
    from vllm_nfp.adapter.versions import Decision, Mode

    args = _parsed(model, flags)
    probe = _settings(args)
    config = EngineArgs.from_cli_args(args).create_engine_config(headless=bool(args.headless))
    decision = support.decide(config, passive=bool(probe and probe.passive))
    backend = _attention_backend(config)
    if decision.mode is Mode.ACTIVE and backend is not None:
        refusal = expected_refusal(config, backend)
        decision = Decision(Mode.PASSIVE, refusal) if refusal else decision
    return {
        "mode": str(decision.mode),
        "reason": decision.reason,
        "features": [
            {"name": f.name, "mode": str(f.mode), "why": f.reason(config), "needs": f.needs}
            for f in features_of(config)
        ],
        "use_v2": bool(config.use_v2_model_runner),
        "v2_unsupported": _unsupported_by_v2(config),
        "backend": None if backend is None else str(backend.get_name()),
        "graphs": _graphs(config),
        **_drafting(config.speculative_config, args.speculative_config or {}),
        **_limits(config),
        "flash_attention": _flash_attention(config),
        "data_parallel": int(config.parallel_config.data_parallel_size),
        **_stored(config),
    }


def _settings(args: argparse.Namespace) -> ProbeConfig | None:
    """The probe's settings; it ends where ``vllm serve`` ends for them, in the same words."""
    from vllm_nfp.adapter import flags as nfp
    from vllm_nfp.adapter.drafts_asked import prepare_drafts
    from vllm_nfp.config import ConfigError

    try:
        probe = nfp.config_from_args(args)
        # On a copy: draft control adds a table, and what was given is what is judged.
        return None if probe is None else prepare_drafts(probe, copy.copy(args))
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(BAD_FLAGS) from None


def _parsed(model: str, flags: Sequence[str]) -> Any:
    """What ``vllm serve MODEL FLAGS --nfp-probe`` would read; it refuses what that refuses."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from vllm_nfp.adapter import flags as nfp
    from vllm_nfp.adapter.patch import PatchSet

    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    nfp.add_flags(command.subparser_init(parser.add_subparsers()), PatchSet())
    args = parser.parse_args([command.name, model, "--nfp-probe", *flags])
    command.validate(args)
    args.model = model
    return args


def _unsupported_by_v2(config: Any) -> list[str]:
    try:
        return list(map(str, config._get_v2_model_runner_unsupported_features()))
    except Exception:
        return []


def _attention_backend(config: Any) -> Any:
    """The class of the backend that vLLM would select; None if it does not say."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model = config.model_config
    try:
        with set_current_vllm_config(config):
            return get_attn_backend(
                model.get_head_size(),
                model.dtype,
                config.cache_config.cache_dtype,
                use_mla=bool(model.use_mla),
                num_heads=model.get_num_attention_heads(config.parallel_config),
            )
    except Exception:
        return None


def _graphs(config: Any) -> dict[str, Any]:
    compilation = config.compilation_config
    mode = compilation.cudagraph_mode
    sizes = list(compilation.cudagraph_capture_sizes or ())
    return {
        "eager": bool(config.model_config.enforce_eager),
        "mode": None if mode is None else mode.name,
        "largest": max(sizes, default=0),
        "sizes": sorted(sizes),
    }


def _flash_attention(config: Any) -> int | None:
    """The version of FlashAttention that vLLM would run; None if it does not say."""
    from vllm.config import set_current_vllm_config

    try:
        from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

        with set_current_vllm_config(config):
            version = get_flash_attn_version(head_size=config.model_config.get_head_size())
    except Exception:
        return None
    return None if version is None else int(version)


def _stored(config: Any) -> dict[str, Any]:
    """How the model is split and stored, as a prediction needs it."""
    quantization = config.model_config.quantization
    return {
        "tensor_parallel": int(config.parallel_config.tensor_parallel_size),
        "expert_parallel": bool(config.parallel_config.enable_expert_parallel),
        "quantization": None if quantization is None else str(quantization),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
    }


def _limits(config: Any) -> dict[str, int]:
    return {
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "max_model_len": int(config.model_config.max_model_len),
    }


def _drafting(speculation: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Args: given: --speculative-config, whose table vLLM drops where it cannot follow it."""
    if speculation is None:
        return {"speculative": None, "draft_lengths_by_batch_size": False}
    table = given.get("num_speculative_tokens_per_batch_size") or []
    return {
        "speculative": speculation.method,
        "draft_lengths_by_batch_size": bool(table),
        "draft_length": int(speculation.num_speculative_tokens),
        "draft_table": [list(map(int, row)) for row in table],
        "draft_slots": int(speculation.max_num_new_slots_for_drafting),
        "adaptive_verification": bool(given.get("enable_adaptive_verification")),
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.argv = ["vllm"]  # what the plugin reads
    # vLLM logs to stdout: the answer is its last line.
    print("\n" + json.dumps(examine(asked["model"], asked["flags"])), flush=True)
