"""All that a session writes: what /metrics shows, the profile, and the log of raw samples."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_no_space
from vllm_nfp.results.profile import profile_file, profile_of, save_profile
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.session.sample_log import SampleLog
from vllm_nfp.strict_json import encode
from vllm_nfp.types import Environment, LayerLatency, ModelDescription, PairResult, State

logger = logging.getLogger("vllm.nfp")

LONGEST_WRITE_SECONDS = 1.0
"""A write that takes longer hangs; nobody waits for it any more."""
KEEP_SECONDS = 15.0
"""Time between two writings of a profile while the state stays."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What results in the output directory were measured on, and with which settings."""

    environment: Environment
    model: ModelDescription
    config: ProbeConfig


class Output:
    """Writes to the run folder, from where /metrics reads, and to the output directory.

    A full disk is no fault: the old results stay, and /metrics shows their age.

    Args:
        config: names the folders.
    """

    def __init__(self, config: ProbeConfig) -> None:
        self._run_dir, self._output_dir = config.run_dir, config.output_dir
        self._run_folder = None if config.run_dir is None else RunFolder(config.run_dir)
        self._measured: Measured | None = None
        self._log: SampleLog | None = None
        self._silent = False
        self._ended = False
        self._writing = threading.Lock()
        self._unwritten: set[str] = set()
        """Folders that the last write to has failed."""
        self._profile_fails = False

    @property
    def keeps(self) -> bool:
        """Whether there is an output directory, and thus a profile."""
        return self._output_dir is not None

    def silence(self) -> None:
        """Write nothing: another rank of the engine does."""
        self._silent = True

    def open(self, engine: str, measured: Measured) -> None:
        """Begin the log of raw samples; from now on profiles can be written.

        Args:
            engine: index of the engine, a part of the files' names.
        """
        if self._output_dir is None:
            return
        self.close()
        self._measured = measured
        self._log = SampleLog(Path(self._output_dir), engine, measured.environment)

    def record(self, result: PairResult) -> None:
        """Append a raw pair to the log, if there is one."""
        if self._log is not None:
            self._log.add(result)

    def write(self, snapshot: Snapshot) -> None:
        """Hand results to /metrics, and put them into the output directory."""
        if self._silent:
            return
        with self._turn_of(snapshot) as granted:
            if granted:
                self._hand_over(snapshot)

    def keep(self, snapshot: Snapshot) -> None:
        """Write the profile; if that fails it is tried again the next time.

        Args:
            snapshot: with the times of layers.
        """
        measured = self._measured
        if self._output_dir is None or measured is None:
            return
        try:
            profile = profile_of(snapshot, measured.environment, measured.model, measured.config)
            with self._turn_of(snapshot) as granted:
                if granted:
                    Path(self._output_dir).mkdir(parents=True, exist_ok=True)
                    save_profile(profile_file(self._output_dir, snapshot.engine), profile)
                    self._profile_fails = False
        except (OSError, ValueError) as error:
            if not self._profile_fails:
                logger.warning("vllm-nfp: the profile cannot be written for now: %s", error)
            self._profile_fails = True

    def end(self) -> None:
        """From now on only snapshots of the state ``disabled`` are written."""
        self._ended = True

    def write_last(self, results: Callable[[], Snapshot]) -> None:
        """Write the last results from another thread: this one waits a moment at most.

        Args:
            results: gives them, in that thread.
        """

        def write() -> None:
            try:
                last = results()
                self.write(replace(last, layer_times=()))
                self.keep(last)
            except Exception:
                logger.exception("vllm-nfp: /metrics may not show that the probe is disabled")

        thread = threading.Thread(target=write, name="nfp-end", daemon=True)
        thread.start()
        thread.join(LONGEST_WRITE_SECONDS)

    def close(self) -> None:
        """Close the log of raw samples."""
        if self._log is not None:
            self._log.close()

    @contextmanager
    def _turn_of(self, snapshot: Snapshot) -> Iterator[bool]:
        """One thread writes at a time. Nothing may overwrite the last snapshot.

        The last snapshot waits for a write that hangs, in a thread that nobody waits for.
        """
        last = snapshot.state is State.DISABLED
        granted = self._writing.acquire(timeout=-1 if last else LONGEST_WRITE_SECONDS)
        try:
            yield granted and (last or not self._ended)
        finally:
            if granted:
                self._writing.release()

    def _hand_over(self, snapshot: Snapshot) -> None:
        for folder in filter(None, (self._run_dir, self._output_dir)):
            self._try_to_write(folder, snapshot)

    def _try_to_write(self, folder: str, snapshot: Snapshot) -> None:
        try:
            self._write_to(folder, snapshot)
        except OSError as error:
            if folder not in self._unwritten:
                logger.warning("vllm-nfp: results cannot be written for now: %s", error)
                self._unwritten.add(folder)
        else:
            if folder in self._unwritten:
                logger.info("vllm-nfp: results are written to %s again", folder)
                self._unwritten.remove(folder)

    def _write_to(self, folder: str, snapshot: Snapshot) -> None:
        path = engine_file(folder, snapshot.engine)
        if folder != self._output_dir and self._run_folder is not None:
            self._run_folder.write(path.name, encode(snapshot))
            return
        maybe_no_space()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_snapshot(path, snapshot)


class KeptProfile:
    """When the profile is written: whenever the state changes, and now and then.

    For the thread that publishes.

    Args:
        output: writes it.
        layer_times: gives the times of layers, which a profile has beside a snapshot.
    """

    def __init__(self, output: Output, layer_times: Callable[[], tuple[LayerLatency, ...]]) -> None:
        self._output = output
        self._layer_times = layer_times
        self._at = -math.inf
        self._state: State | None = None

    def keep_sometimes(self, snapshot: Snapshot) -> None:
        """Write the profile if it is due, and if there is a directory for it.

        A writing that fails counts: it is tried again when the next one is due.
        """
        now = time.monotonic()
        due = snapshot.state is not self._state or now >= self._at + KEEP_SECONDS
        if self._output.keeps and due:
            self._output.keep(replace(snapshot, layer_times=self._layer_times()))
            self._at, self._state = now, snapshot.state
