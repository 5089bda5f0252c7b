"""Reads the files that engines hand over; one that has not changed is not read again."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from vllm_nfp.results.snapshot import (
    FILE_PATTERN,
    OfEngine,
    Snapshot,
    SnapshotError,
    engine_file,
    read_snapshot,
)
from vllm_nfp.types import State

logger = logging.getLogger("vllm.nfp")

MOST_ENGINES = 1024
"""Data-parallel engines on one machine; a folder with more files is none of ours."""
MOST_WARNINGS = 100

_NOT_YET = "no engine has handed over any results yet"
_FOLDER_GONE = "the hand-over directory is gone"
_FOLDER_FOREIGN = "the hand-over directory is not this user's any more"
_FILE_GONE = "the hand-over file is gone"
_FILE_UNUSABLE = "the hand-over file cannot be used; the log says why"

FileState = tuple[str, int, int, int]
"""Path, time of change, size and inode: alike as long as the file is."""
T = TypeVar("T", bound=OfEngine)


class Warnings:
    """Logs each message once, and a bounded number of them."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def once(self, message: str) -> None:
        """Log the message unless it has been."""
        if message not in self._told and len(self._told) < MOST_WARNINGS:
            self._told.add(message)
            logger.error("vllm-nfp: %s", message)


def folder_trouble(folder: Path) -> str:
    """Why nothing in the folder is to be read; empty if it is this user's own."""
    try:
        found = folder.lstat()
    except OSError:
        return _FOLDER_GONE
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return "" if own else _FOLDER_FOREIGN


class HandOverFiles(Generic[T]):
    """The files of one kind in a folder.

    Args:
        folder: that the engines write to.
        pattern: of the files' names.
        read: reads one; raises OSError or ValueError for one that cannot be used.
        file_of: where an engine's file lies, by folder and engine.
        warnings: is told of files that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        pattern: str,
        read: Callable[[Path], T],
        file_of: Callable[[str, str], Path],
        warnings: Warnings,
    ) -> None:
        self._folder = folder
        self._pattern = pattern
        self._read_one = read
        self._file_of = file_of
        self._warnings = warnings
        self._found: dict[Path, tuple[FileState, T]] = {}
        self._unusable: set[Path] = set()

    @property
    def found(self) -> dict[Path, T]:
        """What the files held when they were last read."""
        return {path: content for path, (_, content) in self._found.items()}

    @property
    def states(self) -> list[FileState]:
        """Of the files that were last read; alike as long as their content is."""
        return [state for state, _ in self._found.values()]

    @property
    def unusable(self) -> frozenset[Path]:
        """Files that were there and could not be used."""
        return frozenset(self._unusable)

    def read(self) -> list[T]:
        """What the files hold; those that cannot be used are left out."""
        known, self._found = self._found, {}
        self._unusable.clear()
        paths = () if folder_trouble(self._folder) else sorted(self._folder.glob(self._pattern))
        for path in paths[:MOST_ENGINES]:
            try:
                self._found[path] = self._read_changed(path, known.get(path))
            except FileNotFoundError:  # replaced or removed in this moment
                continue
            except (OSError, ValueError) as error:
                self._unusable.add(path)
                self._warnings.once(f"the hand-over file {path.name} is ignored: {error}")
        return list(self.found.values())

    def _read_changed(self, path: Path, known: tuple[FileState, T] | None) -> tuple[FileState, T]:
        status = path.stat()
        state = (str(path), status.st_mtime_ns, status.st_size, status.st_ino)
        if known is not None and known[0] == state:
            return known
        content = self._read_one(path)
        # Two files of one engine would give every series twice, and fail the scrape.
        if self._file_of(str(self._folder), content.engine) != path:
            raise SnapshotError(f"it speaks for engine {content.engine}")
        return state, content


@dataclass(frozen=True, slots=True)
class Engines:
    """What is known of the engines at one moment."""

    snapshots: list[Snapshot]
    """Of the engines that can be read."""
    lost: list[Snapshot]
    """State and age of those that cannot be read any more, with the reason. While no engine was
    ever read, one that is warming up stands for all."""
    states: list[FileState]


class EngineFiles:
    """The probes' files. An engine whose file cannot be read keeps its last state and age.

    Args:
        folder: that the engines write to.
        warnings: is told of files that cannot be used.
    """

    def __init__(self, folder: Path, warnings: Warnings) -> None:
        self._folder = folder
        self._files = HandOverFiles(folder, FILE_PATTERN, read_snapshot, engine_file, warnings)
        self._last: dict[Path, Snapshot] = {}
        """Of each engine that was ever read, without its results."""
        self._lost: dict[Path, str] = {}
        """Those of them that cannot be read now, and why."""

    def read(self) -> Engines:
        """Read what has changed."""
        snapshots = self._files.read()
        return Engines(snapshots, self._lost_engines(), self._files.states)

    def _lost_engines(self) -> list[Snapshot]:
        read = self._files.found
        for path in self._lost.keys() & read.keys():
            logger.info("vllm-nfp: the results of engine %s are there again", read[path].engine)
        self._last |= {path: _without_results(snapshot) for path, snapshot in read.items()}
        trouble = folder_trouble(self._folder)
        unusable = self._files.unusable
        lost = {
            path: trouble or (_FILE_UNUSABLE if path in unusable else _FILE_GONE)
            for path in sorted(self._last.keys() - read.keys())
        }
        for path in lost.keys() - self._lost.keys():
            logger.warning(
                "vllm-nfp: results of engine %s cannot be read now: %s",
                self._last[path].engine,
                lost[path],
            )
        self._lost = lost
        if not self._last:
            why = trouble or (_FILE_UNUSABLE if unusable else _NOT_YET)
            return [Snapshot("", "0", State.WARMING, reason=why)]
        return [_with_reason(self._last[path], why) for path, why in lost.items()]


def _without_results(snapshot: Snapshot) -> Snapshot:
    return Snapshot(
        snapshot.model_name,
        snapshot.engine,
        snapshot.state,
        snapshot.reason,
        updated_monotonic_seconds=snapshot.updated_monotonic_seconds,
    )


def _with_reason(snapshot: Snapshot, reason: str) -> Snapshot:
    """The snapshot with another reason before its own."""
    own = f"; {snapshot.reason}" if snapshot.reason else ""
    return replace(snapshot, reason=reason + own)
