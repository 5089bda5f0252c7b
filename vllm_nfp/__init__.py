"""vllm-nfp: how many positions per sequence a live vLLM server decodes for free.

Its functions are loaded when they are first asked for: vLLM imports this package in each of its
processes, and most of them need nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nfp.draft.recommend import recommend
    from vllm_nfp.principle.prediction import predict
    from vllm_nfp.results.profile import load_profile

__version__ = "0.1.0"

__all__ = ["__version__", "load_profile", "predict", "recommend"]

_HOMES = {
    "load_profile": "vllm_nfp.results.profile",
    "predict": "vllm_nfp.principle.prediction",
    "recommend": "vllm_nfp.draft.recommend",
}
"""Public name -> the module that it is loaded from when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
