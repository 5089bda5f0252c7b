"""Starts an engine in this process, attaches a session as the hooks do, and finds its parts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import inspecting

from vllm_nfp.adapter.engines import start_engine
from vllm_nfp.config import ProbeConfig


@contextlib.contextmanager
def started_engine(model: Path, **arguments: Any) -> Iterator[Any]:
    """An engine in this process, on short sequences and without graphs.

    Args:
        model: a directory with a config.json.
        arguments: others for ``vllm.LLM``.
    """
    # What is set for it is not for servers of later tests.
    with mock.patch.dict(os.environ), inspecting.in_this_process():
        usual = {"enforce_eager": True, "max_model_len": 512, "seed": 0}
        engine = start_engine(model, {**usual, **arguments})
        try:
            yield engine
        finally:
            # Else it ends whenever Python's collector finds it, and with it the process groups of
            # the engine that runs then.
            engine.llm_engine.engine_core.shutdown()


def attach(config: ProbeConfig, worker: Any, runner: Any = None) -> Any:
    """A session on a worker's runner, hooked if it is active."""
    from vllm_nfp.adapter import dummies
    from vllm_nfp.adapter.hooks import hook_runner
    from vllm_nfp.adapter.patch import PatchSet
    from vllm_nfp.session import open_session

    runner = runner or worker.model_runner
    patches = PatchSet()
    session = open_session(config, worker.vllm_config, time.monotonic())
    session.after_warm_up(runner, None, patches.restore)
    if session.active:
        hook_runner(patches, runner, session)
        if dummies.steps_together(worker.vllm_config):
            dummies.install(patches, worker, session)
    return session


@contextlib.contextmanager
def attaching() -> Iterator[Callable[..., Any]]:
    """:func:`attach`, whose sessions are disabled in the end."""
    sessions = []

    def begin(config: ProbeConfig, worker: Any, runner: Any = None) -> Any:
        sessions.append(attach(config, worker, runner))
        return sessions[-1]

    yield begin
    for session in sessions:
        if session.active:
            session.disable("the test is over", expected=True)


def publisher_of(session: Any) -> Any:
    """The background side."""
    return session._started.lead.publisher


def prober_of(session: Any) -> Any:
    """What chooses pairs, or only times steps."""
    return session._started.lead.watcher


def only_times(session: Any) -> bool:
    """Whether real steps are timed, and nothing can be probed."""
    from vllm_nfp.session.timing_only import TimingOnly

    return session.active and isinstance(prober_of(session), TimingOnly)


def engine_of(session: Any) -> Any:
    """What runs the shapes."""
    return session._started.engine
