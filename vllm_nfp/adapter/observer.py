"""What observes a worker's steps, whether hooks call it or vLLM's extension point does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from vllm_nfp.adapter import dummies, first_scan, idle, metrics_bridge, presence
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.patch import MissingTargetError, PatchSet
from vllm_nfp.adapter.verification import AdaptiveVerification, verification_of
from vllm_nfp.config import ProbeConfig
from vllm_nfp.types import Shape

logger = logging.getLogger("vllm.nfp")


class StepObserver(Protocol):
    """Called on the worker's thread. Its own faults end inside it."""

    @property
    def active(self) -> bool:
        """Whether steps are timed or probed."""
        ...

    def after_warm_up(
        self, runner: Any, place: GraphPlace | None, unhook: Callable[[], None]
    ) -> None:
        """Take up the model runner, before the server takes requests.

        Args:
            runner: vLLM's model runner.
            place: memory pool and stream of vLLM's own CUDA graphs, if there are any.
            unhook: removes all that was hooked for this observer.
        """
        ...

    def before_step(self, scheduler_output: Any) -> None:
        """A real step is about to run; probes may run before it."""
        ...

    def before_dummy(self) -> None:
        """A dummy batch is about to run, while other engines run a step."""
        ...

    def verifies(self, verification: AdaptiveVerification, patches: PatchSet) -> None:
        """vLLM verifies adaptively; called once, after the warm-up.

        Args:
            patches: takes up what is hooked.
        """
        ...

    def trimmed(self, tokens: int) -> None:
        """vLLM has cut drafts of the step that runs now: it has so many tokens."""
        ...

    def after_step(self) -> None:
        """The step has been launched; the device may still be at work."""
        ...

    def idle(self) -> float:
        """No request is there; returns the seconds until the next call."""
        ...

    @property
    def to_fill(self) -> Shape | None:
        """What a first scan that was put off reads at most; None where none waits, or follows."""
        ...

    def scan(self, note: str = "") -> None:
        """Run the first scan, if it was put off.

        Args:
            note: what the results should say of the scan; empty: nothing.
        """
        ...


ObserverFactory = Callable[[ProbeConfig, Any], StepObserver]
"""Makes an observer from the settings and vLLM's configuration."""


def about_to_warm_up(config: ProbeConfig) -> None:
    """Tell the other ranks that this one has a probe; a fault here is a fault of the probe's."""
    try:
        presence.announce(config)
    except Exception:
        logger.exception("vllm-nfp: the other ranks could not be told of this one's probe")


def start(
    worker: Any,
    config: ProbeConfig,
    open_observer: ObserverFactory,
    place: GraphPlace | None,
    patches: PatchSet,
    hook_steps: Callable[[PatchSet, StepObserver], None] | None = None,
) -> StepObserver | None:
    """Open an observer for a worker that has warmed up; None if there is nothing to observe.

    Args:
        patches: what was replaced in this process; what is hooked here becomes a part of it.
        hook_steps: hooks the model runner's steps; None if vLLM itself calls the observer.
    """
    part = patches.part()
    try:
        observer = open_observer(config, worker.vllm_config)
        if hook_steps is not None:
            hook_steps(part, observer)
        if dummies.steps_together(worker.vllm_config):
            dummies.install(part, worker, observer)
        observer.after_warm_up(worker.model_runner, place, part.restore)
        if observer.active:
            idle.install(part, observer)
            if config.fill_first:
                first_scan.install(part, observer)
            _tell_of_verification(worker.model_runner, config, observer, part)
            return observer
    except MissingTargetError as error:
        logger.warning("vllm-nfp: the probe stays off: %s", error)
        metrics_bridge.report_unhooked(config, error)
    except Exception as error:
        logger.exception("vllm-nfp: the probe stays off")
        metrics_bridge.report_unhooked(config, error)
    part.restore()
    return None


def _tell_of_verification(
    runner: Any, config: ProbeConfig, observer: StepObserver, patches: PatchSet
) -> None:
    verification = verification_of(runner)
    if verification is not None:
        observer.verifies(verification, patches)
    elif config.verification_costs:
        logger.warning(
            "vllm-nfp: --nfp-verification-costs has no effect: this server's model runner "
            "or draft method does not verify adaptively"
        )
