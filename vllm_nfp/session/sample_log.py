"""The log of raw samples in the output directory: one JSON line for each pair."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from vllm_nfp.faults import maybe_no_space
from vllm_nfp.files import open_to_append, write_whole
from vllm_nfp.strict_json import encode
from vllm_nfp.types import Environment, PairResult

logger = logging.getLogger("vllm.nfp")

MOST_LOG_BYTES = 256 << 20
"""Size at which the log ends: at the default budget, after days of full load."""


class SampleLog:
    """Appends pairs until it is full or cannot be written. Neither is a fault of the probe.

    Args:
        folder: made if it is not there.
        engine: index of the engine, a part of the file's name.
        environment: what the samples are measured on; written beside them.
    """

    def __init__(self, folder: Path, engine: str, environment: Environment) -> None:
        self._folder = folder
        self._engine = engine
        self._environment = environment
        self._path = folder / f"samples-{engine}.jsonl"
        self._file: IO[str] | None = None
        try:
            self._file = self._open()
        except OSError as error:  # the disk is full, say: results and /metrics do without it
            logger.warning("vllm-nfp: no raw samples are written: %s", error)

    def _open(self) -> IO[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self._environment), indent=1)
        write_whole(self._folder / f"environment-{self._engine}.json", text)
        return open_to_append(self._path)

    def add(self, result: PairResult) -> None:
        """Append a pair, unless the log has ended."""
        if self._file is None:
            return
        if self._file.tell() > MOST_LOG_BYTES:
            logger.warning(
                "vllm-nfp: the log of raw samples has reached %d MiB and ends",
                MOST_LOG_BYTES >> 20,
            )
            self.close()
            return
        line = f'{{"unix_seconds": {time.time()!r}, {encode(result)[1:]}\n'
        try:
            maybe_no_space()
            self._file = self._there(self._file)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            logger.warning("vllm-nfp: no more raw samples are written: %s", error)
            self.close()

    def _there(self, file: IO[str]) -> IO[str]:
        """The file; made again if it, or the whole folder, was removed."""
        if self._path.exists():
            return file
        file.close()
        made = self._open()
        logger.warning("vllm-nfp: %s was removed; it has been begun again", self._path)
        return made

    def close(self) -> None:
        """Write nothing more."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # closing writes what is left
                file.close()
