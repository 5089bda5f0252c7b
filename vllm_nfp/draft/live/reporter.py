"""Writes the controller's reports and receives the probe's curves, beside the serving thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_exchange import CurveReceiver
from vllm_nfp.draft.curve_set import CurveSet
from vllm_nfp.give_way import be_patient
from vllm_nfp.results.control import ControlSnapshot, control_file
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.strict_json import encode

logger = logging.getLogger("vllm.nfp")

LONGEST_WRITE_SECONDS = 1.0
"""A write that takes longer hangs; the last report is then written beside it."""


def hand_over(folder: RunFolder, name: str, snapshot: ControlSnapshot) -> None:
    """Replace the file as a whole, in a folder that is made again if it is gone.

    Raises:
        OSError: if it cannot be written.
    """
    folder.write(name, encode(snapshot))


class Reporter:
    """Writes what is reported and looks for the probe's curves, in a thread of its own.

    Only the latest report waits to be written: while a write hangs, as on a dead disk, earlier ones
    are dropped. The last one is always written: by the thread once its write returns, and by
    another thread if that takes too long.

    Args:
        config: the settings.
        engine: index of the engine, which names the file.
    """

    def __init__(self, config: ProbeConfig, engine: str) -> None:
        self._run_dir = config.run_dir
        self._folder = None if config.run_dir is None else RunFolder(config.run_dir)
        self._engine = engine
        self._receiver = CurveReceiver(config, engine)
        self._latest: ControlSnapshot | None = None
        self._ended = False
        self._warned = False
        # Holds two words at most. The serving thread takes no lock that this one may hold.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = self._start(self._run)

    @property
    def curves(self) -> CurveSet | None:
        """The probe's latest curves of the whole step; None before the first."""
        return self._receiver.latest

    def put(self, snapshot: ControlSnapshot) -> None:
        """Replace the report that waits to be written; returns at once."""
        if not self._ended:
            self._latest = snapshot
            if self._wake.empty():
                self._wake.put(None)

    def end(self, snapshot: ControlSnapshot) -> None:
        """Write this report and no other after it; returns at once."""
        self._latest, self._ended = snapshot, True
        self._wake.put(None)
        self._start(self._end_beside)

    def _start(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name="nfp-draft-control", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while True:
            self._wake.get()
            be_patient()
            ended = self._ended  # the last report was there before
            self._write()
            if ended:
                return
            self._receiver.look()

    def _end_beside(self) -> None:
        self._thread.join(LONGEST_WRITE_SECONDS)
        if self._thread.is_alive():
            self._write()

    def _write(self) -> None:
        snapshot, run_dir, folder = self._latest, self._run_dir, self._folder
        if snapshot is None or run_dir is None or folder is None:
            return
        try:
            hand_over(folder, control_file(run_dir, self._engine).name, snapshot)
            self._warned = False
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning("vllm-nfp: the draft control cannot report for now: %s", error)
