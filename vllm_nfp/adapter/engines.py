"""vLLM engines in this process, for work without a server.

As a program, ``python -m vllm_nfp.adapter.engines ENGINE_ARGS`` starts an engine for the first scan
of its probe alone. If that scan waits, random prompts fill the KV cache before it.
:mod:`vllm_nfp.measure` runs it, with the probe's settings in the environment. The results are in
the settings' output directory when it ends. If the engine does not start, a line of standard error
begins with :data:`vllm_nfp.start.process.FAILURE`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_nfp.adapter import first_scan
from vllm_nfp.adapter.kv_fill import fill
from vllm_nfp.config import config_from_environment
from vllm_nfp.env_var import ENV_VAR
from vllm_nfp.start.process import FAILURE, end_with_parent

_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""The engine and its first worker run in this process, and vLLM's constructor returns when they
are ready."""
WITHOUT_PROBE = {
    **_IN_PROCESS,
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    ENV_VAR: "",  # a probe between the runs that are timed would be in their times
}
DUMMY_WEIGHTS = {"load_format": "dummy", "disable_log_stats": True}


def start_engine(model: str | Path, arguments: Mapping[str, Any]) -> Any:
    """A ``vllm.LLM`` in this process; its prompts are token ids.

    Args:
        model: a directory with a config.json, or a name that vLLM knows.
        arguments: further arguments of ``vllm.LLM``.
    """
    os.environ.update(_IN_PROCESS)
    from vllm import LLM

    return LLM(model=str(model), **{"skip_tokenizer_init": True, **arguments})


def worker_of(llm: Any) -> Any:
    """The worker of an engine that :func:`start_engine` made; ``.model_runner`` is its runner."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


@contextmanager
def runner_without_probe(model: Path, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """The model runner of an engine with dummy weights and without the probe.

    The environment of this process is restored when the block ends.

    Args:
        model: a directory with a config.json.
        arguments: further arguments of ``vllm.LLM``.
    """
    before = {name: os.environ.get(name) for name in WITHOUT_PROBE}
    os.environ.update(WITHOUT_PROBE)
    try:
        llm = start_engine(model, {**DUMMY_WEIGHTS, **arguments})  # it ends when nothing holds it
        yield worker_of(llm).model_runner
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main(arguments: str) -> int:
    """Run the engine of :mod:`vllm_nfp.measure`; the exit code, 0 if it started."""
    end_with_parent()
    try:
        values = json.loads(arguments)
        _check_names(values)
        llm = start_engine(values.pop("model"), {**_platform_defaults(), **values})
        _scan_if_it_waits(llm)
    except Exception as error:
        traceback.print_exc()
        print(f"{FAILURE}{_one_line(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


def _scan_if_it_waits(llm: Any) -> None:
    """Fill the KV cache for a first scan that was put off, and run it on all ranks.

    Filling may take as long as the scan may.
    """
    config = config_from_environment()
    shape = next(filter(None, llm.collective_rpc(first_scan.to_fill)), None)
    if config is None or shape is None:
        return
    note = fill(llm, shape, config.startup_seconds)
    llm.collective_rpc(first_scan.scan, args=(note,))


def _check_names(values: Mapping[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"vLLM has no engine argument {unknown[0]!r}; names have underscores, "
            f"as in max_model_len"
        )


def _platform_defaults() -> dict[str, Any]:
    from vllm.platforms import current_platform

    # On a CPU no graph is captured, and compiling the model needs a C++ compiler.
    return {"enforce_eager": True} if current_platform.is_cpu() else {}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
