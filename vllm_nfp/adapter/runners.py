"""Finds the view that fits a model runner of vLLM's."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter import runner_v1, runner_v2
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.runner_v1 import V1Runner
from vllm_nfp.adapter.runner_v2 import V2Runner


class UnknownRunnerError(TypeError):
    """The model runner is none of the known ones; the message names it."""


def view_of(runner: Any) -> RunnerView:
    """The view that fits the runner, by the modules of its class and its bases.

    Raises:
        UnknownRunnerError: for a runner that is none of the known ones.
    """
    modules = {cls.__module__ for cls in type(runner).__mro__}
    if runner_v2.MODULE in modules:
        return V2Runner(runner)
    if runner_v1.MODULE in modules:
        return V1Runner(runner, "cpu" if runner.device.type == "cpu" else "v1")
    raise UnknownRunnerError(
        f"model runner {type(runner).__name__} is unknown; the probe supports V1, V2 and CPU"
    )
