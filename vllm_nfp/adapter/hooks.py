"""Hooks a worker after its warm-up, and its model runner's steps from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vllm_nfp.adapter import draft_lengths, length_graphs, metrics_bridge, observer, targets
from vllm_nfp.adapter.graph_place import CaptureWatch
from vllm_nfp.adapter.observer import ObserverFactory, StepObserver
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.runners import UnknownRunnerError, view_of
from vllm_nfp.config import ProbeConfig

logger = logging.getLogger("vllm.nfp")


def install(patches: PatchSet, config: ProbeConfig, open_observer: ObserverFactory) -> None:
    """Arrange that every worker of this process is observed once it has warmed up.

    The wrapper around all workers is hooked, since the worker's class is chosen later. From there
    on everything is hooked on objects and not on their classes.

    Raises:
        MissingTargetError: if this vLLM has no such wrapper.
    """

    def after(worker: Any) -> None:
        try:
            _hook_warm_up(patches, worker, config, open_observer)
        except Exception as error:
            logger.exception("vllm-nfp: the probe stays off")
            metrics_bridge.report_unhooked(config, error)

    _wrap_init_device(patches, config, after)
    logger.debug("vllm-nfp: steps are observed through hooks")


def install_graphs(patches: PatchSet, config: ProbeConfig) -> None:
    """Have graphs captured and found for all draft lengths, in workers that vLLM itself observes.

    Raises:
        MissingTargetError: as for :func:`install`.
    """
    _wrap_init_device(patches, config, lambda worker: None)


def _wrap_init_device(patches: PatchSet, config: ProbeConfig, after: Callable[[Any], None]) -> None:
    def init_device(original: Any) -> Any:
        def wrapped(wrapper: Any) -> Any:
            # The worker makes its managers of CUDA graphs now.
            if config.draft_control:
                draft_lengths.install_graphs(patches, config)
            length_graphs.install(patches, config, getattr(wrapper, "vllm_config", None))
            result = original(wrapper)
            after(wrapper.worker)
            return result

        return wrapped

    patches.wrap(targets.INIT_DEVICE, init_device)


def _hook_warm_up(
    patches: PatchSet, worker: Any, config: ProbeConfig, open_observer: ObserverFactory
) -> None:
    def hook_steps(part: PatchSet, steps: StepObserver) -> None:
        with suppress(UnknownRunnerError):  # the observer says so when it is given the runner
            hook_runner(part, worker.model_runner, steps)

    def warm_up(original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            observer.about_to_warm_up(config)
            with CaptureWatch() as captures:
                result = original(*args, **kwargs)
            observer.start(worker, config, open_observer, captures.place, patches, hook_steps)
            return result

        return wrapped

    patches.wrap(targets.WARM_UP, warm_up, on=worker)


def hook_runner(patches: PatchSet, runner: Any, steps: StepObserver) -> None:
    """Tell the observer of each real step of a model runner.

    Raises:
        UnknownRunnerError: for a runner that is none of the known ones.
        MissingTargetError: if it has no such methods.
    """
    view = view_of(runner)

    def execute_model(original: Any) -> Any:
        def wrapped(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            if not view.is_dummy(kwargs):
                steps.before_step(scheduler_output)
            return original(scheduler_output, *args, **kwargs)

        return wrapped

    def sample_tokens(original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            steps.after_step()
            return result

        return wrapped

    patches.wrap(view.begins_step, execute_model, on=runner)
    patches.wrap(view.ends_step, sample_tokens, on=runner)
