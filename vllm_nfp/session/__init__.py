"""The probe in one worker: start, serve, publish, and end on any fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_nfp.config import ProbeConfig
    from vllm_nfp.results.snapshot import Snapshot
    from vllm_nfp.session.session import Session


def open_session(
    config: ProbeConfig,
    vllm_config: Any,
    begun: float,
    show: Callable[[Snapshot], None] = lambda _: None,
) -> Session:
    """A session for one worker. It does nothing before the worker has warmed up.

    Args:
        config: the probe's settings.
        vllm_config: the engine's configuration.
        begun: when the start of the server began to wait for the probe, such as for its imports;
            in seconds of the monotonic clock.
        show: takes each snapshot if no file carries it to /metrics.
    """
    # Only now is anything imported that imports torch: the publisher alone needs none of it.
    from vllm_nfp.session.output import Output
    from vllm_nfp.session.session import Session
    from vllm_nfp.session.worker import StartCost, Worker

    return Session(Worker(config, vllm_config, StartCost(begun)), Output(config, show))
