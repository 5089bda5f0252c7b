"""vLLM's ``--scheduler-cls`` that switches the draft control on and off while a server serves.

The engine core makes its scheduler by calling :func:`switched_scheduler`: it gets vLLM's own, under
a draft control that is paused until :mod:`benchmarks.overhead.switched` wants it. That works where
the engine core has a process of its own, as with several GPUs, and where the worker shares it.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.overhead.hooks import CONTROL_THREAD, thread_seconds
from benchmarks.overhead.switched_board import Board, CoreCost

SCHEDULER = "benchmarks.overhead.switched_core.switched_scheduler"
BOARD_VARIABLE, CONTROL_VARIABLE = "NFP_BENCH_BOARD", "NFP_BENCH_CONTROL"
"""Environment variables: the path of the board, and the control's settings as JSON; without the
latter nothing is controlled."""
THREADS_EVERY_SECONDS = 0.05


def switched_scheduler(vllm_config: Any, **arguments: Any) -> Any:
    """The scheduler that vLLM would have made, watched.

    Raises:
        RuntimeError: if the draft control cannot take over here; the log says why.
    """
    own = copy.copy(vllm_config.scheduler_config)
    own.scheduler_cls = None
    scheduler = own.get_scheduler_cls()(vllm_config=vllm_config, **arguments)
    settings = os.environ.get(CONTROL_VARIABLE)
    control = None if settings is None else _attach(scheduler, json.loads(settings))
    Watched(scheduler, control, Board(Path(os.environ[BOARD_VARIABLE])))
    return scheduler


def _attach(scheduler: Any, settings: dict[str, Any]) -> Any:
    """A paused draft control, over a table that has the longest draft at every batch size."""
    from vllm_nfp.adapter import draft_control
    from vllm_nfp.adapter.patch import PatchSet
    from vllm_nfp.config import config_from_mapping

    table = scheduler.dynamic_sd_lookup
    if table is not None:
        scheduler.dynamic_sd_lookup = [int(scheduler.num_spec_tokens)] * len(table)
    control = draft_control.attach(scheduler, config_from_mapping(settings), PatchSet())
    if control is None:
        raise RuntimeError("the draft control did not attach; the lines above say why")
    control.pause()
    return control


class Watched:
    """A scheduler whose control comes and goes, and what the control costs its thread.

    The loop asks ``has_requests`` outside of every step, so the control is switched there.

    Args:
        control: None if there is none.
    """

    def __init__(self, scheduler: Any, control: Any, board: Board) -> None:
        self._control, self._board = control, board
        self._on = False
        self._steps, self._seconds = 0, 0.0
        self._threads, self._read = 0.0, float("-inf")
        if control is not None:
            control.scheduled = self._timed(control.scheduled, steps=1)
            control.finished = self._timed(control.finished)
        has_requests = scheduler.has_requests

        def asked() -> bool:
            self.turn()
            return bool(has_requests())

        scheduler.has_requests = asked

    def _timed(self, call: Callable[..., None], steps: int = 0) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            begun = time.perf_counter()
            call(*arguments)
            self._seconds += time.perf_counter() - begun
            self._steps += steps

        return timed

    def turn(self) -> None:
        """Do as the board says, and write what was spent."""
        wanted = self._board.wants_control
        if wanted != self._on and self._control is not None:
            self._on = wanted
            (self._control.resume if wanted else self._control.pause)()
        now = time.perf_counter()
        if now >= self._read + THREADS_EVERY_SECONDS:
            self._threads, self._read = thread_seconds(CONTROL_THREAD), now
        self._board.spent(CoreCost(os.getpid(), self._steps, self._seconds, self._threads))
