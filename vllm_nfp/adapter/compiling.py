"""Keeps Triton from compiling a kernel between real steps, and from reporting one at the start.

Triton compiles a kernel when it is called with arguments of a new kind, such as a count of rows
that 16 does not divide. That takes half a second and more, in which no real step runs: a server of
Qwen3-30B-A3B stood still for 0.6 s when a probe ran three positions for the first time
(benchmarks/results/2026-11-28-h200x4-at-defaults/moe). vLLM compiles what its own steps need when
it captures their CUDA graphs, and a probe's steps have other numbers of rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_nfp.types import RefusedForNowError


class NotCompiledError(RefusedForNowError):
    """A run needs a kernel that Triton has not compiled yet."""


@contextmanager
def compiling_refused() -> Iterator[None]:
    """What is called inside must not compile a kernel of Triton's.

    Raises:
        NotCompiledError: ahead of a compilation, out of the call that needs it.
    """
    with _replaced("jit_cache_hook", _refuse):
        yield


@contextmanager
def compiling_unreported() -> Iterator[None]:
    """What is called inside may compile, and nobody is told: no request waits for it.

    After its warm-up vLLM reports each kernel that Triton compiles, because requests wait for it:
    with a warning, or with an error under ``--jit-monitor-mode error``.
    """
    with _replaced("jit_post_compile_hook", None):
        yield


def _refuse(*, fn: Any = None, **_: Any) -> bool:
    name = getattr(fn, "name", "a kernel")
    raise NotCompiledError(f"{name} would have to be compiled, while requests are served")


@contextmanager
def _replaced(hook: str, by: Any) -> Iterator[None]:
    """Set a hook of ``triton.knobs.runtime``; nothing compiles where Triton is not loaded."""
    runtime = getattr(getattr(sys.modules.get("triton"), "knobs", None), "runtime", None)
    if runtime is None or not hasattr(runtime, hook):
        yield
        return
    before = getattr(runtime, hook)
    setattr(runtime, hook, by)
    try:
        yield
    finally:
        setattr(runtime, hook, before)
