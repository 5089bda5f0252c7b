"""Hands the whole step's curves from the worker's publisher to the controller of draft lengths.

Both live in the engine core's process under vLLM's uniprocess executor: the finished set of curves
goes from one to the other by reference. With workers in processes of their own, as under tensor
parallelism, it goes through a small file in the run folder (:mod:`vllm_nfp.draft.curve_set`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TypeVar

from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.curve_set import (
    CurveSet,
    are_alike,
    curve_file,
    read_curves,
    write_curves,
)
from vllm_nfp.draft.sources import curves_of_rows
from vllm_nfp.types import CurvePoint

logger = logging.getLogger("vllm.nfp")

V = TypeVar("V")

_Key = tuple[str | None, str]
"""(run folder, engine index): one engine of one server."""
_FileState = tuple[int, int, int]
"""Time of change, size and inode: alike as long as the file is."""
NO_NEW = "gets no new curves"
MOST_ENGINES = 64
"""Engines of this process whose curves are kept; the oldest is forgotten first."""

_latest: dict[_Key, CurveSet] = {}
_readers: dict[_Key, None] = {}


class _End:
    """What both ends know: whose curves they are, and whether a warning was given.

    Args:
        config: the probe's settings.
        engine: index of the engine.
    """

    def __init__(self, config: ProbeConfig, engine: str) -> None:
        self._key: _Key = (config.run_dir, engine)
        self._path = None if config.run_dir is None else curve_file(config.run_dir, engine)
        self._warned = False

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("vllm-nfp: the draft control %s: %s", what, error)


class CurveSender(_End):
    """The publisher's end; used by its thread."""

    _sent: CurveSet | None = None
    _written = False
    _first = True

    def send(self, rows: Iterable[CurvePoint]) -> bool:
        """Hand over the curves among these rows; False if they are to be sent once more.

        A controller of this process has them at once; without one they are written, but not the
        first time: the worker warms up, and sends, before the scheduler is made. What hardly
        changes any answer is not sent.
        """
        try:
            curves = CurveSet.of(curves_of_rows(rows))
        except ValueError as error:
            self._warn(NO_NEW, error)
            return True  # the same rows give the same error
        if self._sent is None or not are_alike(curves, self._sent):
            self._sent, self._written = curves, False
            _keep(_latest, self._key, curves)
        first, self._first = self._first, False
        if self._written or self._key in _readers:
            return True
        return not first and self._write(self._sent)

    def _write(self, curves: CurveSet) -> bool:
        if self._path is None:
            return True
        try:
            write_curves(self._path, curves)
        except OSError as error:
            self._warn(NO_NEW, error)
            return False
        self._written = True
        return True


class ChangedCurves:
    """Sends the curves of each version once; for the publisher's thread.

    Args:
        sender: takes them; None if nobody wants them.
    """

    def __init__(self, sender: CurveSender | None) -> None:
        self._sender = sender
        self._sent_version = 0

    def send(self, version: int, rows: Iterable[CurvePoint]) -> None:
        """Hand over the curves among these rows, unless this version of them is already there.

        Args:
            version: rises when the curves change; 0 before there are any.
        """
        if self._sender is None or version == self._sent_version:
            return
        if self._sender.send(rows):
            self._sent_version = version


class CurveReceiver(_End):
    """The controller's end."""

    _from_file: CurveSet | None = None
    _state: _FileState | None = None

    def __init__(self, config: ProbeConfig, engine: str) -> None:
        super().__init__(config, engine)
        _keep(_readers, self._key, None)

    @property
    def latest(self) -> CurveSet | None:
        """The latest curves; None before the first. Reads no file."""
        return _latest.get(self._key, self._from_file)

    def look(self) -> None:
        """Read the file if it has changed, unless the worker is in this process.

        In a background thread. A file that cannot be used gives one warning, and no curves.
        """
        if self._path is None or self._key in _latest:
            return
        try:
            about = os.lstat(self._path)
            state = (about.st_mtime_ns, about.st_size, about.st_ino)
            if state == self._state:
                return
            self._state = state
            self._from_file = read_curves(self._path)
        except FileNotFoundError:
            return  # the probe has measured nothing yet, or is off
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                self._state = None  # it may be readable the next time
            self._from_file = CurveSet.of(())
            self._warn("does without curves", error)


def _keep(of: dict[_Key, V], key: _Key, value: V) -> None:
    of[key] = value
    while len(of) > MOST_ENGINES:
        del of[next(iter(of))]
