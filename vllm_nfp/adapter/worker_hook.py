"""Hooks a worker after its warm-up and its model runner's steps from then on."""

from __future__ import annotations

import logging
import time
from typing import Any

from vllm_nfp.adapter import draft_lengths, metrics_bridge
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig

logger = logging.getLogger("vllm.nfp")


class HookMissingError(RuntimeError):
    """This vLLM lacks what the probe hooks; the message names it."""


def install(patches: PatchSet, config: ProbeConfig) -> None:
    """Arrange that every worker of this process gets a probe session once it has warmed up.

    The wrapper around all workers is hooked, since the worker's class is chosen later and may be
    any platform's. Everything from there on is hooked on the objects, not on their classes.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def init_device(original: Any) -> Any:
        def wrapped(wrapper: Any) -> Any:
            if config.draft_control:
                draft_lengths.install_graphs(patches, config)
            result = original(wrapper)
            _hook_worker(wrapper.worker, config)
            return result

        return wrapped

    if not patches.wrap(WorkerWrapperBase, "init_device", init_device):
        raise HookMissingError("WorkerWrapperBase.init_device")
    logger.info("vllm-nfp: steps are observed through hooks; this vLLM has no extension point")


def install_graphs(patches: PatchSet, config: ProbeConfig) -> None:
    """Where the extension point tells of workers: only have graphs captured for all draft lengths.

    A worker's graph managers are made before any observer is.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def init_device(original: Any) -> Any:
        def wrapped(wrapper: Any) -> Any:
            draft_lengths.install_graphs(patches, config)
            return original(wrapper)

        return wrapped

    if not patches.wrap(WorkerWrapperBase, "init_device", init_device):
        raise HookMissingError("WorkerWrapperBase.init_device")


def _hook_worker(worker: Any, config: ProbeConfig) -> None:
    """Attach a session when the worker has compiled and warmed up."""
    from vllm_nfp.adapter.graph_place import CaptureWatch

    def warm_up(original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with CaptureWatch() as captures:
                result = original(*args, **kwargs)
            _attach(worker, config, captures.place)
            return result

        return wrapped

    PatchSet().wrap(worker, "compile_or_warm_up_model", warm_up)


def _attach(worker: Any, config: ProbeConfig, place: Any) -> None:
    begun = time.monotonic()
    try:
        from vllm_nfp.adapter import idle
        from vllm_nfp.session import open_session

        session, patches = open_session(config, worker.vllm_config, begun), PatchSet()
        session.after_warm_up(worker.model_runner, place, patches.restore)
        if session.active:
            _hook_runner(worker.model_runner, session, patches)
            idle.install(session)
    except Exception as error:
        logger.exception("vllm-nfp: the probe stays off")
        metrics_bridge.report_unhooked(config, error)


def _hook_runner(runner: Any, session: Any, patches: PatchSet) -> None:
    """Tell the session of each real step; its faults stay inside it."""
    from vllm_nfp.adapter.runners import view_of

    is_dummy = view_of(runner).is_dummy

    def execute_model(original: Any) -> Any:
        def wrapped(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            if is_dummy(kwargs):
                return original(scheduler_output, *args, **kwargs)
            session.before_step(scheduler_output)
            return original(scheduler_output, *args, **kwargs)

        return wrapped

    def sample_tokens(original: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            session.after_step()
            return result

        return wrapped

    hooked = [
        patches.wrap(runner, "execute_model", execute_model),
        patches.wrap(runner, "sample_tokens", sample_tokens),
    ]
    if not all(hooked):
        session.disable(
            f"the model runner {type(runner).__name__} of this vLLM has no execute_model or no "
            f"sample_tokens to observe steps by",
            expected=True,
        )
