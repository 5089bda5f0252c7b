"""vLLM's dummy batches, which the observer has to count with the steps.

With data parallelism and experts all engines take their steps together, since the experts of each
serve the tokens of all. An engine without a request runs a dummy batch instead of a step.
"""

from __future__ import annotations

from typing import Any, Protocol

from vllm_nfp.adapter import targets
from vllm_nfp.adapter.patch import PatchSet


class Counts(Protocol):
    """What counts them: a ``StepObserver``, for one."""

    def before_dummy(self) -> None:
        """A dummy batch is about to run."""
        ...


def engines_together(vllm_config: Any) -> int:
    """Engines that take their steps together with this one, itself among them."""
    try:
        engines = int(vllm_config.parallel_config.data_parallel_size)
        return engines if vllm_config.model_config.is_moe else 1
    except AttributeError:
        return 1  # a vLLM that keeps them elsewhere is not probed


def steps_together(vllm_config: Any) -> bool:
    """Whether this engine takes its steps together with others."""
    return engines_together(vllm_config) > 1


def install(patches: PatchSet, worker: Any, observer: Counts) -> None:
    """Tell the observer before each dummy batch of a worker.

    Raises:
        MissingTargetError: if the worker has no such method.
    """

    def execute_dummy_batch(original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            observer.before_dummy()
            return original(*args, **kwargs)

        return wrapped

    patches.wrap(targets.EXECUTE_DUMMY_BATCH, execute_dummy_batch, on=worker)
