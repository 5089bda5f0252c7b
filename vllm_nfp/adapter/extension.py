"""vLLM's extension point for observers of steps, where this vLLM has it.

``patches/`` adds it (see patches/README.md). Where it is missing, :mod:`vllm_nfp.adapter.hooks`
hooks workers instead; both drive the same observer.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm_nfp.adapter import observer
from vllm_nfp.adapter.graph_place import CaptureWatch
from vllm_nfp.adapter.observer import ObserverFactory, StepObserver
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig

logger = logging.getLogger("vllm.nfp")


def register(patches: PatchSet, config: ProbeConfig, open_observer: ObserverFactory) -> None:
    """Have vLLM observe every worker of this process that warms up."""
    from vllm.v1.worker.step_observer import register_step_observer

    in_force = True

    def factory(worker: Any) -> WorkerObserver | None:
        return WorkerObserver(worker, config, open_observer, patches) if in_force else None

    def withdraw() -> None:
        nonlocal in_force
        in_force = False

    register_step_observer(factory)
    patches.on_restore(withdraw)
    logger.debug("vllm-nfp: steps are observed through vLLM's extension point")


class WorkerObserver:
    """What vLLM calls around a worker's warm-up and steps.

    Args:
        worker: vLLM's, about to warm up.
        config: the settings.
        open_observer: opens what observes the steps, after the warm-up.
        patches: what was replaced in this process.
    """

    def __init__(
        self, worker: Any, config: ProbeConfig, open_observer: ObserverFactory, patches: PatchSet
    ) -> None:
        self._worker = worker
        self._config = config
        self._open_observer = open_observer
        self._patches = patches
        observer.about_to_warm_up(config)
        self._captures = CaptureWatch().open()
        self._observer: StepObserver | None = None
        self._warm = False

    def after_warm_up(self) -> None:
        """Start to observe, once."""
        if self._warm:
            return
        self._warm = True
        self._captures.close()
        self._observer = observer.start(
            self._worker, self._config, self._open_observer, self._captures.place, self._patches
        )

    def before_step(self, scheduler_output: Any) -> None:
        """A real step is about to run."""
        if self._observer is not None and self._observer.active:
            self._observer.before_step(scheduler_output)

    def after_step(self) -> None:
        """The step has been launched."""
        if self._observer is not None and self._observer.active:
            self._observer.after_step()
