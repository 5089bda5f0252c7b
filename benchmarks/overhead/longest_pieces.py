"""Claim: the probe's thread lets the serving thread go on at least every millisecond.

Loaded by vLLM itself, as a plugin beside the probe's, into the processes of a server:

    [vllm.general_plugins]
    nfp = vllm_nfp.plugin:register
    pieces = benchmarks.overhead.longest_pieces:register

with ``NFP_PIECES`` naming a folder. There each process that publishes answers keeps a file
``pieces-PID.json``: the CPU time that the background thread took between two pauses of
``give_way``, as quantiles, and the longest pieces with the places in the code where they began and
ended. A piece's CPU time is the longest that the thread can have held the interpreter for. Calls of
numpy within it may have let go of it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from benchmarks.overhead.pauses import pause_by
from vllm_nfp.files import write_whole

FOLDER = "NFP_PIECES"
LIMIT_SECONDS = 1e-3
WRITE_SECONDS = 2.0
FRAMES = 3
MOST_KEPT = 200


class Pieces:
    """Pieces of all threads that give way, by the CPU clock of the thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = threading.local()
        self._tenths: Counter[int] = Counter()
        """Pieces by tenths of a millisecond."""
        self._longest: list[tuple[float, str, str]] = []
        self._written = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """In the place of ``time.sleep`` in give_way."""
        here = _place(sys._getframe(2))
        now = time.thread_time()
        begun = getattr(self._begun, "mark", None)
        if begun is not None:
            self._note(now - begun[0], begun[1], here)
        time.sleep(seconds)
        self._begun.mark = (time.thread_time(), here)

    def _note(self, seconds: float, begun: str, ended: str) -> None:
        self._tenths[int(seconds * 1e4)] += 1
        if seconds > LIMIT_SECONDS:
            self._longest = sorted([*self._longest, (seconds, begun, ended)])[-MOST_KEPT:]
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._written = time.monotonic()
            write_whole(self._path, json.dumps(self.summary()))

    def summary(self) -> dict[str, object]:
        """What the file holds; times in ms."""
        count = sum(self._tenths.values())
        return {
            "pieces": count,
            "by_tenths_of_ms": dict(sorted(self._tenths.items())),
            "longest": [
                {"ms": round(seconds * 1e3, 2), "from": begun, "to": ended}
                for seconds, begun, ended in reversed(self._longest)
            ],
        }


def _place(frame: FrameType | None) -> str:
    """The innermost calls, without give_way's own."""
    found: list[str] = []
    while frame is not None and len(found) < FRAMES:
        code = frame.f_code
        if not code.co_filename.endswith("give_way.py"):
            found.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def register() -> None:
    """Begin to record, in a process that was told where to write."""
    folder = os.environ.get(FOLDER)
    if folder:
        pieces = Pieces(Path(folder) / f"pieces-{os.getpid()}.json")
        pause_by(pieces.sleep)
