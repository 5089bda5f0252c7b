"""A vLLM plugin that notes when an engine core's steps end, and what the probe does meanwhile.

For :mod:`benchmarks.control_gaps`, which puts its entry point on the servers' PYTHONPATH. It knows
the names of the present vllm-nfp and of those before curves went to the controller in memory, and
writes one file for each process into the folder that :data:`FOLDER_ENV_VAR` names.
"""

from __future__ import annotations

import enum
import itertools
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER_ENV_VAR = "NFP_BENCH_GAPS"
RECORD = struct.Struct("<q4d")
"""Kind, begin and end in seconds of the monotonic clock, and two values of the kind."""
MOST_RECORDS = 1 << 20


class What(enum.IntEnum):
    """What a record tells of. But for STEP its values are CPU seconds, and those of the longest
    stretch without a pause."""

    STEP = 1
    """A step has ended: requests that still run, and requests that were new in it."""
    PROBE = 2
    """A pair of probes, or the preparation of one, ahead of a step."""
    PUBLISH = 3
    """All of one publish in the worker's background thread."""
    SNAPSHOT = 4
    """Part of it: the tables put together."""
    HAND_ON = 5
    """Part of it: encoding and writing them."""
    KEEP = 6
    """Part of it: the profile, if it is due."""
    CURVES = 7
    """Part of it: the controller's curves, made and handed over."""
    READ = 8
    """The reporter has looked for curves."""
    WRITE_CONTROL = 9
    """The reporter has written what the controller reports."""
    REPORT = 10
    """The serving thread has put the report together, or a part of it."""
    FOLLOW = 11
    """The serving thread has told the controller of a step: deciding and REPORT are in it."""


class _File:
    """Records of this process, in a file that is mapped into its memory."""

    def __init__(self) -> None:
        self._pid = 0
        self._memory: mmap.mmap | None = None
        self._numbers = itertools.count()

    def add(self, what: What, begin: float, end: float, first: float, second: float) -> None:
        """Note one thing; what is beyond the file's size is left out."""
        if self._pid != os.getpid():
            self._open()
        number = next(self._numbers)
        if number < MOST_RECORDS and self._memory is not None:
            RECORD.pack_into(self._memory, RECORD.size * number, what, begin, end, first, second)

    def _open(self) -> None:
        self._pid, self._numbers = os.getpid(), itertools.count()
        path = Path(os.environ[FOLDER_ENV_VAR]) / f"{self._pid}.bin"
        with path.open("w+b") as file:
            file.truncate(RECORD.size * MOST_RECORDS)
            self._memory = mmap.mmap(file.fileno(), 0)


_FILE = _File()
_STAGES = threading.local()
"""``stack``: what this thread is at, the innermost last."""


class _Stage:
    def __init__(self) -> None:
        self.begin, self.cpu = time.perf_counter(), time.thread_time()
        self.since, self.longest = self.cpu, 0.0

    def pause(self) -> None:
        self.longest = max(self.longest, time.thread_time() - self.since)


def _stack() -> list[_Stage]:
    if not hasattr(_STAGES, "stack"):
        _STAGES.stack = []
    found: list[_Stage] = _STAGES.stack
    return found


def _sleep(seconds: float) -> None:
    stages = _stack()
    for stage in stages:
        stage.pause()
    time.sleep(seconds)
    for stage in stages:
        stage.since = time.thread_time()


def _recorded(what: What, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        stack, stage = _stack(), _Stage()
        stack.append(stage)
        try:
            return call(*args, **kwargs)
        finally:
            stack.remove(stage)
            stage.pause()
            cpu = time.thread_time() - stage.cpu
            _FILE.add(what, stage.begin, time.perf_counter(), cpu, stage.longest)

    return wrapped


def _record(owner: Any, name: str, what: What) -> None:
    """Record the calls of an owner's function, where it has one."""
    call = vars(owner).get(name)
    if call is not None:
        setattr(owner, name, _recorded(what, call))


def _follow_steps(scheduler: Any) -> None:
    original = scheduler.update_from_output

    def wrapped(output: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(output, *args, **kwargs)
        now = time.perf_counter()
        new = len(output.scheduled_new_reqs)
        _FILE.add(What.STEP, now, now, len(scheduler.running), new)
        return result

    scheduler.update_from_output = wrapped


def register() -> None:
    """vLLM calls this in each of its processes."""
    if not os.environ.get(FOLDER_ENV_VAR):
        return
    from vllm_nfp import give_way
    from vllm_nfp.adapter import draft_control
    from vllm_nfp.draft.curve_exchange import CurveReceiver
    from vllm_nfp.draft.live import reporter
    from vllm_nfp.schedule import prober
    from vllm_nfp.session import publisher

    control, worker = draft_control.DraftControl, publisher.Publisher
    if hasattr(control, "recorded"):
        return
    control.recorded = True  # type: ignore[attr-defined]
    shim: Any = SimpleNamespace(sleep=_sleep)
    vars(give_way)["time"] = shim
    for name in ("_run", "_prepare"):
        _record(prober.Prober, name, What.PROBE)
    for name, what in (
        ("_publish", What.PUBLISH),
        ("snapshot", What.SNAPSHOT),
        ("_keep_sometimes", What.KEEP),
        ("_send_changed_curves", What.CURVES),
    ):
        _record(worker, name, what)
    _record_writes(worker)
    _record(control, "_report", What.REPORT)
    _record(control, "finished", What.FOLLOW)
    _record(reporter, "hand_over", What.WRITE_CONTROL)
    _record(CurveReceiver, "look", What.READ)
    attach: Any = draft_control.attach

    def attach_and_follow(scheduler: Any, *args: Any) -> Any:
        found = attach(scheduler, *args)
        _follow_steps(scheduler)
        return found

    vars(draft_control)["attach"] = attach_and_follow


def _record_writes(worker: Any) -> None:
    begin = worker.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self._write = _recorded(What.HAND_ON, self._write)

    worker.__init__ = init
