"""The files that keep what the server of benchmarks.overhead.switched did."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.hosts import environment
from benchmarks.overhead.overhead_summary import Row, Turn
from benchmarks.serving.load_result import Result


class Output:
    """The two files of a run, written anew after each round of loads."""

    def __init__(self, folder: Path, shape: str, settings: Mapping[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = str(folder / f"switched-{shape}")
        self._settings = settings
        self._environment = environment.record()
        self.rows: list[Row] = []
        self.times_us: dict[str, NDArray[np.uint32]] = {}
        """Inter-token times by the key of their turn, and times to first token."""
        self.about: dict[str, Any] = {}
        """Saturation, start-up and memory."""

    def add(self, turn: Turn, result: Result, cost: Mapping[str, Any]) -> None:
        """Keep one turn."""
        first = np.rint(np.array(result.ttft_seconds) * 1e6)
        self.times_us |= {turn.key: result.itl_us, turn.first_key: first.astype(np.uint32)}
        self.rows.append({**dataclasses.asdict(turn), **result.summary(), **cost})

    def write(self) -> None:
        """Write all that is there."""
        record = {
            "settings": self._settings,
            "environment": self._environment,
            "after": environment.gpu_state(),
            **self.about,
            "rounds": self.rows,
        }
        Path(f"{self._stem}.json").write_text(json.dumps(record), encoding="utf-8")
        np.savez_compressed(f"{self._stem}.npz", **self.times_us)  # type: ignore[arg-type]
