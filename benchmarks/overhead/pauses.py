"""What a benchmark does in the pauses of threads that give way (:mod:`vllm_nfp.give_way`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock


def pause_by(sleep: Callable[[float], None]) -> None:
    """Have each pause sleep so, in the place of ``time.sleep``, as long as the process lives."""
    clock = mock.Mock(sleep=sleep, perf_counter=time.perf_counter)
    mock.patch("vllm_nfp.give_way.time", clock).start()
