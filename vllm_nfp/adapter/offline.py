"""An engine without a server, started for its probe's first scan alone.

Run as ``python -m vllm_nfp.adapter.offline ENGINE_ARGS`` with the probe's settings in the
environment, by :mod:`vllm_nfp.measure`. The results lie in the settings' output folder when it
ends. If the engine does not start, the last line of stderr begins with :data:`FAILURE`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
FAILURE = "vllm-nfp-failure: "


def main(arguments: str) -> int:
    """Start the engine; 0 if it started."""
    end_with_parent()
    # In this process, so that the worker has ended its scan when the engine is there, and
    # nothing is left to wait for.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        _start(json.loads(arguments))
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"{FAILURE}{_one_line(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


def end_with_parent() -> None:
    """Let the kernel end this process when its parent dies, so that no engine keeps a GPU.

    Where there is no prctl (not on Linux) the parent alone sees to that.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _start(values: dict[str, Any]) -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"vLLM has no engine argument {unknown[0]!r}; names have underscores, "
            f"as in max_model_len"
        )
    # On a CPU no graph is captured, and compiling the model would want a C++ compiler.
    defaults: dict[str, Any] = {"enforce_eager": True} if current_platform.is_cpu() else {}
    # Probes make their prompts of token ids.
    LLM(**{"skip_tokenizer_init": True, **defaults, **values})


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
