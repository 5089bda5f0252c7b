"""Has vLLM look at a model's class in the process that asks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock


def in_this_process() -> AbstractContextManager[Any]:
    """vLLM would start a process for it, to keep CUDA out of this one: that imports vLLM again.

    It does so once for each class on a machine, and keeps the answer in its cache.
    """
    registry = "vllm.model_executor.models.registry"
    return mock.patch(f"{registry}._run_in_subprocess", lambda inspect: inspect())
