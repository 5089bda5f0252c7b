"""The probe in one worker: start, serve, publish, and end on any fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nfp.config import ProbeConfig
    from vllm_nfp.session.session import Session


def open_session(config: ProbeConfig, vllm_config: Any, begun: float) -> Session:
    """A session for one worker. It does nothing before the worker has warmed up.

    Args:
        config: the probe's settings.
        vllm_config: the engine's configuration.
        begun: when the start of the server began to wait for the probe, such as for its imports;
            in seconds of the monotonic clock.
    """
    # Only now is anything imported that imports torch: the publisher alone needs none of it.
    from vllm_nfp.adapter.server_limits import server_limits
    from vllm_nfp.session.output import Output
    from vllm_nfp.session.session import Session
    from vllm_nfp.session.worker import StartCost, Worker

    limits = server_limits(vllm_config)
    config = config.for_server(limits.max_batch_size, limits.max_context)
    return Session(Worker(config, vllm_config, StartCost(begun)), Output(config))
